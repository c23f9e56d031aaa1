"""Known traps of a client with an engine or a model, each with its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rigup.render.clients.connection import Connection


@dataclass(frozen=True)
class Trap:
    """A trap of these clients, or of every client if none is named, where `applies` is true of the endpoint."""

    clients: tuple[str, ...]
    text: str
    source: str
    applies: Callable[[Connection], bool] = lambda _: True


def _vllm(connection: Connection) -> bool:
    return connection.engine == "vllm"


TRAPS = (
    Trap(
        (),
        "vLLM refuses a request whose prompt and max_tokens exceed the context together; it shortens neither.",
        "https://github.com/vllm-project/vllm/issues/42474",
        _vllm,
    ),
    Trap(
        ("curl", "openai-python"),
        "Before 0.16, vLLM calls the field of the reasoning reasoning_content.",
        "https://github.com/vllm-project/vllm/pull/33402",
        lambda connection: _vllm(connection) and connection.reasoning is not None,
    ),
    Trap(
        ("opencode",),
        "OpenCode before June 2026 refuses `interleaved.field: reasoning`, without which vLLM drops earlier reasoning.",
        "https://github.com/anomalyco/opencode/pull/30477",
        lambda connection: connection.reasoning == "reasoning",
    ),
    Trap(
        ("opencode",),
        "OpenCode and its plugins may send a second system message, which the model's chat template refuses: \"System "
        'message must be at the beginning". Use a recipe that patches the template.',
        "https://github.com/anomalyco/opencode/issues/20785",
        lambda connection: connection.trained_as.startswith("Qwen3") and not connection.merges_system,
    ),
    Trap(
        ("opencode",),
        "Without `limit`, OpenCode never compacts a conversation. Add the context that /v1/models shows.",
        "https://github.com/code-yeongyu/oh-my-openagent/issues/4184",
        lambda connection: connection.context is None,
    ),
    Trap(
        ("claude-code",),
        "Claude Code needs /v1/messages, which vLLM has since 0.11.1.",
        "https://github.com/vllm-project/vllm/releases/tag/v0.11.1",
        _vllm,
    ),
    Trap(
        ("claude-code",),
        "Claude Code needs /v1/messages, which SGLang has since 0.5.9.",
        "https://github.com/sgl-project/sglang/releases/tag/v0.5.9",
        lambda connection: connection.engine == "sglang",
    ),
    Trap(
        ("claude-code",),
        "Since 2.1.154 Claude Code sends system messages within the conversation. vLLM 0.20.1 answers them with 400; "
        "later releases merge them.",
        "https://github.com/vllm-project/vllm/issues/44000",
        _vllm,
    ),
    Trap(
        ("claude-code",),
        "CLAUDE_CODE_ATTRIBUTION_HEADER counts in settings.json only. Without it, every prompt begins differently, and "
        "the engine reads all of it again.",
        "https://docs.vllm.ai/en/stable/serving/integrations/claude_code/",
    ),
    Trap(
        ("claude-code",),
        "Claude Code 2.1.177 assumes a context of 200,000 tokens; 2.1.332 uses CLAUDE_CODE_MAX_CONTEXT_TOKENS.",
        "https://github.com/anthropics/claude-code/issues/68522",
    ),
    Trap(
        ("claude-code",),
        "Claude Code cannot use a model name with a slash.",
        "https://docs.vllm.ai/en/stable/serving/integrations/claude_code/",
        lambda connection: "/" in connection.model,
    ),
    Trap(
        ("cline",),
        "Cline in VS Code assumes a context of 128,000 tokens until you set its Context Window Size.",
        "https://github.com/cline/cline/issues/1984",
    ),
    Trap(
        ("continue",),
        "With its provider `vllm`, Continue sends no tools; keep `openai`.",
        "https://github.com/continuedev/continue/pull/12591",
        _vllm,
    ),
    Trap(
        ("continue",),
        "Continue in an editor reads secrets from .env files and not from the environment.",
        "https://github.com/continuedev/continue/issues/5902",
        lambda connection: connection.needs_key,
    ),
    Trap(
        ("open-webui",),
        "Open WebUI reads these variables at its first start only. Later, change the connection in its admin settings, "
        "or set ENABLE_PERSISTENT_CONFIG=False.",
        "https://docs.openwebui.com/reference/env-configuration",
    ),
)


def traps_of(client: str, connection: Connection) -> list[Trap]:
    """Return the traps of a client with this endpoint."""
    return [trap for trap in TRAPS if (not trap.clients or client in trap.clients) and trap.applies(connection)]
