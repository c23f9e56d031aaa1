"""SGLang's answers to a chat request as data; the words come from the question, as there is no model."""

from __future__ import annotations

import hashlib
import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

END = 248046
"""Qwen3.5's end-of-turn token, which SGLang reports as what it stopped at."""

BABBLE = 40
"""Words per answer."""

Chat = Mapping[str, Any]


class BadRequest(Exception):
    """A request answered with 400; the message is SGLang's."""

    def __init__(self, message: str, kind: str = "BadRequestError"):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Reply:
    """A model's reply; one word counts as one token."""

    reasoning: str | None
    words: tuple[str, ...]
    calls: tuple[tuple[str, str], ...]
    prompt: int
    finish: str
    made: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def usage(self) -> dict[str, Any]:
        thought = len((self.reasoning or "").split())
        written = len(self.words) + sum(len(arguments.split()) + 4 for _, arguments in self.calls) + thought
        return {
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + written,
            "completion_tokens": written,
            "prompt_tokens_details": None,
            "reasoning_tokens": thought,
            "completion_tokens_details": {"reasoning_tokens": thought} if thought else None,
        }

    @property
    def matched(self) -> int | None:
        return END if self.finish == "stop" else None


def text_of(content: Any) -> str:
    """Return a message's text, whether it is a string or a list of parts."""
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def check(chat: Chat, own_template: bool = False) -> None:
    """Raise BadRequest as SGLang's own checks do (srt/entrypoints/openai/serving_chat.py)."""
    messages, tools, choice = chat.get("messages"), chat.get("tools") or [], chat.get("tool_choice")
    if not isinstance(messages, list):
        raise BadRequest("1 validation error:\n  {'loc': ('body', 'messages'), 'msg': 'Field required'}", "Bad Request")
    if not messages:
        raise BadRequest("Messages cannot be empty.")
    names = [tool.get("function", {}).get("name") for tool in tools]
    if choice == "required" and not tools:
        raise BadRequest("Tools cannot be empty if tool choice is set to required.")
    if isinstance(choice, dict):
        wanted = choice.get("function", {}).get("name")
        if not tools:
            raise BadRequest("Tools cannot be empty if tool choice is set to a specific tool.")
        if wanted not in names:
            raise BadRequest(f"Tool '{wanted}' not found in tools list.")
    # The chat template of this checkpoint raises this; SGLang passes it on.
    if not own_template and any(message.get("role") in ("system", "developer") for message in messages[1:]):
        raise BadRequest("System message must be at the beginning.", "BadRequest")


def reply(chat: Chat, *, parses_tools: bool, parses_reasoning: bool, own_template: bool = False) -> Reply:
    """Return the reply. Without a tool parser a call stays text; without a reasoning parser, thoughts do."""
    check(chat, own_template)
    messages = chat["messages"]
    question = text_of(messages[-1].get("content"))
    thinks = (chat.get("chat_template_kwargs") or {}).get("enable_thinking", True)
    thought = f"The question is about {question[:40].strip() or 'nothing'}." if thinks else None
    tool = _tool(chat)
    prompt = sum(len(text_of(message.get("content")).split()) + 4 for message in messages)
    calls: tuple[tuple[str, str], ...] = ()
    said = ""
    if tool is not None:
        name, arguments = tool["name"], json.dumps(_arguments(tool, question))
        if parses_tools:
            calls = ((name, arguments),)
        else:
            said = f"<tool_call>\n<function={name}>\n{arguments}\n</function>\n</tool_call>"
    else:
        exactly = re.search(r"exactly: (\S+)", question)
        said = exactly[1] if exactly else _babble(question)
    if thought and not parses_reasoning:
        thought, said = None, f"{thought}</think>{said}"
    words = tuple(re.findall(r"\s*\S+", said))
    limit = chat.get("max_completion_tokens") or chat.get("max_tokens")
    finish = "tool_calls" if calls else "stop"
    if isinstance(limit, int) and len(words) > limit:
        words, finish = words[:limit], "length"
    return Reply(thought, words, calls, prompt, finish)


def _babble(question: str) -> str:
    """Return nonsense words, always the same for the same question."""
    digest = hashlib.shake_256(question.encode()).digest(3 * BABBLE)
    syllables = ("ba", "ko", "mi", "tu", "re", "sol", "pex", "dru")
    return " ".join("".join(syllables[byte & 7] for byte in digest[at : at + 3]) for at in range(0, len(digest), 3))


def _tool(chat: Chat) -> Mapping[str, Any] | None:
    """Return the function to call: the one the question names, else the first; None after its result."""
    tools, choice = chat.get("tools") or [], chat.get("tool_choice") or "auto"
    if not tools or choice == "none" or chat["messages"][-1].get("role") == "tool":
        return None
    functions: list[Mapping[str, Any]] = [tool["function"] for tool in tools]
    if isinstance(choice, dict):
        return next(each for each in functions if each["name"] == choice["function"]["name"])
    question = text_of(chat["messages"][-1].get("content"))
    return next((each for each in functions if each["name"] in question), functions[0])


def _arguments(tool: Mapping[str, Any], question: str) -> dict[str, Any]:
    """Return a value of the right type for each required parameter."""
    schema = tool.get("parameters") or {}
    properties: Mapping[str, Any] = schema.get("properties") or {}
    capitals = re.findall(r"(?<!^)\b[A-Z][a-z]+", question)
    values: dict[str, Any] = {"integer": 1, "number": 1.0, "boolean": True, "array": [], "object": {}}
    found = {}
    for name in schema.get("required") or properties:
        shape = properties.get(name) or {}
        choices = shape.get("enum")
        found[name] = choices[0] if choices else values.get(str(shape.get("type")), (capitals or ["Paris"])[0])
    return found


def completion(said: Reply, model: str) -> dict[str, Any]:
    """Return the whole answer."""
    message: dict[str, Any] = {"role": "assistant", "content": "".join(said.words), "reasoning_content": said.reasoning}
    if said.calls:
        message["content"] = None
        message["tool_calls"] = [_call(index, name, words) for index, (name, words) in enumerate(said.calls)]
    choice = {"index": 0, "message": message, "logprobs": None}
    choice |= {"finish_reason": said.finish, "matched_stop": said.matched}
    answer = {"id": said.id, "object": "chat.completion", "created": said.made, "model": model}
    return answer | {"choices": [choice], "usage": said.usage, "metadata": {"weight_version": "default"}}


def _call(index: int, name: str | None, arguments: str) -> dict[str, Any]:
    made = f"call_{uuid.uuid4().hex[:24]}" if name else None
    return {"id": made, "index": index, "type": "function", "function": {"name": name, "arguments": arguments}}


def chunks(said: Reply, model: str, with_usage: bool) -> Iterator[dict[str, Any]]:
    """Yield the answer as a stream: role, thoughts, words or calls, finish reason, and usage if requested."""
    base = {"id": said.id, "object": "chat.completion.chunk", "created": said.made, "model": model}

    def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": {"reasoning_content": None, **delta}, "logprobs": None}
        return base | {
            "choices": [choice | {"finish_reason": finish, "matched_stop": said.matched if finish else None}]
        }

    yield chunk(role="assistant", content="")
    for word in re.findall(r"\s*\S+", said.reasoning or ""):
        yield chunk(reasoning_content=word)
    for word in said.words:
        yield chunk(content=word)
    for index, (name, arguments) in enumerate(said.calls):
        yield chunk(role=None, content=None, tool_calls=[_call(index, name, "")])
        half = len(arguments) // 2
        for piece in (arguments[:half], arguments[half:]):
            yield chunk(role=None, content=None, tool_calls=[_call(index, None, piece)])
    yield chunk(said.finish)
    if with_usage:
        yield base | {"choices": [], "usage": said.usage}
