"""The schema of a model: what is known about all checkpoints of it, each fact with its source."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, Strict, field_validator, model_validator

from rigup.catalog.fields import Data, Version, Word
from rigup.config.need import EngineName
from rigup.config.yaml_file import complaint
from rigup.fit.shape import kept

Count = Annotated[int, Strict(), Field(ge=1)]
Gib = Annotated[float, Field(gt=0)]


class Parsers(Data):
    """The parsers that read this model's tool calls and its reasoning; any other leaves them in the answer's text."""

    tool: Annotated[tuple[Word, ...], Field(min_length=1)]
    reasoning: Annotated[tuple[Word, ...], Field(min_length=1)]


class Overhead(Data):
    """What the engine was measured to need besides weights and cache, in GiB, and how far that can be off."""

    gib: Gib
    error: Gib


class Model(Data):
    """A model. Whatever is not known is left out, and then it is not checked.

    `architecture` is the one in config.json. `images`: whether it accepts them unless told otherwise. `context` is in
    tokens, as trained. `thinking` is the key of `chat_template_kwargs` that turns thinking on and off. `drafters` are
    the methods of speculation that the checkpoints have the weights for. `engines` are the first releases that serve
    it. `kv_heads` is left out for latent attention, whose cache is not divided by heads. `config` quotes from
    config.json what `rigup/fit` reads of it. `overhead` replaces the usual one.
    """

    id: Word
    architecture: Word | None = None
    images: Annotated[bool, Strict()] | None = None
    attention_heads: Count | None = None
    kv_heads: Count | None = None
    layers: Count | None = None
    context: Count | None = None
    parsers: dict[EngineName, Parsers] = Field(default_factory=dict)
    thinking: Word | None = None
    drafters: tuple[Word, ...] | None = None
    engines: dict[EngineName, Version] = Field(default_factory=dict)
    config: dict[Word, Any] | None = None
    overhead: Overhead | None = None
    traps: tuple[str, ...] = ()
    sources: dict[Word, str]

    @field_validator("config")
    @classmethod
    def _only_what_is_read(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if unread := sorted(set(value or {}) - set(kept(value or {}))):
            raise complaint(f"has {', '.join(unread)}, which nothing reads", "quote only keys of rigup/fit/shape.py")
        return value

    @model_validator(mode="after")
    def _facts_have_sources(self) -> Model:
        given = self.model_fields_set - {"id", "sources"}
        if missing := sorted(given - set(self.sources)):
            raise complaint(f"has no source for {', '.join(missing)}", "add each to sources")
        if unknown := sorted(set(self.sources) - given):
            raise complaint(f"has a source for {', '.join(unknown)}, which it does not state", "remove it from sources")
        return self
