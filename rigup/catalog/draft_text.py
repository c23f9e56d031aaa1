"""The text of drafted files: YAML in which a comment behind each line says why. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import yaml

from rigup.catalog.draft_source import Published
from rigup.catalog.parsers import Chosen
from rigup.fit.shape import kept
from rigup.text import printable


class Line(NamedTuple):
    """A key of the recipe, its value (None: left out), and why. Several with the key `argv` make one list."""

    key: str
    value: Any
    why: str


def scalar(value: Any) -> str:
    """Return a value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1 << 30, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _commented(text: str, why: str) -> str:
    return f"{text}  # {printable(' '.join(why.split()))}" if why else text


def recipe_text(published: Published, name: str, day: str, lines: Sequence[Line], unknown: Iterable[str]) -> str:
    """Return the text of a recipe's file."""
    says = "drafted by `rigup new-recipe` from these files; the comments say why each value is as it is"
    head = [
        f"# Drafted from {published.repo} at {published.commit}. Try it, measure it, and replace what is wrong.",
        f"id: {name}",
        f"title: {scalar(f'{published.name}, drafted')}",
        "status: assembled  # nobody is known to have started it",
        "tool_calls: unknown  # `rigup bench` counts them",
        "evidence:",
        f"  - source: {scalar(f'{published.repo} at {published.commit}, its config.json, index and chat template')}",
        f"    when: {day}",
        "    kind: assembled",
        f"    says: {scalar(says)}",
        "caveats:",
        *(f"  - {scalar(f'Not known: {each}.')}" for each in unknown),
    ]
    body: list[str] = []
    in_argv = False
    for line in lines:
        if line.key == "argv":
            body += [] if in_argv else ["argv:"]
            body.append(_commented(f"  - {scalar(line.value)}", line.why))
        elif line.value is None:
            body.append(_commented(f"# No {line.key}:", line.why).replace(":  # ", ": "))
        elif isinstance(line.value, dict) and line.key == "env":
            body.append(_commented(f"{line.key}:", line.why))
            body += [f"  {name}: {scalar(value)}" for name, value in line.value.items()]
        else:
            body.append(_commented(f"{line.key}: {scalar(line.value)}", line.why))
        in_argv = in_argv or line.key == "argv"
    return "\n".join([*head, *body]) + "\n"


def checkpoint_text(published: Published, name: str, model: str, drafts_for: str | None) -> str:
    """Return the text of a checkpoint's file; `drafts_for` is the model of a drafter."""
    lines = [
        f"# Drafted from {published.repo} at {published.commit}.",
        f"id: {name}",
        f"repo: {published.repo}",
        f"branch: {scalar(published.branch)}  # the lock pins the commit",
        f"model: {model}",
        *([f"drafts_for: {drafts_for}"] if drafts_for else []),
        f"quantization: {scalar(published.quantized.name)}",
        *(["kv_cache: fp8  # it brings scales"] if published.has_scales else []),
        f"bytes: {sum(published.sizes.values())}  # all its files",
    ]
    return "\n".join(lines) + "\n"


def model_text(published: Published, name: str, engine: str, parsers: Chosen | None, drafters: Sequence[str]) -> str:
    """Return the text of a model's file: what its config.json says."""
    facts: dict[str, Any] = {"architecture": published.architecture, "images": published.images}
    if heads := published.number("num_attention_heads"):
        facts["attention_heads"] = heads
    if not published.text.get("kv_lora_rank") and (kv_heads := published.number("num_key_value_heads")):
        facts["kv_heads"] = kv_heads
    if layers := published.number("num_hidden_layers"):
        facts["layers"] = layers
    if context := published.shape.context:
        facts["context"] = context
    sources = dict.fromkeys(facts, published.source)
    if parsers and parsers.tool and parsers.reasoning:
        facts["parsers"] = {engine: {"tool": [parsers.tool], "reasoning": [parsers.reasoning]}}
        sources["parsers"] = parsers.why
    if switch := _switch(published.template):
        facts["thinking"] = switch
        sources["thinking"] = f"chat template of {published.repo} at {published.commit[:12]}"
    if published.tensors is not None:
        facts["drafters"] = list(drafters)
        sources["drafters"] = f"index of {published.repo} at {published.commit[:12]}"
    config = kept(published.config)
    # The catalog quotes the part about the language model alone.
    text = config.get("text_config") or config
    facts["config"] = {key: value for key, value in text.items() if key != "quantization_config"}
    sources["config"] = published.source
    lines = [f"# Drafted from {published.repo} at {published.commit}.", f"id: {name}"]
    lines += [f"{key}: {scalar(value)}" for key, value in facts.items()]
    lines += ["sources:", *(f"  {key}: {scalar(value)}" for key, value in sources.items())]
    return "\n".join(lines) + "\n"


def _switch(template: str | None) -> str | None:
    """Return the variable of a chat template that turns thinking on and off."""
    if template is None:
        return None
    return next((name for name in ("enable_thinking", "thinking") if f"{name} is" in template), None)
