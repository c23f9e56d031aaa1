"""A recipe's arguments and environment against what released engines know (`recipes/engines/*.yaml`).

The data comes from the wheels (`tools/engine_options.py`). It judges recipes whose version range holds that release;
forks have options of their own and are not judged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from rigup.documents import Loc
from rigup.engines import arguments
from rigup.errors import near
from rigup.schema import Recipe

__all__ = ["Complaint", "Release", "judge", "misshapen", "releases", "releases_of"]

DIRECTORY = Path(__file__).resolve().parent.parent / "recipes" / "engines"

# Only names with these prefixes are an engine's own.
PREFIXES = {"vllm": ("VLLM_",), "sglang": ("SGLANG_", "SGL_")}

ARTICLES = {"int": "a whole number", "float": "a number", "bool": "true or false", "text": "a text"}

# (where in the recipe, what is wrong, what to do)
Complaint = tuple[Loc, str, str]


@dataclass(frozen=True)
class Release:
    """What one release knows.

    An option is a `flag`, takes any `value`, or one of a list. `keys` are those of options that take JSON, each with
    the shape of its value: `int`, `float`, `bool`, `text`, a list to choose from, `{list: SHAPE}`,
    `{tuple: [SHAPE, ...]}` or `any`.
    """

    engine: str
    version: str
    options: Mapping[str, Literal["flag", "value"] | tuple[str, ...]]
    keys: Mapping[str, Mapping[str, Any]]
    environment: frozenset[str]

    @property
    def name(self) -> str:
        return f"{self.engine} {self.version}"


@cache
def releases(directory: Path = DIRECTORY) -> tuple[Release, ...]:
    """All releases that the catalogue has data of."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = []
    for path in sorted(directory.glob("*.yaml")):
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
        options = {name: tuple(kind) if isinstance(kind, list) else kind for name, kind in data["options"].items()}
        environment = frozenset(data["environment"])
        found.append(Release(data["engine"], data["version"], options, data["keys"], environment))
    return tuple(found)


def ordered(version: str) -> tuple[int, ...]:
    """A version for comparisons: `0.17.0` before `0.17.0.post1` before `0.17.1`."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def releases_of(recipe: Recipe) -> list[Release]:
    """The releases in a recipe's range; none for a fork."""
    if recipe.engine.fork:
        return []
    low, high = recipe.engine.min, recipe.engine.max
    return [
        each
        for each in releases()
        if each.engine == recipe.engine.name
        and (low is None or ordered(low) <= ordered(each.version))
        and (high is None or ordered(each.version) <= ordered(high))
    ]


def place(key: str) -> Loc:
    """`argv[3]` as `("argv", 3)`."""
    return tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", key))


def judge(recipe: Recipe, release: Release) -> Iterator[Complaint]:
    """What this release would say to the recipe."""
    for argument, key in arguments(recipe):
        yield from ((place(key), message, remedy) for message, remedy in _argument(argument, release))
    for name in recipe.env:
        if name.startswith(PREFIXES[release.engine]) and name not in release.environment:
            meant = near(name, release.environment)
            remedy = f"did you mean {' or '.join(meant)}?" if meant else "remove it, or set engine.max"
            yield ("env", name), f"{release.name} does not read {name}", remedy


def _argument(argument: str, release: Release) -> Iterator[tuple[str, str]]:
    name, equals, value = argument.partition("=")
    if release.engine == "vllm":
        # vLLM takes underscores too, and `--attention-config.backend`.
        name = name.replace("_", "-").split(".")[0] if name.startswith("--") else name
    known = release.options
    kind = known.get(name)
    if kind is None and name.startswith("--no-") and known.get("--" + name.removeprefix("--no-")) == "flag":
        kind = "flag"
    if kind is None:
        begun = [each for each in known if name.startswith("--") and each.startswith(name)]
        if len(begun) > 1 and release.engine == "sglang":
            yield f"{release.name} finds {name} ambiguous and exits", f"write {' or '.join(sorted(begun)[:3])}"
        else:
            meant = begun[:1] or near(name, known)
            remedy = f"did you mean {' or '.join(meant)}?" if meant else "remove it, or set engine.max"
            yield f"{release.name} has no option {name}", remedy
    elif kind == "flag" and equals:
        yield f"{name} of {release.name} takes no value", f"write {name} alone"
    elif kind != "flag" and not equals:
        yield f"{name} of {release.name} needs a value", f"{name}=VALUE"
    elif isinstance(kind, tuple) and value not in kind:
        meant = near(value, kind)
        remedy = f"did you mean {' or '.join(meant)}?" if meant else f"one of {', '.join(kind)}"
        yield f"{name} of {release.name} does not take {value!r}", remedy
    elif name in release.keys and value.startswith("{") and "." not in argument.partition("=")[0]:
        yield from _json(name, value, release)


def _json(name: str, value: str, release: Release) -> Iterator[tuple[str, str]]:
    try:
        data: Any = json.loads(value)
    except json.JSONDecodeError as error:
        yield f"{name} is no JSON: {error.msg} at character {error.pos}", "mind quotes and braces"
        return
    for key in data:
        if key not in release.keys[name]:
            meant = near(key, release.keys[name])
            remedy = f"did you mean {' or '.join(meant)}?" if meant else "remove it"
            yield f"{name} of {release.name} has no key {key!r}", remedy
        elif fault := misshapen(data[key], release.keys[name][key]):
            yield f"{key} in {name} of {release.name} {fault[0]}", fault[1]


def misshapen(value: Any, shape: Any) -> tuple[str, str] | None:
    """What is wrong with a JSON value, and the remedy; null stands for the default."""
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
            wanted = "a list" if kind == "list" else f"a list of {len(inside)}"
            return f"has {json.dumps(value)} where {wanted} is due", "mind the brackets"
        return next((fault for pair in zip(value, shapes, strict=True) if (fault := misshapen(*pair))), None)
    if shape in numbers:
        right = isinstance(value, numbers[shape]) and not isinstance(value, bool)
    else:
        right = isinstance(value, bool if shape == "bool" else str)
    return None if right else (f"has {json.dumps(value)} where {ARTICLES[shape]} is due", "")
