"""Anthropic's Messages API over a chat, as vLLM translates it (vllm/entrypoints/anthropic/serving.py, August 2026)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

STOP_REASONS = {"tool_use": "tool_use", "text": "end_turn", "thinking": "end_turn"}


def _blocks(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())


def as_chat(body: dict[str, Any]) -> dict[str, Any]:
    """Return the chat request of a Messages request: one system message, and the results of tools by themselves."""
    messages: list[dict[str, Any]] = []
    system = "".join(block.get("text", "") for block in _blocks(body.get("system")))
    if system:
        messages.append({"role": "system", "content": system})
    for message in body["messages"]:
        blocks = _blocks(message["content"])
        for block in blocks:
            if block["type"] == "tool_result":
                text = " ".join(part.get("text", "") for part in _blocks(block.get("content")))
                messages.append({"role": "tool", "tool_call_id": block["tool_use_id"], "content": text})
        text = "\n".join(block["text"] for block in blocks if block["type"] == "text")
        if text:
            messages.append({"role": message["role"], "content": text})
    tools = [{"type": "function", "function": {"name": tool["name"]}} for tool in body.get("tools") or ()]
    return {"model": body["model"], "messages": messages, "tools": tools}


def as_message(answer: dict[str, Any], model: str) -> dict[str, Any]:
    """Return the Messages answer of what the stand-in's mind answers."""
    content: list[dict[str, Any]] = []
    if answer.get("reasoning"):
        content.append({"type": "thinking", "thinking": answer["reasoning"], "signature": "0"})
    if answer.get("content"):
        content.append({"type": "text", "text": answer["content"]})
    for name, arguments in answer.get("calls") or ():
        content.append({"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": json.loads(arguments)})
    return {
        "id": "chatcmpl-1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": STOP_REASONS[content[-1]["type"]],
        "stop_sequence": None,
        "usage": {"input_tokens": 8, "output_tokens": 8},
    }


def as_events(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the events that stream a Messages answer."""
    started = {**message, "content": [], "stop_reason": None}
    yield {"type": "message_start", "message": started}
    for index, block in enumerate(message["content"]):
        kind = block["type"]
        if kind == "tool_use":
            empty, deltas = {**block, "input": {}}, [_delta("input_json", "partial_json", json.dumps(block["input"]))]
        elif kind == "thinking":
            empty = {"type": kind, "thinking": ""}
            deltas = [_delta(kind, kind, block[kind]), _delta("signature", "signature", block["signature"])]
        else:
            empty, deltas = {"type": kind, "text": ""}, [_delta(kind, kind, block[kind])]
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": message["usage"]}
    yield {"type": "message_stop"}


def _delta(kind: str, field: str, text: str) -> dict[str, Any]:
    return {"type": f"{kind}_delta", field: text}
