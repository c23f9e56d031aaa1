"""The catalogue: recipes and checkpoints as checked data.

A recipe says how a model is served. It lies in `recipes/ID.yaml`; the checkpoints it names lie in
`recipes/checkpoints/ID.yaml`. The file's name is the id.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from rigup.documents import complaint, findings_of, read_document
from rigup.errors import Finding, InputError, RigupError, near

__all__ = ["Catalogue", "Checkpoint", "Evidence", "Patch", "Recipe", "default_catalogue", "load_catalogue"]

Int = Annotated[int, Strict()]

# What rigup itself passes to the engine, from the endpoint and the plan.
RESERVED_ARGUMENTS = ("--model", "--model-path", "--host", "--port", "--served-model-name", "--api-key")

# Levels are names: the numbers of early recipes mean something else in later NCCL versions.
NCCL_LEVELS = ("LOC", "NVL", "PIX", "PXB", "PHB", "SYS")


def _revision(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{40}", value):
        raise complaint(f"{value!r} is no commit", "40 hexadecimal digits, as the hub shows under `History`")
    return value


def _digest(value: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", value):
        raise complaint(f"{value!r} is no digest", "sha256: and 64 hexadecimal digits")
    return value


def _tag(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._/:-]*:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", value):
        raise complaint(f"{value!r} names no image with a tag", "for example vllm/vllm-openai:cu130-nightly")
    return value


def _repo(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise complaint(f"{value!r} is no hub repository", "ORGANISATION/NAME")
    return value


def _branch_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", value) or "@" in value:
        raise complaint(f"{value!r} is no branch", "for example main")
    return value


class Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Evidence(Data):
    """Where a recipe comes from. `kind` says whether the source has this very command or it was put together."""

    source: str
    kind: Literal["verbatim", "assembled"]
    says: str


class Engine(Data):
    """Which server runs in the image, and the versions (inclusive) that its arguments are meant for."""

    name: Literal["vllm", "sglang"]
    min: str | None = None
    max: str | None = None


class Image(Data):
    """A container image. Without `digest` the tag is resolved once, into the lock."""

    tag: Annotated[str, AfterValidator(_tag)]
    digest: Annotated[str, AfterValidator(_digest)] | None = None


class When(Data):
    """All conditions that are given must hold."""

    image_before: date


class Patch(Data):
    """Patterns to add to a quantized checkpoint's list of modules that are not quantized.

    It acts on `quantization_config.ignore` in config.json and `quantization.exclude_modules` in hf_quant_config.json.
    """

    target: Literal["quantization-ignore"]
    add: Annotated[tuple[str, ...], Field(min_length=1)]
    when: When | None = None
    why: str

    @model_validator(mode="after")
    def _patterns_hit(self) -> Patch:
        for pattern in self.add:
            # Markdown ate the star of `layers.*.mlp` in most copies of this patch; what is left matches nothing.
            if ".." in pattern or not pattern.strip():
                raise complaint(f"{pattern!r} matches no layer", "layers.*.mlp.gate, with the star")
            # vLLM matches substrings too: this one would also leave mlp.gate_up_proj unquantized.
            if pattern in ("mlp.gate", "*mlp.gate", "*.mlp.gate*"):
                raise complaint(f"{pattern!r} hits gate_up_proj as well", "model.language_model.layers.*.mlp.gate")
        return self


class Ready(Data):
    """When an endpoint counts as ready: this path answers 200, and the model list names the served name."""

    path: Annotated[str, Field(pattern="^/[A-Za-z0-9_/-]*$")] = "/health"
    timeout: Annotated[int, Strict(), Field(ge=10, le=86400)] | None = None


class Checkpoint(Data):
    """A hub repository, at a 40-hex revision or at a branch that the lock pins."""

    id: str
    repo: Annotated[str, AfterValidator(_repo)]
    branch: Annotated[str, AfterValidator(_branch_name)] = "main"
    revision: Annotated[str, AfterValidator(_revision)] | None = None
    quantization: str
    bytes: Annotated[int, Strict(), Field(gt=0)] | None = None
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its name in the lock."""
        return f"{self.repo}@{self.revision or self.branch}"


class Recipe(Data):
    """How a model is served. `argv` holds the engine's arguments one by one; no shell ever sees them."""

    id: str
    title: str
    status: Literal["current", "verified", "reported", "assembled", "superseded", "broken"]
    tool_calls: Literal["reliable", "usually", "broken", "unknown"]
    speed: str = ""
    evidence: Annotated[tuple[Evidence, ...], Field(min_length=1)]
    engine: Engine
    image: Image
    checkpoint: str
    served_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
    gpus: Annotated[int, Strict(), Field(ge=1, le=64)]
    vram_mib: Annotated[int, Strict(), Field(ge=1024)]
    min_driver_cuda: Annotated[str, Field(pattern=r"^\d+\.\d+$")] | None = None
    argv: tuple[str, ...]
    env: dict[Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")], str] = {}
    patches: tuple[Patch, ...] = ()
    ready: Ready = Ready()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for argument in self.argv:
            name = argument.split("=", 1)[0]
            if name in RESERVED_ARGUMENTS:
                raise complaint(f"argv holds {name}, which comes from the endpoint", "remove it")
            if "\0" in argument:
                raise complaint("argv holds a NUL character", "remove it")
        for key, value in self.env.items():
            if "\n" in value or "\0" in value:
                raise complaint(f"env.{key} holds a line break", "docker's env files have one line for each")
        level = self.env.get("NCCL_P2P_LEVEL")
        if level is not None and level not in NCCL_LEVELS:
            raise complaint(f"NCCL_P2P_LEVEL is {level!r}", f"a name: {', '.join(NCCL_LEVELS)}")
        return self


@dataclass(frozen=True)
class Catalogue:
    """All recipes and checkpoints, by id."""

    recipes: Mapping[str, Recipe]
    checkpoints: Mapping[str, Checkpoint]

    def recipe(self, name: str) -> Recipe:
        """Raises RigupError, naming the near ones, where there is no such recipe."""
        return _lookup(name, self.recipes, "recipe", "`rigup recipes` lists them")

    def checkpoint(self, name: str) -> Checkpoint:
        """Raises RigupError, naming the near ones, where there is no such checkpoint."""
        return _lookup(name, self.checkpoints, "checkpoint", "they lie in recipes/checkpoints/")


Entry = TypeVar("Entry", Recipe, Checkpoint)


def _lookup(name: str, known: Mapping[str, Entry], kind: str, where: str) -> Entry:
    if name in known:
        return known[name]
    meant = near(name, known)
    raise RigupError(f"no {kind} is named {name!r}: " + (f"did you mean {' or '.join(meant)}?" if meant else where))


def default_catalogue(root: Path | None = None) -> Catalogue:
    """The project's own catalogue: `recipes/` under `root`, by default beside this package."""
    return load_catalogue((root or Path(__file__).resolve().parent.parent) / "recipes")


def load_catalogue(*directories: Path) -> Catalogue:
    """Read every `*.yaml` in the directories and in their `checkpoints/`.

    Raises InputError with every finding of every file at once.
    """
    findings: list[Finding] = []
    recipes: dict[str, Recipe] = {}
    checkpoints: dict[str, Checkpoint] = {}
    places: dict[str, Path] = {}
    for directory in directories:
        if not directory.is_dir():
            findings.append(Finding(str(directory), None, "", "is no directory of recipes"))
        for path in sorted(directory.glob("checkpoints/*.yaml")):
            _read(path, Checkpoint, checkpoints, findings)
        for path in sorted(directory.glob("*.yaml")):
            if recipe := _read(path, Recipe, recipes, findings):
                places[recipe.id] = path
    for name, recipe in recipes.items():
        if recipe.checkpoint not in checkpoints and not findings:
            meant = near(recipe.checkpoint, checkpoints)
            remedy = f"did you mean {' or '.join(meant)}?" if meant else "they lie in checkpoints/, one file each"
            document = read_document(places[name])
            findings.append(document.finding(("checkpoint",), f"there is no checkpoint {recipe.checkpoint!r}", remedy))
    if findings:
        raise InputError(findings)
    return Catalogue(recipes, checkpoints)


def _read(path: Path, model: type[Entry], known: dict[str, Entry], findings: list[Finding]) -> Entry | None:
    try:
        document = read_document(path)
    except InputError as error:
        findings.extend(error.findings)
        return None
    try:
        entry = model.model_validate(document.data)
    except ValidationError as error:
        findings.extend(findings_of(error, model, document))
        return None
    if entry.id != path.stem:
        findings.append(document.finding(("id",), f"is {entry.id!r} in a file named {path.name}", "make them equal"))
    elif entry.id in known:
        findings.append(document.finding(("id",), f"{entry.id!r} is there already", "choose another name"))
    else:
        known[entry.id] = entry
    return entry


def image_tags(recipes: Iterable[Recipe]) -> list[str]:
    """The images of these recipes, each once, in their order."""
    return list(dict.fromkeys(recipe.image.tag for recipe in recipes))
