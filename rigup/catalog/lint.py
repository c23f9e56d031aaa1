"""Find what is wrong with a recipe although its schema is satisfied: contradictions, misfits, refused arguments.

Every rule looks at one recipe and yields complaints. A finding names the file and line where the value is written,
also if a variant inherits it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod

from rigup.catalog.checkpoint import Checkpoint
from rigup.catalog.engine_args import option
from rigup.catalog.engine_options import Complaint, check_options, ordered, releases_of
from rigup.catalog.fields import unpinned
from rigup.catalog.loader import Catalog
from rigup.catalog.memory import LENGTH_OPTIONS, asked_context, fit
from rigup.catalog.patch import IgnorePatch, YarnPatch
from rigup.catalog.recipe import Recipe, option_name
from rigup.config.yaml_file import Loc
from rigup.distros.table import short_of_cuda
from rigup.errors import Finding

NATIVE_CONTEXT = 262144
LONG_CONTEXT = {"vllm": "VLLM_ALLOW_LONG_MAX_MODEL_LEN", "sglang": "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"}
EXPERT_PARALLEL = ("--enable-expert-parallel", "-ep", "--ep-size", "--expert-parallel-size", "--ep")
MOST_STABLE = 3

Rule = Callable[[Recipe, Checkpoint], Iterator[Complaint]]


@dataclass(frozen=True)
class Hardware:
    """The hardware to run on, as far as it is given: GPUs, the memory of each in MiB, the driver branch."""

    gpus: int | None = None
    vram_mib: int | None = None
    driver_branch: int | None = None


def check_catalog(
    catalog: Catalog, names: Iterable[str] | None = None, hardware: Hardware = Hardware()
) -> list[Finding]:
    """Return the findings about the named recipes, by default all, except those marked broken. Raises RigupError."""
    recipes = [catalog.recipe(name) for name in (catalog.recipes if names is None else names)]
    return [
        finding
        for recipe in recipes
        if recipe.status != "broken"
        for finding in check_recipe(catalog, recipe, hardware)
    ]


def check_recipe(catalog: Catalog, recipe: Recipe, hardware: Hardware = Hardware()) -> list[Finding]:
    """Return what is wrong with a recipe, and with running it on that hardware."""
    checkpoint = catalog.checkpoint(recipe.checkpoint)
    complaints = [complaint for rule in RULES for complaint in rule(recipe, checkpoint)]
    for release in releases_of(recipe):
        complaints += check_options(recipe, release)
    complaints += _misfits(recipe, checkpoint, hardware)
    return [catalog.merged[recipe.id].finding(*complaint) for complaint in dict.fromkeys(complaints)]


def _misfits(recipe: Recipe, checkpoint: Checkpoint, hardware: Hardware) -> Iterator[Complaint]:
    gpus, branch = hardware.gpus, hardware.driver_branch
    if gpus is not None and recipe.gpus > gpus:
        yield ("gpus",), f"needs {recipe.gpus} GPUs, but there are {gpus}", "choose a recipe for fewer GPUs"
    if hardware.vram_mib:
        yield from _size(recipe, checkpoint, hardware.vram_mib)
    floor = _cuda_floor(recipe)
    if branch and floor and (short := short_of_cuda(branch, floor[1])):
        brings, able = short
        remedy = f"use driver branch {' or '.join(map(str, able))}" if able else "choose an older image"
        yield floor[0], f"needs CUDA {floor[1]}, but driver branch {branch} has CUDA {brings}", remedy


def _cuda_floor(recipe: Recipe) -> tuple[Loc, str] | None:
    """Return the CUDA version that the driver must have, and where the recipe says so: a key, or `cu130` in a tag."""
    if recipe.min_driver_cuda:
        return ("min_driver_cuda",), recipe.min_driver_cuda
    named = re.search(r"(?<![a-z0-9])cu(\d\d)(\d)?(?!\d)", recipe.image.tag) if recipe.image else None
    return (("image", "tag"), f"{named[1]}.{named[2] or 0}") if named else None


def _where(recipe: Recipe, *names: str) -> Loc:
    """Return the place of the first of these options in `argv`."""
    for index, argument in enumerate(recipe.argv):
        if option_name(argument) in names:
            return ("argv", index)
    return ("argv",)


def _agents(recipe: Recipe, checkpoint: Checkpoint) -> Iterator[Complaint]:
    if "agents" not in recipe.workload:
        return
    if recipe.speculation and recipe.tool_calls != "reliable":
        remedy = "take agents out of workload, or remove the speculation (vLLM 38106 and 50021 are open)"
        message = "agents need tool calls, and speculation is known to corrupt those of several steps"
        yield ("speculation",), message, remedy
    if recipe.tool_calls == "broken":
        yield ("tool_calls",), "agents need tool calls, but they are broken here", "take agents out of workload"
    if recipe.tool_parser is None:
        yield ("workload",), "agents need tool calls, but no parser is set", "for example tool_parser: qwen3_coder"


def _parallel(recipe: Recipe, checkpoint: Checkpoint) -> Iterator[Complaint]:
    sizes = (recipe.parallel.tp, recipe.parallel.pp, recipe.parallel.dp)
    if prod(sizes) != recipe.gpus:
        spread = " x ".join(f"{name} {size}" for name, size in zip(("tp", "pp", "dp"), sizes, strict=True))
        yield ("parallel", "tp"), f"{spread} is {prod(sizes)} GPUs, but gpus is {recipe.gpus}", "make them equal"
    if recipe.parallel.tp % recipe.parallel.dcp:
        yield ("parallel", "dcp"), "does not divide tp", "use 1, 2 or 4"
    if option(recipe, *EXPERT_PARALLEL) not in (None, "1"):
        where = _where(recipe, *EXPERT_PARALLEL)
        yield where, "expert parallelism is slower than tensor parallelism over PCIe", "remove it"


def _speculation(recipe: Recipe, checkpoint: Checkpoint) -> Iterator[Complaint]:
    speculation = recipe.speculation
    if speculation is None:
        return
    if not checkpoint.drafter:
        yield ("speculation",), f"the drafter does not fit the weights of {checkpoint.repo}", "use speculation: null"
    most = speculation.n if isinstance(speculation.n, int) else max(tokens for _, _, tokens in speculation.n)
    mtp = recipe.engine.name == "vllm" and speculation.method == "mtp"
    if mtp and most > MOST_STABLE and recipe.status != "superseded":
        yield ("speculation", "n"), f"more than {MOST_STABLE} speculated tokens were never stable", "use 2"


def _kernels(recipe: Recipe, checkpoint: Checkpoint) -> Iterator[Complaint]:
    packages = map(unpinned, recipe.venv.packages if recipe.venv else ())
    if recipe.engine.fork or any("b12x" in (name, *extras) for name, extras, _ in packages):
        return
    for index, argument in enumerate(recipe.argv):
        if argument.partition("=")[2].lower() == "b12x":
            remedy = "use a community image (engine.fork), or a venv with the package b12x"
            yield ("argv", index), "no released image of this engine has the b12x kernels", remedy


def _nccl(recipe: Recipe, checkpoint: Checkpoint) -> Iterator[Complaint]:
    graph = recipe.env.get("NCCL_GRAPH_FILE")
    if graph is not None and recipe.gpus != 8:
        why = "is for eight GPUs on two AMD Turin sockets"
        yield ("env", "NCCL_GRAPH_FILE"), f"{why}, but this recipe has {recipe.gpus} GPUs", "remove it"
    for name, value in recipe.env.items():
        if name.startswith("NCCL_") and not value:
            yield ("env", name), "is empty, which NCCL treats as an error", "remove it"


def _context(recipe: Recipe, checkpoint: Checkpoint) -> Iterator[Complaint]:
    length = option(recipe, *LENGTH_OPTIONS)
    variable = LONG_CONTEXT[recipe.engine.name]
    tokens = asked_context(recipe) or 0
    long = tokens > NATIVE_CONTEXT
    if long and checkpoint.model.startswith("Qwen3.5") and recipe.env.get(variable) != "1":
        yield (
            _where(recipe, *LENGTH_OPTIONS),
            f"exceeds the native {NATIVE_CONTEXT} tokens",
            f'allow it with env: {{{variable}: "1"}}',
        )
    for index, patch in enumerate(recipe.patches):
        if isinstance(patch, YarnPatch) and tokens > patch.factor * patch.tokens:
            reach = f"{patch.factor:g} x {patch.tokens} tokens are {patch.factor * patch.tokens:.0f}"
            yield ("patches", index, "factor"), f"{reach}, but the context is {length}", "use a higher factor"
    if recipe.engine.name == "sglang" and option(recipe, "--json-model-override-args") is not None:
        where = _where(recipe, "--json-model-override-args")
        yield where, "changes no rope in SGLang (flat: no effect, nested: crash)", "use a patch of target yarn"


def _quantization(recipe: Recipe, checkpoint: Checkpoint) -> Iterator[Complaint]:
    named = option(recipe, "--quantization")
    where = _where(recipe, "--quantization")
    if named == "modelopt_fp4" and checkpoint.quantization.startswith("modelopt_mixed"):
        yield where, f"{checkpoint.repo} has mixed precision", "use --quantization=modelopt_mixed"
    if named is not None and checkpoint.quantization.startswith("AWQ"):
        yield where, f"the config of {checkpoint.repo} already says how it is quantized", "remove it"
    cache = option(recipe, "--kv-cache-dtype")
    if cache and "fp4" in cache and not recipe.engine.fork:
        yield _where(recipe, "--kv-cache-dtype"), "there are no FP4 KV cache kernels for these cards", "use fp8"
    for index, patch in enumerate(recipe.patches):
        names = patch.add if isinstance(patch, IgnorePatch) else ()
        if recipe.engine.name == "sglang" and any(name.startswith("model.language_model.") for name in names):
            message = "SGLang has no modules below model.language_model"
            yield ("patches", index), message, "use *.mlp.gate if it needs any"


def _vision(recipe: Recipe, checkpoint: Checkpoint) -> Iterator[Complaint]:
    if option(recipe, "--language-model-only") is not None and option(recipe, "--mm-encoder-tp-mode") is not None:
        where = _where(recipe, "--mm-encoder-tp-mode")
        yield where, "has no effect with --language-model-only, which leaves out the vision encoder", "remove one"


def _versions(recipe: Recipe, checkpoint: Checkpoint) -> Iterator[Complaint]:
    low, high = recipe.engine.min, recipe.engine.max
    if low and high and ordered(low) > ordered(high):
        yield ("engine", "min"), f"{low} is above max {high}", "swap them"
    elif not releases_of(recipe):
        message = "there are no options on file for any release in this range, so the arguments are not checked"
        yield ("engine", "min" if low else "max"), message, "tools/engine_options.py reads them from a release's wheel"
    for package in recipe.venv.packages if recipe.venv else ():
        name, _, version = unpinned(package)
        if name == recipe.engine.name:
            outside = (low and ordered(version) < ordered(low)) or (high and ordered(version) > ordered(high))
            if outside:
                yield ("venv", "packages"), f"{package} is outside engine.min and engine.max", "make them agree"


def _size(recipe: Recipe, checkpoint: Checkpoint, vram_mib: int | None = None) -> Iterator[Complaint]:
    estimate = fit(recipe, checkpoint, vram_mib)
    if estimate and estimate.impossible:
        yield ("gpus",), f"does not fit: {estimate}", "use more GPUs, a smaller checkpoint or a shorter context"


def _parsers(recipe: Recipe, checkpoint: Checkpoint) -> Iterator[Complaint]:
    if recipe.tool_parser == "qwen35_coder":
        yield ("tool_parser",), "qwen35_coder never shipped (vLLM pull request 35347 was closed)", "use qwen3_coder"


RULES: tuple[Rule, ...] = (
    _agents,
    _parallel,
    _speculation,
    _kernels,
    _nccl,
    _context,
    _quantization,
    _vision,
    _versions,
    _size,
    _parsers,
)
