"""The configuration of each client, as data for its own file or as text."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from rigup import commands
from rigup.render.clients.connection import Connection

# For clients that refuse to start without a key.
NO_KEY = "none"

ABSENT = object()
"""The value of a key that the client's file must not have: one that an earlier configuration wrote."""

# Tokens that the examples ask for.
EXAMPLE_TOKENS = 512


@dataclass(frozen=True)
class Place:
    """A client's own file: below `home` in the user's home directory, or below what `variable` names.

    `instead` is a name that the client reads as well, in the same directory.
    """

    variable: str
    home: str
    name: str
    form: Literal["json", "yaml"]
    instead: str = ""


@dataclass(frozen=True)
class Configuration:
    """A client's configuration: `data` for its file, with `defaults` for keys that the file may lack, or `text`.

    `hints` say how to use it.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    hints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Client:
    """A client that `rigup connect` knows. Without `place` it has no file; `without_file` says what to do then."""

    title: str
    configure: Callable[[Connection, str | None], Configuration]
    place: Place | None = None
    without_file: str = ""
    takes_key: bool = True


def key_command(connection: Connection, *options: str) -> str:
    """Return the command that prints the endpoint's key."""
    return commands.rigup("key", connection.name, *options)


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values without those that are not known."""
    return {key: value for key, value in values.items() if value not in (None, {}, [])}


def _secret(connection: Connection, key: str | None, otherwise: Any) -> Any:
    return NO_KEY if not connection.needs_key else key or otherwise


def _export(connection: Connection, variable: str, key: str | None) -> tuple[str, ...]:
    """Return the hint that puts the key into the environment, if it is not in the configuration."""
    missing = connection.needs_key and key is None
    return (f'key: export {variable}="$({key_command(connection)})"',) if missing else ()


def opencode(connection: Connection, key: str | None) -> Configuration:
    """Return the provider for OpenCode (opencode.ai/docs/providers, OpenCode 1.18)."""
    provider = f"{connection.host}-{connection.endpoint}"
    limit = {"context": connection.context, "output": connection.output} if connection.context else None
    inputs = ["text", "image"] if connection.images else ["text"]
    model = {
        "name": connection.model,
        "tool_call": connection.tool_calls is not None,
        "reasoning": connection.reasoning is not None,
        "interleaved": {"field": connection.reasoning} if connection.reasoning else None,
        "attachment": connection.images,
        "modalities": {"input": inputs, "output": ["text"]},
        "limit": limit,
    }
    options = {
        "baseURL": f"{connection.url}/v1",
        "apiKey": _secret(connection, key, f"{{env:{connection.variable}}}"),
    }
    entry = {
        "npm": "@ai-sdk/openai-compatible",
        "name": connection.name,
        "options": options,
        "models": {connection.model: _known(model)},
    }
    return Configuration(
        data={"provider": {provider: entry}},
        defaults={"$schema": "https://opencode.ai/config.json"},
        hints=(
            *_export(connection, connection.variable, key),
            f"use: opencode --model {shlex.quote(f'{provider}/{connection.model}')}",
        ),
    )


def claude_code(connection: Connection, key: str | None) -> Configuration:
    """Return the environment for Claude Code (code.claude.com/docs/en/env-vars, Claude Code 2.1)."""
    models = ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{tier}_MODEL" for tier in ("OPUS", "SONNET", "HAIKU")))
    env = {
        "ANTHROPIC_BASE_URL": connection.url,
        "ANTHROPIC_AUTH_TOKEN": _secret(connection, key, ABSENT),
        **dict.fromkeys(models, connection.model),
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(connection.context) if connection.context else None,
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(connection.output) if connection.output else None,
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
    }
    return Configuration(
        data={"env": _known(env)}, hints=(*_export(connection, "ANTHROPIC_AUTH_TOKEN", key), "use: claude")
    )


def cline(connection: Connection, key: str | None) -> Configuration:
    """Return the provider for Cline's command line (Cline CLI 3.0), and hints for its settings in an editor."""
    provider = "openai-compatible"
    settings = {
        "provider": provider,
        "apiKey": _secret(connection, key, ABSENT),
        "model": connection.model,
        "baseUrl": f"{connection.url}/v1",
        "contextWindow": connection.context,
        "maxTokens": connection.output,
    }
    entry = {"settings": _known(settings)}
    panel = {
        "API Provider": "OpenAI Compatible",
        "Base URL": settings["baseUrl"],
        "Model ID": connection.model,
        "Context Window Size": connection.context,
        "Max Output Tokens": connection.output,
        "Supports Images": "yes" if connection.images else "no",
    }
    values = ", ".join(f"{name}: {value}" for name, value in _known(panel).items())
    return Configuration(
        data={"providers": {provider: entry}},
        defaults={
            "version": 1,
            "lastUsedProvider": provider,
            "modes": {},
            # Cline writes the time of its own changes here, and drops a file without one.
            "providers": {provider: {"updatedAt": "1970-01-01T00:00:00.000Z", "tokenSource": "manual"}},
        },
        hints=(
            *_export(connection, "OPENAI_API_KEY", key),
            f"use: cline --provider {provider} --model {shlex.quote(connection.model)}",
            f"in VS Code, set by hand: {values}",
        ),
    )


def continue_(connection: Connection, key: str | None) -> Configuration:
    """Return the model for Continue (docs.continue.dev/reference)."""
    can = (("tool_use", connection.tool_calls is not None), ("image_input", connection.images))
    capabilities = [capability for capability, known in can if known]
    model = {
        "name": connection.name,
        # Not `vllm`, with which Continue sends no tools.
        "provider": "openai",
        "model": connection.model,
        "apiBase": f"{connection.url}/v1",
        "apiKey": _secret(connection, key, f"${{{{ secrets.{connection.variable} }}}}"),
        "roles": ["chat", "edit", "apply", "summarize"],
        "capabilities": capabilities,
        "defaultCompletionOptions": _known({"contextLength": connection.context, "maxTokens": connection.output}),
    }
    secret = (f"key: write {connection.variable}=KEY into ~/.continue/.env; `{key_command(connection)}` prints KEY",)
    return Configuration(
        data={"models": [_known(model)]},
        defaults={"name": "Local", "version": "1.0.0", "schema": "v1"},
        hints=(
            *(secret if connection.needs_key and key is None else ()),
            f"use: choose {connection.name} as the model",
        ),
    )


def open_webui(connection: Connection, key: str | None) -> Configuration:
    """Return the variables for Open WebUI (docs.openwebui.com/reference/env-configuration)."""
    lines = [
        "ENABLE_OPENAI_API=True",
        f"OPENAI_API_BASE_URLS={connection.url}/v1",
        f"OPENAI_API_KEYS={_secret(connection, key, 'KEY')}",
        f"DEFAULT_MODELS={connection.model}",
    ]
    missing = connection.needs_key and key is None
    hints = (f"key: replace KEY by what `{key_command(connection)}` prints",) if missing else ()
    network = "" if connection.needs_key else " --network=host"
    use = f"use: docker run --env-file FILE{network} ... ghcr.io/open-webui/open-webui"
    return Configuration(text="".join(f"{line}\n" for line in lines), hints=(*hints, use))


def openai_python(connection: Connection, key: str | None) -> Configuration:
    """Return a program that uses the package `openai`."""
    needs = connection.needs_key and key is None
    secret = f'os.environ["{connection.variable}"]' if needs else json.dumps(key or NO_KEY)
    extra = f'    extra_body={{"chat_template_kwargs": {{"{connection.thinking}": False}}}},\n'
    text = (
        ("import os\n\n" if needs else "")
        + "from openai import OpenAI\n\n"
        + f"client = OpenAI(base_url={json.dumps(connection.url + '/v1')}, api_key={secret})\n"
        + "answer = client.chat.completions.create(\n"
        + f"    model={json.dumps(connection.model)},\n"
        + '    messages=[{"role": "user", "content": "Hello"}],\n'
        + f"    max_tokens={EXAMPLE_TOKENS},\n"
        + (extra if connection.reasoning else "")
        + ")\n"
        + "print(answer.choices[0].message.content)\n"
    )
    return Configuration(text=text, hints=_export(connection, connection.variable, key))


def curl(connection: Connection, key: str | None) -> Configuration:
    """Return commands for a shell. The key passes through a pipe, so that it is on no command line."""
    body: dict[str, Any] = {
        "model": connection.model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": EXAMPLE_TOKENS,
    }
    if connection.reasoning:
        body["chat_template_kwargs"] = {connection.thinking: False}
    start, header = "", ""
    if connection.needs_key:
        start, header = f"{key_command(connection, '--header')} | ", " -H @-"

    def command(path: str, more: str = "") -> str:
        return f"{start}curl -sS{header} {connection.url}{path}{more}\n"

    asked = shlex.quote(json.dumps(body))
    chat = command("/v1/chat/completions", f" -H Content-Type:application/json -d {asked}")
    return Configuration(text=command("/v1/models") + chat)


CLIENTS: Mapping[str, Client] = {
    "opencode": Client(
        "OpenCode",
        opencode,
        Place("XDG_CONFIG_HOME", ".config", "opencode/opencode.json", "json", instead="opencode.jsonc"),
    ),
    "claude-code": Client("Claude Code", claude_code, Place("CLAUDE_CONFIG_DIR", ".claude", "settings.json", "json")),
    "cline": Client("Cline", cline, Place("CLINE_DIR", ".cline", "data/settings/providers.json", "json")),
    "continue": Client("Continue", continue_, Place("CONTINUE_GLOBAL_DIR", ".continue", "config.yaml", "yaml")),
    "open-webui": Client(
        "Open WebUI", open_webui, without_file="save what is printed, and pass it with `docker run --env-file`"
    ),
    "openai-python": Client("the Python package openai", openai_python, without_file="copy what is printed"),
    "curl": Client("curl", curl, without_file="copy what is printed", takes_key=False),
}


def text_of(client: Client, configuration: Configuration) -> str:
    """Return the configuration as the content of a new file, or as text to copy."""
    if client.place is None:
        return configuration.text
    data = combined(configuration.defaults, configuration.data)
    if client.place.form == "yaml":
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def combined(under: Any, over: Any) -> Any:
    """Return two values as one: mappings key by key, and of everything else what is in `over`."""
    if not isinstance(over, Mapping):
        return over
    both = dict(under) if isinstance(under, Mapping) else {}
    for key, value in over.items():
        if value is ABSENT:
            both.pop(key, None)
        else:
            both[key] = combined(both.get(key), value)
    return both
