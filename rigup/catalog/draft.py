"""Draft a recipe for a checkpoint that nobody described: each line with its reason and source. Pure.

What is chosen comes from the checkpoint's small files, the options of the newest release on file, `recipes/parsers/`
and what the catalog knows of the model. `rigup new-recipe` reads the files and writes the draft.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rigup.catalog.chat_template import takes_two_system_messages
from rigup.catalog.checkpoint import Checkpoint
from rigup.catalog.draft_fit import SHARE, VRAM_MIB, Spread, spread
from rigup.catalog.draft_source import Published
from rigup.catalog.draft_text import Line, checkpoint_text, model_text, recipe_text
from rigup.catalog.engine_options import Release, newest
from rigup.catalog.loader import Catalog
from rigup.catalog.model import Model
from rigup.catalog.parsers import Chosen, parsers_of
from rigup.catalog.recipe import WHOLE_BLOCKS
from rigup.config.need import EngineName, Workload
from rigup.errors import RigupError
from rigup.fit.memory import Overhead

IMAGES: Mapping[EngineName, tuple[str, tuple[str, ...]]] = {
    "vllm": ("vllm/vllm-openai:v{}", ()),
    "sglang": ("lmsysorg/sglang:v{}", ("python3", "-m", "sglang.launch_server")),
}
# Tokens that a drafter proposes unless its configuration says how many.
MTP_TOKENS, USUAL_TOKENS = 2, 3
MANY = ("batch", "benchmark")
SERVES: Mapping[Workload, tuple[Workload, ...]] = {
    "agents": ("agents", "chat", "code"),
    "chat": ("chat", "code"),
    "code": ("code", "chat"),
    "batch": ("batch",),
    "benchmark": ("benchmark",),
}


@dataclass(frozen=True)
class Wish:
    """What the user asked for: the name of the recipe, what for, how many GPUs, a drafter, and the day."""

    name: str
    workload: Workload
    day: str
    gpus: int | None = None
    drafter: Published | None = None


@dataclass(frozen=True)
class Draft:
    """Files to write, by path below the directory of recipes, what is not known, and what was decided."""

    files: dict[str, str]
    unknown: tuple[str, ...]
    recipe: dict[str, Any]


def draft(catalog: Catalog, published: Published, wish: Wish) -> Draft:
    """Return the draft. Raises RigupError, with what to do instead, for what cannot be served."""
    _refuse_drafter(published, wish)
    release = _release(published)
    known = next((each for each in catalog.checkpoints.values() if each.repo == published.repo), None)
    model = _model(catalog, published, known)
    return _Drafting(catalog, published, wish, release, known, model).result()


def _refuse_drafter(published: Published, wish: Wish) -> None:
    if published.method:
        message = f"{published.repo} is a drafter ({published.architecture}), which nobody can chat with"
        raise RigupError(message, f"`rigup new-recipe REPO --drafter {published.repo}`, with the model it drafts for")
    if wish.drafter and not wish.drafter.method:
        message = f"{wish.drafter.repo} is not a drafter of a known kind ({wish.drafter.architecture})"
        raise RigupError(message, "name a repository with EAGLE3, DFlash or DSpark")
    if wish.drafter and wish.drafter.weights is None:
        raise RigupError(f"{wish.drafter.repo} has no weights in safetensors", "use another drafter")


def _release(published: Published) -> Release:
    """Return the newest release on file that serves the checkpoint, vLLM's if both engines do."""
    vllm, sglang = newest("vllm"), newest("sglang")
    serving = [each for each in (vllm, sglang) if published.architecture in each.architectures]
    if not serving:
        raise RigupError(
            f"neither {vllm.name} nor {sglang.name} serves {published.architecture}",
            "use a community image that does, with a recipe written by hand, or read a newer release's options with "
            "`python -m tools.engines`",
        )
    method = published.quantized.method
    able = [each for each in serving if method is None or {method, f"auto_{method}"} & each.quantization]
    if not able:
        raise RigupError(
            f"{serving[0].name} does not read weights of the kind {method}",
            "use another upload of the model, such as FP8 or NVFP4",
        )
    return able[0]


def _model(catalog: Catalog, published: Published, known: Checkpoint | None) -> Model | None:
    """Return what the catalog knows of the model: of this upload, or of another one of the same name."""
    if known:
        return catalog.models.get(known.model)
    named = [each for id, each in catalog.models.items() if id.lower() == published.model.lower()]
    return next((each for each in named if each.architecture in (None, published.architecture)), None)


class _Drafting:
    """One draft: its lines so far, and what turned out not to be known."""

    def __init__(
        self,
        catalog: Catalog,
        published: Published,
        wish: Wish,
        release: Release,
        known: Checkpoint | None,
        model: Model | None,
    ):
        self.catalog, self.published, self.wish = catalog, published, wish
        self.release, self.known, self.model = release, known, model
        self.engine: EngineName = "vllm" if release.engine == "vllm" else "sglang"
        self.unknown = ["whether it works: nobody is known to have started it, and nothing was measured"]
        self.files: dict[str, str] = {}
        self.recipe: dict[str, Any] = {}
        self.lines: list[Line] = []

    def add(self, key: str, value: Any, why: str) -> None:
        """Decide one key of the recipe."""
        self.recipe[key] = value
        self.lines.append(Line(key, value, why))

    def result(self) -> Draft:
        published, wish = self.published, self.wish
        checkpoint = self.known.id if self.known else self.free_id(wish.name, published)
        speculation, why_speculation, drafts = self.speculation()
        sequences = 256 if wish.workload in MANY else 128
        overhead = self.model.overhead if self.model else None
        chosen = spread(
            published,
            wish.gpus,
            drafts=drafts,
            drafter=wish.drafter.shape if wish.drafter and drafts else None,
            overhead=Overhead(overhead.gib, overhead.error) if overhead else None,
            sequences=sequences,
        )
        self.add("workload", list(SERVES[wish.workload]), f"asked for with --for {wish.workload}")
        version = self.release.version
        self.add(
            "engine",
            {"name": self.engine, "min": version},
            f"the newest release on file, and it serves {published.architecture} "
            f"(recipes/engines/{self.engine}-{version}.yaml)",
        )
        tag, command = IMAGES[self.engine]
        image = {"tag": tag.format(version), **({"command": list(command)} if command else {})}
        self.add("image", image, "the release's own image; the lock pins its digest")
        self.unknown.append(f"whether the tag {image['tag']} exists, and its CUDA version: `rigup lock` tells")
        self.add("checkpoint", checkpoint, f"{published.repo}, {published.quantized.name}")
        self.add("served_name", published.name, "the repository's name")
        self.add("gpus", chosen.gpus, chosen.why["gpus"])
        self.add("vram_mib", VRAM_MIB, "RTX PRO 6000 Blackwell")
        parallel = {name: size for name, size in (("tp", chosen.split.tp), ("pp", chosen.split.pp)) if size > 1}
        if parallel:
            self.add("parallel", parallel, f"{chosen.why['parallel']} ({published.source})")
        self.parsers()
        if speculation:
            self.add("speculation", speculation, why_speculation)
        else:
            self.lines.append(Line("speculation", None, why_speculation))
        self.arguments(chosen)
        self.environment(chosen)
        self.patches()
        self.doubts(chosen)
        self.own_files(checkpoint, speculation)
        self.files[f"{wish.name}.yaml"] = recipe_text(published, wish.name, wish.day, self.lines, self.unknown)
        return Draft(self.files, tuple(self.unknown), self.recipe)

    def speculation(self) -> tuple[dict[str, Any] | None, str, int]:
        """Return the key of the recipe, the reason, and how many tokens are drafted."""
        published, wish = self.published, self.wish
        if wish.drafter:
            return self.external(wish.drafter)
        if wish.workload == "agents":
            return None, "speculation is known to corrupt tool calls of several steps (vLLM 38106 and 50021)", 0
        drafters = self.model.drafters if self.model else None
        if drafters is not None and "mtp" not in drafters:
            instead = f" but {' and '.join(drafters)}" if drafters else ""
            return None, f"recipes/models/{self.model_id}.yaml knows no MTP layer{instead}", 0
        if not published.mtp:
            others = [each.repo for each in self.catalog.checkpoints.values() if each.drafts_for == self.model_id]
            hint = f"; the catalog has {', '.join(others)}, for --drafter" if others else ""
            return None, f"its index names no tensors of an MTP layer{hint}", 0
        why = f"its index names {published.mtp} tensors of an MTP layer; 2 helped also under load (recipes/README.md)"
        if self.engine == "sglang":
            return {"method": "NEXTN", "n": MTP_TOKENS + 1, "steps": MTP_TOKENS, "topk": 1}, why, MTP_TOKENS + 1
        return {"method": "mtp", "n": MTP_TOKENS}, why, MTP_TOKENS

    def free_id(self, name: str, published: Published) -> str:
        """Return an id for a checkpoint that no other one has."""
        taken = {*self.catalog.checkpoints, *(id for kind, id in self.catalog.broken if kind == "checkpoint")}
        owned = published.repo.replace("/", "-").lower()
        return next((each for each in (name, owned) if each not in taken), f"{owned}-{published.commit[:12]}")

    def external(self, drafter: Published) -> tuple[dict[str, Any], str, int]:
        method = str(drafter.method)
        block = drafter.number("block_size")
        tokens = block - 1 if block and block > 1 else USUAL_TOKENS
        said = f"its block has {block} tokens, the first of which is given" if block else "the usual number"
        known = next((each for each in self.catalog.checkpoints.values() if each.repo == drafter.repo), None)
        name = known.id if known else self.free_id(f"{self.wish.name}-drafter", drafter)
        if not known:
            self.files[f"checkpoints/{name}.yaml"] = checkpoint_text(drafter, name, drafter.name, self.model_id)
        why = f"asked for with --drafter {drafter.repo} ({drafter.architecture}); {said}"
        self.unknown.append(f"how many tokens of {drafter.repo} are accepted")
        found: dict[str, Any] = {"method": method, "n": tokens, "model": name}
        if self.engine == "sglang":
            steps = {} if method.upper() in WHOLE_BLOCKS else {"steps": tokens, "topk": 1}
            found = {**found, "method": method.upper(), "n": tokens + 1, **steps}
        return found, why, tokens

    @property
    def model_id(self) -> str:
        """The name of the model in the catalog, or the one that it gets."""
        return self.known.model if self.known else self.model.id if self.model else self.published.model

    @property
    def chosen_parsers(self) -> Chosen | None:
        """The parsers, if the release has them."""
        found = parsers_of(self.published, self.model, self.engine)
        options = self.release.options
        for option, name in (
            ("--tool-call-parser", found and found.tool),
            ("--reasoning-parser", found and found.reasoning),
        ):
            kind = options.get(option)
            if name and isinstance(kind, tuple) and name not in kind:
                return None
        return found

    def parsers(self) -> None:
        found = self.chosen_parsers
        if found is None or not found.tool:
            self.unknown.append(f"which parser reads the tool calls of {self.published.architecture}: set tool_parser")
        else:
            self.add("tool_parser", found.tool, found.why)
        if found is None or not found.reasoning:
            self.unknown.append("whether it reasons before it answers; if it does, set reasoning_parser")
        else:
            self.add("reasoning_parser", found.reasoning, found.why)

    def arguments(self, chosen: Spread) -> None:
        vllm, published = self.engine == "vllm", self.published
        names = ("--max-model-len", "--max-num-seqs", "--gpu-memory-utilization")
        context, sequences, share = (
            names if vllm else ("--context-length", "--max-running-requests", "--mem-fraction-static")
        )
        found = [
            (f"{context}={chosen.context}", f"{chosen.why['context']} ({published.source})"),
            (f"{sequences}={chosen.sequences}", chosen.why["sequences"]),
            (
                f"{share}={SHARE:.2f}",
                "the part that the estimate counts with; the default of the engines is about this",
            ),
        ]
        if chosen.cache.dtype == "fp8" and not published.has_scales:
            dtype = "fp8" if vllm else "fp8_e4m3"
            found.append((f"--kv-cache-dtype={dtype}", "with 16 bits this context would not certainly fit"))
            self.unknown.append("how much accuracy the cache in FP8 costs: the checkpoint brings no scales for it")
        if published.has_code:
            found.append(
                (
                    "--trust-remote-code",
                    f"its configuration or tokenizer is code of the repository ({published.source})",
                )
            )
        if vllm and published.images and chosen.split.tp > 1:
            found.append(
                (
                    "--mm-encoder-tp-mode=data",
                    "the vision encoder is small: each GPU keeps it whole (vllm-project/recipes)",
                )
            )
        self.lines += [Line("argv", argument, why) for argument, why in found]
        self.recipe["argv"] = [argument for argument, _ in found]

    def environment(self, chosen: Spread) -> None:
        if self.engine == "vllm" and chosen.gpus > 1:
            common = "as the catalog's recipes for several GPUs (recipes/vllm-nvfp4-cu130.yaml)"
            self.add(
                "env", {"NCCL_IB_DISABLE": "1", "OMP_NUM_THREADS": "8", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}, common
            )

    def patches(self) -> None:
        template = self.published.template
        if template is None:
            self.unknown.append("its chat template, which is not among its files")
        elif self.wish.workload == "agents" and not takes_two_system_messages(template):
            why = "OpenCode sends two system messages, and this template does not pass on both"
            self.add(
                "patches", [{"target": "chat-template", "system": "merge", "why": why}], "rendered with two of them"
            )

    def doubts(self, chosen: Spread) -> None:
        estimate, shape = chosen.estimate, self.published.shape
        if shape.unknown:
            self.unknown.append(f"how many sequences fit: {shape.unknown}")
        if self.model is None or self.model.overhead is None:
            self.unknown.append(
                f"what the engine needs besides weights and cache: counted as {estimate.overhead:.1f} GiB, "
                f"±{estimate.error:.0f} GiB"
            )
        if shape.latent:
            self.unknown.append(
                "which attention backend serves its latent attention on these cards: the engine chooses"
            )
        served = [each.id for each in self.catalog.recipes.values() if self._is_same(each.checkpoint)]
        if served:
            self.unknown.append(f"more than others do: the catalog has {', '.join(sorted(served)[:4])} for this model")

    def _is_same(self, checkpoint: str) -> bool:
        found = self.catalog.checkpoints.get(checkpoint)
        return found is not None and found.model == self.model_id

    def own_files(self, checkpoint: str, speculation: dict[str, Any] | None) -> None:
        """Describe the checkpoint and the model for the catalog, unless it has them."""
        if self.known is None:
            text = checkpoint_text(self.published, checkpoint, self.model_id, None)
            self.files[f"checkpoints/{checkpoint}.yaml"] = text
        if self.model is None and self.model_id not in self.catalog.models:
            drafters = ["mtp"] if self.published.mtp else []
            parsers = self.chosen_parsers
            self.files[f"models/{self.model_id}.yaml"] = model_text(
                self.published, self.model_id, self.engine, parsers, drafters
            )
