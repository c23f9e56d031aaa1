"""The schema of a recipe: how one model is served.

A recipe holds data only. Engine options that every recipe has to decide (parallelism, speculation, parsers) have their
own fields; `rigup.catalog.engine_args` turns them into arguments. All other options are in `argv`, one string each.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from rigup.catalog.fields import Argument, Data, EnvName, Numbers, Text, Word, unpinned
from rigup.catalog.patch import Patch
from rigup.catalog.recipe_parts import (
    Container,
    Engine,
    Evidence,
    Image,
    Parallel,
    Ready,
    Source,
    Speculation,
    Speed,
    Venv,
)
from rigup.config.need import Workload
from rigup.config.types import ServedName
from rigup.config.yaml_file import complaint
from rigup.errors import RigupError

# Options that rigup passes to the engine itself, from the endpoint and the plan.
RESERVED_ARGUMENTS = ("--model", "--model-path", "--host", "--port", "--served-model-name", "--api-key")

# Secrets, which rigup passes in files that only root can read.
SECRETS = ("VLLM_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

# Options that have a field of their own, and the field's name, so that each is written in one place only.
FIELDS_OF_OPTIONS = {
    "--tensor-parallel-size": "parallel.tp",
    "-tp": "parallel.tp",
    "-pp": "parallel.pp",
    "-dp": "parallel.dp",
    "-dcp": "parallel.dcp",
    "--tp": "parallel.tp",
    "--tp-size": "parallel.tp",
    "--pipeline-parallel-size": "parallel.pp",
    "--pp-size": "parallel.pp",
    "--data-parallel-size": "parallel.dp",
    "--dp-size": "parallel.dp",
    "--decode-context-parallel-size": "parallel.dcp",
    "--dcp-size": "parallel.dcp",
    "--tool-call-parser": "tool_parser",
    "--enable-auto-tool-choice": "tool_parser",
    "--reasoning-parser": "reasoning_parser",
    "--speculative-config": "speculation",
    "-sc": "speculation",
    "--speculative-algo": "speculation",
    "--speculative-algorithm": "speculation",
    "--speculative-num-steps": "speculation.steps",
    "--speculative-eagle-topk": "speculation.topk",
    "--speculative-num-draft-tokens": "speculation.n",
    "--speculative-draft-model": "speculation.model",
    "--speculative-draft-model-path": "speculation.model",
}

# The fork whose image starts vLLM through a launcher, and the launcher's own options for speculation.
LAUNCHER = "local-inference-lab"
FIELDS_OF_LAUNCHER = {
    "--mode": "speculation",
    "--draft-tokens": "speculation.n",
    "--draft-model": "speculation.model",
}

# Options that a patch passes to the engine.
OPTIONS_OF_PATCHES = {"yarn": "--hf-overrides", "chat-template": "--chat-template"}

# SGLang's methods that draft a whole block at once (0.5.23).
WHOLE_BLOCKS = ("DFLASH", "DSPARK")

# What someone measured.
MEASURED = ("verified", "current", "reported")

# Names only: the numbers in early recipes mean something else in later NCCL versions.
NCCL_LEVELS = ("LOC", "NVL", "PIX", "PXB", "PHB", "SYS")


def option_name(argument: str) -> str:
    """Return `--max-model-len` for `--max_model_len=4096`: vLLM treats both spellings alike."""
    name = argument.split("=", 1)[0]
    return name.replace("_", "-") if name.startswith("--") else name


class Recipe(Data):
    """How a model is served. `argv` holds the engine's other arguments, one string each; no shell ever sees them.

    `findings` are those of `rigup check` that the catalog keeps the recipe with: by id, and why.
    """

    id: Word
    title: str
    extends: Word | None = None
    workload: Annotated[tuple[Workload, ...], Field(min_length=1)]
    status: Literal["current", "verified", "reported", "assembled", "superseded", "broken"]
    superseded_by: Word | None = None
    tool_calls: Literal["reliable", "usually", "broken", "unknown"]
    evidence: Annotated[tuple[Evidence, ...], Field(min_length=1)]
    caveats: tuple[str, ...] = ()
    findings: dict[Word, Text] = Field(default_factory=dict)
    not_deployable: str | None = None
    engine: Engine
    image: Image | None = None
    venv: Venv | None = None
    source: Source | None = None
    checkpoint: Word
    served_name: ServedName
    gpus: Annotated[int, Strict(), Field(ge=1, le=64)]
    vram_mib: Annotated[int, Strict(), Field(ge=1024)]
    capability: Numbers = "12.0"
    min_driver_cuda: Numbers | None = None
    parallel: Parallel = Parallel()
    speculation: Speculation | None = None
    tool_parser: Word | None = None
    reasoning_parser: Word | None = None
    argv: tuple[Argument, ...]
    env: dict[EnvName, Text] = Field(default_factory=dict)
    container: Container = Container()
    patches: tuple[Patch, ...] = ()
    ready: Ready = Ready()

    @property
    def speeds(self) -> list[Speed]:
        """All measurements, in the order of the evidence."""
        return [speed for evidence in self.evidence for speed in evidence.speeds]

    @property
    def speed(self) -> str:
        """The first measurement, for a table."""
        return str(self.speeds[0]) if self.speeds else "not measured"

    @property
    def quoted(self) -> bool:
        """Whether a source prints this command, apart from the listed changes."""
        return any(evidence.kind == "verbatim" for evidence in self.evidence)

    @property
    def engine_version(self) -> str | None:
        """The lowest engine version that the recipe can run with; None if the recipe does not say."""
        for name, _, version in map(unpinned, self.venv.packages if self.venv else ()):
            if name == self.engine.name:
                return version
        return self.engine.min

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The checkpoint to serve, and then that of the drafter, if it has one of its own."""
        drafter = self.speculation.model if self.speculation else None
        return (self.checkpoint, *([drafter] if drafter else []))

    def container_image(self) -> Image:
        """Return the image. Raises RigupError for a recipe without a container."""
        if self.image is None:
            raise RigupError(f"recipe {self.id} runs without a container", "choose a recipe with an image")
        return self.image

    @model_validator(mode="after")
    def _arguments_are_plain(self) -> Recipe:
        seen: set[str] = set()
        # vLLM also accepts the parts of a JSON option one by one: `--speculative-config.method=mtp`.
        whole = {option_name(argument).split(".")[0] for argument in self.argv}
        fields = FIELDS_OF_OPTIONS | (FIELDS_OF_LAUNCHER if self.engine.fork == LAUNCHER else {})
        for argument in self.argv:
            name = option_name(argument)
            if name in RESERVED_ARGUMENTS:
                raise complaint(f"argv has {name}, which comes from the endpoint", "remove it")
            if field := fields.get(name.split(".")[0]):
                raise complaint(f"argv has {name}, which has its own key", f"write it as {field}")
            if not argument.startswith("-"):
                raise complaint(f"argv has {argument!r}, which is not an option", "write one string: --option=value")
            if name in seen:
                raise complaint(f"argv has {name} twice", "keep one")
            seen.add(name)
        for patch in self.patches:
            if (owned := OPTIONS_OF_PATCHES.get(patch.target)) and owned in whole:
                raise complaint(f"argv has {owned}, which the {patch.target} patch also sets", "keep one")
        for key, value in self.env.items():
            if "\n" in value or "\r" in value or "\0" in value:
                raise complaint(f"env.{key} contains a line break", "use one line: Docker's env files allow no more")
            if key in SECRETS:
                raise complaint(f"env has {key}, a secret that anyone could read here", "remove it")
        level = self.env.get("NCCL_P2P_LEVEL")
        if level is not None and level not in NCCL_LEVELS:
            raise complaint(f"NCCL_P2P_LEVEL is {level!r}", f"use one of {', '.join(NCCL_LEVELS)}")
        return self

    @model_validator(mode="after")
    def _status_is_backed(self) -> Recipe:
        installs = [name for name in ("image", "venv", "source") if getattr(self, name) is not None]
        if len(installs) != 1:
            found = " and ".join(installs) or "nothing"
            raise complaint(f"has {found} to install the engine from", "use one of image, venv and source")
        if (self.status == "superseded") != (self.superseded_by is not None):
            with_or_without = "with" if self.superseded_by else "without"
            raise complaint(
                f"status is {self.status} {with_or_without} superseded_by", "status superseded needs superseded_by"
            )
        if self.status == "broken" and not self.caveats:
            raise complaint("status is broken, but nothing says why", "add the reason to caveats")
        if self.status in MEASURED and not self.speeds:
            raise complaint(
                f"status is {self.status}, but no evidence has a measured figure",
                "add it as speeds: [{tokens: 64}] to the evidence, or use status assembled",
            )
        if self.status == "assembled" and self.quoted:
            raise complaint("status is assembled, but the evidence is of kind verbatim", "correct one of the two")
        if self.speculation:
            sglang = self.engine.name == "sglang"
            both = self.speculation.steps is not None and self.speculation.topk is not None
            neither = self.speculation.steps is None and self.speculation.topk is None
            stepless = not sglang or self.speculation.method.upper() in WHOLE_BLOCKS
            if (stepless and not neither) or (not stepless and not both):
                raise complaint(
                    f"speculation with {self.engine.name} {'does not take' if stepless else 'needs'} steps and topk",
                    "vLLM takes method and n, and so does SGLang with DFLASH and DSPARK; SGLang takes method, n, steps "
                    "and topk with all others",
                )
            if sglang and not isinstance(self.speculation.n, int):
                raise complaint("SGLang takes a single number of draft tokens", "for example speculation.n: 4")
        return self
