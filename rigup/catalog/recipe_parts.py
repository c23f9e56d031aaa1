"""What a recipe is made of: evidence, engine, installation, parallelism, speculation and container."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from rigup.catalog.fields import (
    Argument,
    Branch,
    Commit,
    Data,
    Day,
    Digest,
    HttpPath,
    Inside,
    Int,
    Pinned,
    PythonVersion,
    SourceUrl,
    Tag,
    Version,
    Word,
)
from rigup.config.need import EngineName
from rigup.config.yaml_file import complaint


class Speed(Data):
    """A throughput as the source gives it: tokens per second of all requests together. `context` is in tokens."""

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

    `verbatim`: the source prints this command, and `changed` lists every difference. `assembled`: the recipe was put
    together from parts that the source has.
    """

    source: str
    kind: Literal["verbatim", "assembled"]
    says: str
    who: str = ""
    when: Day | None = None
    changed: tuple[str, ...] = ()
    speeds: tuple[Speed, ...] = ()


class Engine(Data):
    """The server, and the range of its versions (inclusive) that the arguments are written for.

    `fork` names who builds it, if the server has options that no release has.
    """

    name: EngineName
    min: Version | None = None
    max: Version | None = None
    fork: Word | None = None


class Image(Data):
    """A container image. Without `digest`, the tag is resolved once and kept in the lock.

    `command` is what comes before the arguments, for images whose entry point is not the server.
    """

    tag: Tag
    digest: Digest | None = None
    command: tuple[Argument, ...] = ()


class Venv(Data):
    """A Python environment without a container: the main packages, pinned; the lock pins their dependencies.

    If a host does not have this Python (`3.12`), uv downloads it.
    """

    python: PythonVersion
    packages: Annotated[tuple[Pinned, ...], Field(min_length=1)]

    @property
    def key(self) -> str:
        """The name of the environment in the lock."""
        return f"python{self.python} {' '.join(self.packages)}"


class Source(Data):
    """The source that an engine was built from, with the pull requests applied to it. rigup does not build engines."""

    repo: SourceUrl
    branch: Branch | None = None
    commit: Commit | None = None
    pull_requests: tuple[Int, ...] = ()


class Parallel(Data):
    """How the model is spread over GPUs: tensor, pipeline, data and decode-context parallel size."""

    tp: Annotated[int, Strict(), Field(ge=1)] = 1
    pp: Annotated[int, Strict(), Field(ge=1)] = 1
    dp: Annotated[int, Strict(), Field(ge=1)] = 1
    dcp: Annotated[int, Strict(), Field(ge=1)] = 1


class Speculation(Data):
    """Speculative decoding: how many tokens are drafted per step.

    `method` is the engine's name for it, or that of a fork's launcher (mtp, dspark, dflash2). `n` is a number, or for
    vLLM a list of [batch from, batch to, n]. SGLang needs `steps` and `topk` as well, unless it drafts whole blocks.
    `model` is the checkpoint of a drafter that the served one does not contain (EAGLE3, DFlash, DSpark). `moe_backend`
    is the drafter's, if it cannot have the model's.
    """

    method: Word
    n: Annotated[int, Strict(), Field(ge=1)] | Annotated[tuple[tuple[Int, Int, Int], ...], Field(min_length=1)]
    steps: Annotated[int, Strict(), Field(ge=1)] | None = None
    topk: Annotated[int, Strict(), Field(ge=1)] | None = None
    model: Word | None = None
    moe_backend: Word | None = None

    @model_validator(mode="after")
    def _names_and_steps(self) -> Speculation:
        if self.method == "qwen3_next_mtp":
            raise complaint("method qwen3_next_mtp is a deprecated name of the same drafter", "use mtp")
        if not isinstance(self.n, int):
            expected = 1
            for first, last, tokens in self.n:
                if first != expected or last < first or tokens < 0:
                    raise complaint(
                        f"n has [{first}, {last}, {tokens}], but the next step must start at {expected}",
                        "list [from, to, n] in order, without gaps, for example [[1, 4, 3], [5, 128, 0]]",
                    )
                expected = last + 1
            if not any(tokens for _, _, tokens in self.n):
                raise complaint("n drafts no tokens at any batch size", "use speculation: null")
        return self


class Container(Data):
    """What a container needs in addition to GPUs, model, and the host's network and shared memory.

    `caches` are paths that outlive the container (compiled kernels); `tmpfs` hides what the image has at a path.
    """

    caches: tuple[Inside, ...] = ()
    tmpfs: tuple[Inside, ...] = ()
    security_opt: tuple[Literal["seccomp=unconfined"], ...] = ()


class Ready(Data):
    """When an endpoint is ready: this path answers 200, and the model list includes the served name."""

    path: HttpPath = "/health"
    timeout: Annotated[int, Strict(), Field(ge=10, le=86400)] | None = None
