"""Prepend a prelude to a published chat template, if it needs one.

A prelude changes `messages` and `enable_thinking`, prints nothing, and leaves the rest to the published template, so
that the model is prompted exactly as it was trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rigup.errors import RigupError

# OpenCode sends two system messages. A single one at the beginning is left alone. The parts of a message that is not
# plain text are kept. Engines forbid changing lists in place (`append`), so each step builds a new one.
MERGE = """\
{%- set rigup = namespace(system=[], parts=[], plain=true, late=false, others=[]) -%}
{%- for message in messages -%}
{%- if message.role in ['system', 'developer'] -%}
{%- set rigup.late = rigup.late or not loop.first -%}
{%- set rigup.system = rigup.system + [message.content] -%}
{%- if message.content is string -%}
{%- set rigup.parts = rigup.parts + [{'type': 'text', 'text': message.content}] -%}
{%- else -%}
{%- set rigup.plain = false -%}
{%- set rigup.parts = rigup.parts + (message.content or []) -%}
{%- endif -%}
{%- set rigup.parts = rigup.parts + [{'type': 'text', 'text': '\\n\\n'}] -%}
{%- else -%}
{%- set rigup.others = rigup.others + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- if rigup.late -%}
{%- set rigup.system = rigup.system | join('\\n\\n') if rigup.plain else rigup.parts[:-1] -%}
{%- set messages = [{'role': 'system', 'content': rigup.system}] + rigup.others -%}
{%- endif %}"""
THINKING = "{{%- set enable_thinking = enable_thinking if enable_thinking is defined else {value} %}}"

PROBE = ("Be brief.", "Answer in French.")


def changed(template: str, merge: bool = False, thinking: bool | None = None) -> str:
    """Return the template with preludes; system messages are merged only if the template cannot take two of them."""
    text = template
    if merge and not takes_two_system_messages(template):
        text = MERGE + text
    if thinking is not None:
        text = THINKING.format(value=str(thinking).lower()) + text
    return text


def takes_two_system_messages(template: str) -> bool:
    """Return whether both of two system messages reach the prompt; False if the template cannot be rendered here."""
    messages = [{"role": "system", "content": text} for text in PROBE]
    try:
        prompt = render(template, [*messages, {"role": "user", "content": "Hello"}])
    except RigupError:
        return False
    return all(text in prompt for text in PROBE)


def render(template: str, messages: list[dict[str, Any]], **values: Any) -> str:
    """Return the prompt as transformers 5 renders it, in a sandbox, because templates come from the hub.

    Raises RigupError if the template is invalid or refuses the messages.
    """
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(template).render(messages=messages, add_generation_prompt=True, **values)
    except (
        jinja2.TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise RigupError(f"the chat template cannot be rendered ({error})", "use another `text` for it") from error


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    # Jinja's own escapes characters for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def of_tokenizer(config: Mapping[str, Any]) -> str | None:
    """Return the template in a tokenizer_config.json, where older checkpoints have it; of several, the default."""
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None
