"""The schema of a checkpoint: a repository on the Hugging Face hub, and what recipes need to know about its files."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, Strict, model_validator

from rigup.catalog.fields import Branch, Data, Repo, Revision, Word
from rigup.config.yaml_file import complaint


class Files(NamedTuple):
    """What the lock knows of a checkpoint's files: what counts of config.json, and the bytes of the weights."""

    config: dict[str, Any] | None
    weights: int | None


class Checkpoint(Data):
    """A hub repository at a 40-digit revision, or at a branch that the lock pins: exactly one of the two.

    `model` is the name that all uploads of a model share; `recipes/models/` has what is known about it. `kv_cache` is
    what the engine takes `auto` to mean: fp8 if the files include scales. `drafter`: the MTP layer fits.
    `drafts_for` is the model that it drafts for, if it is a drafter itself. `bytes` is the size of the files.
    """

    id: str
    repo: Repo
    branch: Branch | None = None
    revision: Revision | None = None
    model: Word
    quantization: str
    kv_cache: Literal["fp8", "bf16"] = "bf16"
    drafter: bool = True
    drafts_for: Word | None = None
    bytes: Annotated[int, Strict(), Field(gt=0)] | None = None
    notes: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """The commit or branch to request from the hub."""
        return self.revision or str(self.branch)

    @property
    def key(self) -> str:
        """The name of the checkpoint in the lock."""
        return f"{self.repo}@{self.reference}"

    @model_validator(mode="after")
    def _one_of_two(self) -> Checkpoint:
        if (self.revision is None) == (self.branch is None):
            found = "neither revision nor branch" if self.branch is None else "a revision and a branch"
            raise complaint(f"has {found}", "give it revision: COMMIT (40 digits) or branch: main, which moves")
        return self
