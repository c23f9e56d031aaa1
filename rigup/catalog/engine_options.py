"""Check a recipe's arguments and environment against the options that engines have (`recipes/engines/`).

The data of a release comes from its wheel (`python -m tools.engines`), and is used for recipes whose version range
includes that release. A fork is checked against the release that it resembles most, and its own options (`forks/`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rigup.catalog.complaint import Complaint
from rigup.catalog.engine_args import arguments
from rigup.catalog.recipe import Recipe, option_name
from rigup.config.yaml_file import Loc
from rigup.errors import near
from rigup.resources import RECIPES

DIRECTORY = RECIPES / "engines"

# Only variables with these prefixes belong to the engine.
PREFIXES = {"vllm": ("VLLM_",), "sglang": ("SGLANG_", "SGL_")}

Kind = str | tuple[str, ...]

# The form of each kind of value, and its name. Python's parsers accept more (`1_000`), which nobody writes.
LOOKS = {
    "int": (r"[+-]?\d+", "a whole number"),
    "float": (r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", "a number"),
    "size": (r"-1|auto|\d+|\d+(\.\d+)?[kmgt]|\d+[KMGT]i?", "a number such as 8192, 8k or 8K"),
}
ARTICLES = {"int": "a whole number", "float": "a number", "bool": "true or false", "text": "a string"}
EXAMPLES = {"int": "for example 8", "float": "for example 0.5", "bool": "without quotes", "text": 'for example "auto"'}

# The kind of fault, what is wrong, and what to do.
Fault = tuple[str, str, str]
UNKNOWN, VALUE, VARIABLE = "recipe-option", "recipe-value", "recipe-variable"


@dataclass(frozen=True)
class Release:
    """The options, variables and model architectures of one release, or of a fork of it.

    An option is a `flag`, one of a list, or takes an `int`, a `float`, a `size` (a number that may end in k or M, or
    `auto`), a `text`, `json`, or a `value` of unknown type. `keys` are the keys of options that take JSON, each with
    the shape of its value: `int`, `float`, `bool`, `text`, a list to choose from, `{list: SHAPE}`,
    `{tuple: [SHAPE, ...]}` or `any`. `quantization` are the methods that it knows.
    """

    engine: str
    version: str
    options: Mapping[str, Kind]
    keys: Mapping[str, Mapping[str, Any]]
    environment: frozenset[str]
    architectures: frozenset[str]
    fork: str | None = None
    quantization: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The release in messages, such as `vllm 0.33.0 (fork voipmonitor)`."""
        return f"{self.engine} {self.version}" + (f" (fork {self.fork})" if self.fork else "")

    def remedy(self, meant: Sequence[str]) -> str:
        """Return what to do about an unknown option or variable; `meant` are similar ones."""
        likely = f"did you mean {' or '.join(meant)}?" if meant else ""
        if self.fork:
            place = f"recipes/engines/forks/{self.fork}-{self.engine}.yaml"
            return f"{likely or 'remove it.'} If the fork has it, add it to {place} with its source"
        return likely or "remove it, or set engine.max"


def _read(path: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    data: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    return data


def _options(data: Mapping[str, Any]) -> dict[str, Kind]:
    return {name: tuple(kind) if isinstance(kind, list) else kind for name, kind in data.items()}


@cache
def on_file() -> tuple[tuple[str, str, Path], ...]:
    """Return engine, version and file of all releases that the catalog has data of: `ENGINE-VERSION.yaml`."""
    named = ((path.stem.partition("-"), path) for path in sorted(DIRECTORY.glob("*.yaml")))
    return tuple((engine, version, path) for (engine, _, version), path in named)


@cache
def release_in(path: Path) -> Release:
    """Return the release that a file has the data of. A deploy reads only those that it needs."""
    data = _read(path)
    known, served = frozenset(data["environment"]), frozenset(data["architectures"])
    methods = frozenset(data.get("quantization", ()))
    options = _options(data["options"])
    return Release(data["engine"], data["version"], options, data["keys"], known, served, quantization=methods)


def newest(engine: str) -> Release:
    """Return the newest release of an engine that the catalog has data of."""
    return release_in(max((ordered(version), path) for name, version, path in on_file() if name == engine)[1])


def releases() -> tuple[Release, ...]:
    """Return all releases that the catalog has data of."""
    return tuple(release_in(path) for _, _, path in on_file())


@cache
def fork_of(engine: str, fork: str) -> Release:
    """Return the options of a fork: those of the release that it is like (by default the newest), and its own."""
    path = DIRECTORY / "forks" / f"{fork}-{engine}.yaml"
    data = _read(path) if path.is_file() else {}
    own = [(version == data.get("like"), ordered(version), path) for name, version, path in on_file() if name == engine]
    like = release_in(max(own)[-1])
    options = {**like.options, **_options(data.get("options", {}))}
    for name, more in data.get("values", {}).items():
        known = options[name]
        assert isinstance(known, tuple), f"{path}: {name} is not an option with a list of values"
        options[name] = (*known, *more)
    environment = like.environment | set(data.get("environment", ()))
    return replace(like, options=options, environment=environment, fork=fork)


@cache
def missing_kernels(engine: str) -> Mapping[str, Sequence[str]]:
    """Return by option the values that need kernels which the cards do not have, with `*` as in file names."""
    found: Mapping[str, Sequence[str]] = _read(RECIPES / "hardware" / "sm120.yaml")[engine]["options"]
    return found


def ordered(version: str) -> tuple[int, ...]:
    """Return a version as numbers, so that `0.17.0` < `0.17.0.post1` < `0.17.1`."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def releases_of(recipe: Recipe) -> list[Release]:
    """Return the releases in a recipe's version range; for a fork, that fork."""
    if recipe.engine.fork:
        return [fork_of(recipe.engine.name, recipe.engine.fork)]
    low, high = recipe.engine.min, recipe.engine.max
    return [
        release_in(path)
        for engine, version, path in on_file()
        if engine == recipe.engine.name
        and (low is None or ordered(low) <= ordered(version))
        and (high is None or ordered(version) <= ordered(high))
    ]


def place(key: str) -> Loc:
    """Return `("argv", 3)` for `argv[3]`."""
    return tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", key))


def check_options(recipe: Recipe, release: Release, architecture: str | None = None) -> Iterator[Complaint]:
    """Yield what this release would refuse or ignore in the recipe, and whether it serves the model's architecture.

    An unknown option of a fork is advice, because not all of its options are on file; nor are its architectures.
    """
    if architecture and release.fork is None and architecture not in release.architectures:
        message = f"{release.name} does not serve {architecture}, the architecture of this model"
        yield Complaint("recipe-architecture", ("checkpoint",), message, "use another release, or a fork that does")
    for argument, key in arguments(recipe):
        for id, message, remedy in _argument(argument, release):
            yield Complaint(id, place(key), message, remedy, advice=id == UNKNOWN and release.fork is not None)
    for name in recipe.env:
        if name.startswith(PREFIXES[release.engine]) and name not in release.environment:
            remedy = release.remedy(near(name, release.environment))
            message = f"{release.name} does not read {name}"
            yield Complaint(VARIABLE, ("env", name), message, remedy, advice=True)


def _argument(argument: str, release: Release) -> Iterator[Fault]:
    name, equals, value = argument.partition("=")
    if release.engine == "vllm":
        # vLLM also accepts underscores, and `--attention-config.backend`.
        name = option_name(argument).split(".")[0]
    known = release.options
    kind = known.get(name)
    if kind is None and name.startswith("--no-") and known.get("--" + name.removeprefix("--no-")) == "flag":
        kind = "flag"
    if kind is None:
        begun = [each for each in known if name.startswith("--") and each.startswith(name)]
        if len(begun) > 1 and release.engine == "sglang":
            remedy = f"write {' or '.join(sorted(begun)[:3])}"
            yield UNKNOWN, f"{name} is ambiguous in {release.name}, which exits", remedy
        else:
            yield UNKNOWN, f"{release.name} has no option {name}", release.remedy(begun[:1] or near(name, known))
    elif kind == "flag" and equals:
        yield VALUE, f"{name} of {release.name} takes no value", f"write {name} alone"
    elif kind != "flag" and not equals:
        yield VALUE, f"{name} of {release.name} needs a value", f"{name}=VALUE"
    elif isinstance(kind, tuple) and value not in kind:
        meant = near(value, kind)
        remedy = f"did you mean {' or '.join(meant)}?" if meant else f"one of {', '.join(kind)}"
        yield VALUE, f"{name} of {release.name} does not take {value!r}", remedy
    elif "." in argument.partition("=")[0]:
        return
    elif kind == "json" or (name in release.keys and value.startswith("{")):
        yield from _json(name, value, release)
    elif kind in LOOKS and not re.fullmatch(LOOKS[kind][0], value):
        yield VALUE, f"{name} of {release.name} does not take {value!r}", LOOKS[kind][1]


def _json(name: str, value: str, release: Release) -> Iterator[Fault]:
    try:
        data: Any = json.loads(value)
    except json.JSONDecodeError as error:
        yield VALUE, f"{name} is not valid JSON: {error.msg} at character {error.pos}", "check quotes and braces"
        return
    except (ValueError, RecursionError) as error:
        yield VALUE, f"{name} is not usable JSON: {error}", "simplify it"
        return
    for key in data if name in release.keys and isinstance(data, dict) else ():
        if key not in release.keys[name]:
            meant = near(key, release.keys[name])
            remedy = f"did you mean {' or '.join(meant)}?" if meant else "remove it"
            yield VALUE, f"{name} of {release.name} has no key {key!r}", remedy
        elif fault := misshapen(data[key], release.keys[name][key]):
            yield VALUE, f"{key} in {name} of {release.name} {fault[0]}", fault[1]


def misshapen(value: Any, shape: Any) -> tuple[str, str] | None:
    """Return what is wrong with a JSON value, and the remedy; null means the default and is always right."""
    numbers = {"int": (int,), "float": (int, float)}
    if shape == "any" or value is None:
        return None
    if isinstance(shape, list):
        if value in shape:
            return None
        meant = near(str(value), shape)
        remedy = f"did you mean {' or '.join(meant)}?" if meant else f"one of {', '.join(shape)}"
        return f"does not take {value!r}", remedy
    if isinstance(shape, dict):
        [(kind, inside)] = shape.items()
        shapes = [inside] * len(value) if kind == "list" and isinstance(value, list) else inside
        if not isinstance(value, list) or len(value) != len(shapes):
            expected = "a list" if kind == "list" else f"a list of {len(inside)}"
            return f"has {json.dumps(value)} instead of {expected}", "check the brackets"
        return next((fault for pair in zip(value, shapes, strict=True) if (fault := misshapen(*pair))), None)
    if shape in numbers:
        right = isinstance(value, numbers[shape]) and not isinstance(value, bool)
    else:
        right = isinstance(value, bool if shape == "bool" else str)
    return None if right else (f"has {json.dumps(value)} instead of {ARTICLES[shape]}", EXAMPLES[shape])
