"""Rules about a recipe alone: contradictions, and what no host can provide."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from math import prod

from rigup.catalog.complaint import Case, Complaint, Rule
from rigup.catalog.engine_args import option
from rigup.catalog.engine_options import missing_kernels, ordered, releases_of
from rigup.catalog.fields import unpinned
from rigup.catalog.patch import IgnorePatch
from rigup.catalog.recipe import option_name

EXPERT_PARALLEL = ("--enable-expert-parallel", "-ep", "--ep-size", "--expert-parallel-size", "--ep")
MOST_STABLE = 3

# A container has only the endpoint's GPUs, and a process without one gets the endpoint's list.
VISIBLE = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
NODES = ("--nnodes", "--node-rank", "--master-addr", "--master-port", "--dist-init-addr", "--data-parallel-address")


def _agents(case: Case) -> Iterator[Complaint]:
    recipe = case.recipe
    if "agents" not in recipe.workload:
        return
    if recipe.speculation and recipe.tool_calls != "reliable":
        remedy = "take agents out of workload, or remove the speculation (vLLM 38106 and 50021 are open)"
        message = "agents need tool calls, and speculation is known to corrupt those of several steps"
        yield Complaint("recipe-agents-speculation", ("speculation",), message, remedy, advice=True)
    if recipe.tool_calls == "broken":
        message, remedy = "agents need tool calls, but they are broken here", "take agents out of workload"
        yield Complaint("recipe-agents-tool-calls", ("tool_calls",), message, remedy, advice=True)
    if recipe.tool_parser is None:
        known = case.model.parsers.get(recipe.engine.name) if case.model else None
        remedy = f"for example tool_parser: {known.tool[0]}" if known else "set tool_parser"
        yield Complaint("recipe-agents-parser", ("workload",), "agents need tool calls, but no parser is set", remedy)


def _parallel(case: Case) -> Iterator[Complaint]:
    recipe = case.recipe
    sizes = (recipe.parallel.tp, recipe.parallel.pp, recipe.parallel.dp)
    if prod(sizes) != recipe.gpus:
        spread = " x ".join(f"{name} {size}" for name, size in zip(("tp", "pp", "dp"), sizes, strict=True))
        message = f"{spread} is {prod(sizes)} GPUs, but gpus is {recipe.gpus}"
        yield Complaint("recipe-gpus", ("parallel", "tp"), message, "make them equal")
    if recipe.parallel.tp % recipe.parallel.dcp:
        yield Complaint("recipe-dcp", ("parallel", "dcp"), "does not divide tp", "use 1, 2 or 4")
    if option(recipe, *EXPERT_PARALLEL) not in (None, "1"):
        message = "expert parallelism is slower than tensor parallelism over PCIe"
        yield Complaint("recipe-expert-parallel", case.where(*EXPERT_PARALLEL), message, "remove it", advice=True)
    for index, argument in enumerate(recipe.argv):
        if (name := option_name(argument)) in NODES:
            message = f"{name} spreads an engine over hosts, but an endpoint is served by one host"
            yield Complaint("recipe-nodes", ("argv", index), message, "remove it")
    for name in VISIBLE:
        if name in recipe.env:
            message = f"{name} chooses GPUs, which the endpoint does with its `gpus`"
            remedy = "remove it, and list the GPUs under endpoints.NAME.gpus"
            yield Complaint("recipe-visible-devices", ("env", name), message, remedy)


def _speculation(case: Case) -> Iterator[Complaint]:
    recipe, speculation = case.recipe, case.recipe.speculation
    if speculation is None:
        return
    most = speculation.n if isinstance(speculation.n, int) else max(tokens for _, _, tokens in speculation.n)
    mtp = recipe.engine.name == "vllm" and speculation.method == "mtp"
    if mtp and most > MOST_STABLE and recipe.status != "superseded":
        message = f"more than {MOST_STABLE} speculated tokens were never stable"
        yield Complaint("recipe-speculation-depth", ("speculation", "n"), message, "use 2", advice=True)


def _kernels(case: Case) -> Iterator[Complaint]:
    recipe = case.recipe
    for index, argument in enumerate(recipe.argv):
        name, _, value = argument.partition("=")
        lacking = missing_kernels(recipe.engine.name).get(option_name(name), ())
        if any(fnmatchcase(value.lower(), pattern.lower()) for pattern in lacking):
            message = f"{value} has no kernels for RTX PRO 6000 Blackwell cards (SM120)"
            yield Complaint("recipe-sm120", ("argv", index), message, "remove it: the engine chooses one that works")
    packages = map(unpinned, recipe.venv.packages if recipe.venv else ())
    if recipe.engine.fork or any("b12x" in (name, *extras) for name, extras, _ in packages):
        return
    for index, argument in enumerate(recipe.argv):
        if argument.partition("=")[2].lower() == "b12x":
            remedy = "use a community image (engine.fork), or a venv with the package b12x"
            message = "no released image of this engine has the b12x kernels"
            yield Complaint("recipe-b12x", ("argv", index), message, remedy)


def _nccl(case: Case) -> Iterator[Complaint]:
    recipe = case.recipe
    if recipe.env.get("NCCL_GRAPH_FILE") is not None and recipe.gpus != 8:
        message = f"is for eight GPUs on two AMD Turin sockets, but this recipe has {recipe.gpus} GPUs"
        yield Complaint("recipe-nccl-graph", ("env", "NCCL_GRAPH_FILE"), message, "remove it")
    for name, value in recipe.env.items():
        if name.startswith("NCCL_") and not value:
            message = "is empty, which NCCL treats as an error"
            yield Complaint("recipe-nccl-empty", ("env", name), message, "remove it")


def _patches(case: Case) -> Iterator[Complaint]:
    recipe = case.recipe
    if recipe.engine.name != "sglang":
        return
    if "rope" in (option(recipe, "--json-model-override-args") or ""):
        where = case.where("--json-model-override-args")
        message = "changes no rope in SGLang (flat: no effect, nested: crash)"
        yield Complaint("recipe-rope-override", where, message, "use a patch of target yarn")
    for index, patch in enumerate(recipe.patches):
        names = patch.add if isinstance(patch, IgnorePatch) else ()
        if any(name.startswith("model.language_model.") for name in names):
            message = "SGLang has no modules below model.language_model"
            yield Complaint("recipe-ignore-patterns", ("patches", index), message, "use *.mlp.gate if it needs any")


def _vision(case: Case) -> Iterator[Complaint]:
    recipe = case.recipe
    if option(recipe, "--language-model-only") is not None and option(recipe, "--mm-encoder-tp-mode") is not None:
        message = "has no effect with --language-model-only, which leaves out the vision encoder"
        where = case.where("--mm-encoder-tp-mode")
        yield Complaint("recipe-vision-options", where, message, "remove one", advice=True)


def _versions(case: Case) -> Iterator[Complaint]:
    recipe = case.recipe
    low, high = recipe.engine.min, recipe.engine.max
    if low and high and ordered(low) > ordered(high):
        yield Complaint("recipe-engine-range", ("engine", "min"), f"{low} is above max {high}", "swap them")
    elif not releases_of(recipe):
        message = "there are no options on file for any release in this range, so the arguments are not checked"
        remedy = "`python -m tools.engines` reads them from a release's wheel"
        yield Complaint("recipe-engine-unknown", ("engine", "min" if low else "max"), message, remedy, advice=True)
    for package in recipe.venv.packages if recipe.venv else ():
        name, _, version = unpinned(package)
        outside = (low and ordered(version) < ordered(low)) or (high and ordered(version) > ordered(high))
        if name == recipe.engine.name and outside:
            message = f"{package} is outside engine.min and engine.max"
            yield Complaint("recipe-venv-version", ("venv", "packages"), message, "make them agree")


RULES: tuple[Rule, ...] = (_agents, _parallel, _speculation, _kernels, _nccl, _patches, _vision, _versions)
