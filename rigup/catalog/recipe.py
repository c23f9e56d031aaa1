"""What a recipe and a checkpoint are made of: the catalog's schema.

A recipe holds data only. Options of the engine that every recipe decides about (parallelism, speculation, parsers) are
fields of their own; `rigup.catalog.engine_args` writes them as the engine's arguments. All others stand in `argv`, one
string each.
Its patches are `rigup.catalog.patch`, its words `rigup.catalog.fields`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from rigup.catalog.fields import (
    Argument,
    Branch,
    Data,
    Day,
    Digest,
    EnvName,
    Inside,
    Int,
    Pinned,
    PythonVersion,
    Repo,
    Revision,
    Tag,
    Version,
    Word,
    unpinned,
)
from rigup.catalog.patch import Patch
from rigup.config.need import EngineName, Workload
from rigup.config.yaml_file import complaint
from rigup.errors import RigupError

__all__ = [
    "LAUNCHER",
    "NCCL_LEVELS",
    "Checkpoint",
    "Container",
    "Engine",
    "Evidence",
    "Image",
    "Parallel",
    "Ready",
    "Recipe",
    "Source",
    "Speculation",
    "Speed",
    "Venv",
    "option_name",
]


# What rigup itself passes to the engine, from the endpoint and the plan.
RESERVED_ARGUMENTS = ("--model", "--model-path", "--host", "--port", "--served-model-name", "--api-key")

# What rigup hands over where nobody else can read it.
SECRETS = ("VLLM_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

# What has a field of its own, and the field's name: written in one place only.
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
}

# The fork whose image starts vLLM through a launcher, and that launcher's own options for speculation.
LAUNCHER = "local-inference-lab"
FIELDS_OF_LAUNCHER = {"--mode": "speculation", "--draft-tokens": "speculation.n"}

# What a patch passes to the engine itself.
OPTIONS_OF_PATCHES = {"yarn": "--hf-overrides", "chat-template": "--chat-template"}

# Levels are names: the numbers of early recipes mean something else in later NCCL versions.
NCCL_LEVELS = ("LOC", "NVL", "PIX", "PXB", "PHB", "SYS")


def option_name(argument: str) -> str:
    """`--max-model-len` of `--max_model_len=4096`: vLLM reads both alike."""
    name = argument.split("=", 1)[0]
    return name.replace("_", "-") if name.startswith("--") else name


class Speed(Data):
    """Tokens each second as the source gives them, of all requests together. `context` is in tokens."""

    tokens: Annotated[float, Field(gt=0)]
    to: Annotated[float, Field(gt=0)] | None = None
    concurrency: Annotated[int, Strict(), Field(ge=1)] = 1
    context: Annotated[int, Strict(), Field(ge=0)] | None = None
    note: str = ""

    def __str__(self) -> str:
        text = f"{self.tokens:g}" + (f" to {self.to:g}" if self.to else "") + " tok/s"
        text += f" at {self.concurrency} requests" if self.concurrency > 1 else ""
        text += f" at {self.context} tokens" if self.context else ""
        return text + (f" ({self.note})" if self.note else "")


class Evidence(Data):
    """Where a recipe comes from.

    `verbatim`: the source prints this very command, and `changed` lists all that is different here. `assembled`: it was
    put together from parts that the source has.
    """

    source: str
    kind: Literal["verbatim", "assembled"]
    says: str
    who: str = ""
    when: Day | None = None
    changed: tuple[str, ...] = ()
    speeds: tuple[Speed, ...] = ()


class Engine(Data):
    """The server, and its versions (inclusive) that the arguments are meant for.

    `fork` names who builds it where the server has options that no release has.
    """

    name: EngineName
    min: Version | None = None
    max: Version | None = None
    fork: Word | None = None


class Image(Data):
    """A container image. Without `digest` the tag is resolved once, into the lock.

    `command` are the words before the arguments, for images whose entry point is not the server.
    """

    tag: Tag
    digest: Digest | None = None
    command: tuple[Argument, ...] = ()


class Venv(Data):
    """A Python environment without a container: the packages that matter, pinned; the lock pins what they bring along.

    Where a host has no such Python (`3.12`), uv fetches one.
    """

    python: PythonVersion
    packages: Annotated[tuple[Pinned, ...], Field(min_length=1)]

    @property
    def key(self) -> str:
        """Its name in the lock."""
        return f"python{self.python} {' '.join(self.packages)}"


class Source(Data):
    """A build from source. `steps` are commands, each a list of words; they run in the checkout.

    Before them the pull requests are applied, in their order; only GitHub has those.
    """

    repo: Annotated[str, Field(pattern=r"^https://[A-Za-z0-9./_-]+$")]
    branch: Branch | None = None
    commit: Annotated[str, Field(pattern="^[0-9a-f]{7,40}$")] | None = None
    pull_requests: tuple[Int, ...] = ()
    steps: Annotated[tuple[Annotated[tuple[Argument, ...], Field(min_length=1)], ...], Field(min_length=1)]


class Parallel(Data):
    """How the model is spread: tensor, pipeline, data, and decode context parallel size."""

    tp: Annotated[int, Strict(), Field(ge=1)] = 1
    pp: Annotated[int, Strict(), Field(ge=1)] = 1
    dp: Annotated[int, Strict(), Field(ge=1)] = 1
    dcp: Annotated[int, Strict(), Field(ge=1)] = 1


class Speculation(Data):
    """Tokens drafted for each step.

    `method` is the engine's word, or that of a fork's launcher (mtp, dspark, dflash2). `n` is a number, or for vLLM a
    list of [batch from, batch to, n]. SGLang needs `steps` and `topk` as well.
    """

    method: Word
    n: Annotated[int, Strict(), Field(ge=1)] | Annotated[tuple[tuple[Int, Int, Int], ...], Field(min_length=1)]
    steps: Annotated[int, Strict(), Field(ge=1)] | None = None
    topk: Annotated[int, Strict(), Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _names_and_steps(self) -> Speculation:
        if self.method == "qwen3_next_mtp":
            raise complaint("method qwen3_next_mtp is a deprecated name of the same drafter", "mtp")
        if not isinstance(self.n, int):
            expected = 1
            for first, last, tokens in self.n:
                if first != expected or last < first or tokens < 0:
                    raise complaint(
                        f"n has [{first}, {last}, {tokens}] where a step from {expected} is due",
                        "[from, to, n] in order, without gaps, for example [[1, 4, 3], [5, 128, 0]]",
                    )
                expected = last + 1
            if not any(tokens for _, _, tokens in self.n):
                raise complaint("n drafts nothing at any batch size", "speculation: null")
        return self


class Container(Data):
    """What a container needs beyond GPUs, model and the host's network and shared memory.

    `caches` outlive the container (compiled kernels); `tmpfs` hides what the image has there.
    """

    caches: tuple[Inside, ...] = ()
    tmpfs: tuple[Inside, ...] = ()
    security_opt: tuple[Literal["seccomp=unconfined"], ...] = ()


class Ready(Data):
    """When an endpoint counts as ready: this path answers 200, and the model list names the served name."""

    path: Annotated[str, Field(pattern="^/[A-Za-z0-9_/-]*$")] = "/health"
    timeout: Annotated[int, Strict(), Field(ge=10, le=86400)] | None = None


class Checkpoint(Data):
    """A hub repository, at a 40-hex revision, or at a branch that floats until the lock pins it: one of the two.

    `kv_cache` is what the engine makes of `auto`: fp8 where the files bring scales. `drafter`: its MTP layer fits.
    """

    id: str
    repo: Repo
    branch: Branch | None = None
    revision: Revision | None = None
    model: str = "Qwen3.5-397B-A17B"
    quantization: str
    kv_cache: Literal["fp8", "bf16"] = "bf16"
    drafter: bool = True
    bytes: Annotated[int, Strict(), Field(gt=0)] | None = None
    notes: tuple[str, ...] = ()

    @property
    def wanted(self) -> str:
        """What the hub is asked for: a commit, or a branch."""
        return self.revision or str(self.branch)

    @property
    def key(self) -> str:
        """Its name in the lock."""
        return f"{self.repo}@{self.wanted}"

    @model_validator(mode="after")
    def _one_of_two(self) -> Checkpoint:
        if (self.revision is None) == (self.branch is None):
            found = "neither revision nor branch" if self.branch is None else "a revision and a branch"
            raise complaint(f"has {found}", "revision: 40 hexadecimal digits, or branch: main, which moves")
        return self


class Recipe(Data):
    """How a model is served. `argv` holds the engine's further arguments one by one; no shell ever sees them."""

    id: Word
    title: str
    extends: str | None = None
    workload: Annotated[tuple[Workload, ...], Field(min_length=1)]
    status: Literal["current", "verified", "reported", "assembled", "superseded", "broken"]
    superseded_by: str | None = None
    tool_calls: Literal["reliable", "usually", "broken", "unknown"]
    evidence: Annotated[tuple[Evidence, ...], Field(min_length=1)]
    caveats: tuple[str, ...] = ()
    not_deployable: str | None = None
    engine: Engine
    image: Image | None = None
    venv: Venv | None = None
    source: Source | None = None
    checkpoint: str
    served_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
    gpus: Annotated[int, Strict(), Field(ge=1, le=64)]
    vram_mib: Annotated[int, Strict(), Field(ge=1024)]
    min_driver_cuda: Annotated[str, Field(pattern=r"^\d+\.\d+$")] | None = None
    parallel: Parallel = Parallel()
    speculation: Speculation | None = None
    tool_parser: Word | None = None
    reasoning_parser: Word | None = None
    argv: tuple[Argument, ...]
    env: dict[EnvName, str] = Field(default_factory=dict)
    container: Container = Container()
    patches: tuple[Patch, ...] = ()
    ready: Ready = Ready()

    @property
    def speeds(self) -> list[Speed]:
        """All that was measured, in the evidence's order."""
        return [speed for evidence in self.evidence for speed in evidence.speeds]

    @property
    def speed(self) -> str:
        """The first figure of the evidence, for a table."""
        return str(self.speeds[0]) if self.speeds else "not measured"

    @property
    def quoted(self) -> bool:
        """Whether a source has this command, all but the listed changes."""
        return any(evidence.kind == "verbatim" for evidence in self.evidence)

    @property
    def engine_version(self) -> str | None:
        """The lowest version of the engine that it can run with, as far as the recipe says."""
        for name, _, version in map(unpinned, self.venv.packages if self.venv else ()):
            if name == self.engine.name:
                return version
        return self.engine.min

    def container_image(self) -> Image:
        """Raises RigupError for a recipe without a container."""
        if self.image is None:
            raise RigupError(f"recipe {self.id} runs without a container: choose one with an image")
        return self.image

    @model_validator(mode="after")
    def _arguments_are_plain(self) -> Recipe:
        seen: set[str] = set()
        # vLLM takes the parts of a JSON option one by one too: `--speculative-config.method=mtp`.
        whole = {option_name(argument).split(".")[0] for argument in self.argv}
        fields = FIELDS_OF_OPTIONS | (FIELDS_OF_LAUNCHER if self.engine.fork == LAUNCHER else {})
        for argument in self.argv:
            name = option_name(argument)
            if name in RESERVED_ARGUMENTS:
                raise complaint(f"argv holds {name}, which comes from the endpoint", "remove it")
            if field := fields.get(name.split(".")[0]):
                raise complaint(f"argv holds {name}, which has a key of its own", f"write it as {field}")
            if not argument.startswith("-"):
                raise complaint(f"argv holds {argument!r}, which is no option", "one string each: --option=value")
            if name in seen:
                raise complaint(f"argv holds {name} twice", "keep one")
            seen.add(name)
        for patch in self.patches:
            if (owned := OPTIONS_OF_PATCHES.get(patch.target)) and owned in whole:
                raise complaint(f"argv holds {owned}, which the {patch.target} patch gives", "keep one")
        for key, value in self.env.items():
            if "\n" in value or "\r" in value or "\0" in value:
                raise complaint(f"env.{key} holds a line break", "docker's env files have one line for each")
            if key in SECRETS:
                raise complaint(f"env holds {key}, a secret that anyone can read here", "remove it")
        level = self.env.get("NCCL_P2P_LEVEL")
        if level is not None and level not in NCCL_LEVELS:
            raise complaint(f"NCCL_P2P_LEVEL is {level!r}", f"a name: {', '.join(NCCL_LEVELS)}")
        return self

    @model_validator(mode="after")
    def _status_is_backed(self) -> Recipe:
        installs = [name for name in ("image", "venv", "source") if getattr(self, name) is not None]
        if len(installs) != 1:
            raise complaint(f"has {' and '.join(installs) or 'no way'} to install the engine", "image, venv or source")
        if (self.status == "superseded") != (self.superseded_by is not None):
            raise complaint(f"status is {self.status}", "superseded and superseded_by go together")
        if self.status == "broken" and not self.caveats:
            raise complaint("status is broken, and nothing says why", "the reason goes to caveats")
        if self.status == "assembled" and self.quoted:
            raise complaint("status is assembled, with evidence of kind verbatim", "one of the two is wrong")
        if self.speculation:
            sglang = self.engine.name == "sglang"
            both = self.speculation.steps is not None and self.speculation.topk is not None
            neither = self.speculation.steps is None and self.speculation.topk is None
            if (sglang and not both) or (not sglang and not neither):
                raise complaint(
                    f"speculation of {self.engine.name} {'needs' if sglang else 'has no'} steps and topk",
                    "vLLM takes method and n; SGLang method, n, steps and topk",
                )
            if sglang and not isinstance(self.speculation.n, int):
                raise complaint("SGLang takes one number of draft tokens", "speculation.n: 4")
        return self
