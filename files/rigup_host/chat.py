"""Requests to an endpoint, sent with the client that its users have: the package `openai`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import openai

from rigup_host import files, http
from rigup_host.checks import Failed

# Models that think although they were asked not to must still reach their answer. They end on their own.
MOST_TOKENS = 8192


@dataclass
class Calls:
    """The tool calls of one answer: id, name and arguments of each, in order."""

    finish: str
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    content: str = ""

    def first(self) -> tuple[str, dict[str, Any]]:
        """Return name and arguments of the first call. Raise Failed if there is none."""
        if not self.calls:
            raise Failed(f"no tool call; finish_reason {self.finish}: {self.content[:120]!r}")
        _, name, text = self.calls[0]
        return name, parsed(text, "the call")


class Endpoint:
    """One model of an endpoint. A refused request raises an error of `openai`, an unexpected answer raises Failed."""

    def __init__(self, url: str, model: str, limit: float, ends: bool, thinking: str) -> None:
        """Each request may take `limit` seconds. `ends`: answers end, which those of random weights never do.

        `thinking` is the key of `chat_template_kwargs` that turns thinking on and off.
        """
        self.url, self.model, self.limit, self.ends, self.thinking = url, model, limit, ends, thinking
        # Without proxies, as the endpoint is on this host. A retry would hide the failure of the first request. Each
        # request has a connection of its own: vLLM drops the connection after it has refused a request.
        self.client = openai.OpenAI(
            base_url=f"{url}/v1",
            api_key="none",
            max_retries=0,
            timeout=limit,
            default_headers={"Connection": "close"},
            http_client=openai.DefaultHttpxClient(trust_env=False, timeout=limit),
        )

    def limit_tokens(self, max_tokens: int) -> int:
        """Return how many tokens an answer may have: `max_tokens` only if it would never end."""
        return MOST_TOKENS if self.ends else max_tokens

    def complete(self, messages: list[dict[str, Any]], **more: Any) -> Any:
        """Return a completion, without sampling and, unless `extra_body` says otherwise, without thinking."""
        answer = self._create(messages, stream=False, **more)
        if not getattr(answer, "choices", None):
            raise Failed(f"the answer is not a chat completion: {str(answer)[:120]}")
        return answer

    def stream(self, messages: list[dict[str, Any]], **more: Any) -> Iterator[Any]:
        """Yield the pieces of such a completion."""
        yield from self._create(messages, stream=True, **more)

    def _create(self, messages: list[dict[str, Any]], **more: Any) -> Any:
        create: Any = self.client.chat.completions.create
        body = {"extra_body": self.body(thinks=False), **more}
        return create(model=self.model, messages=messages, temperature=0, **body)

    def body(self, thinks: bool) -> dict[str, Any]:
        """Return the part of a request that turns thinking on or off, as `extra_body` takes it."""
        return {"chat_template_kwargs": {self.thinking: thinks}}

    def ask(self, question: str, max_tokens: int) -> Any:
        """Return the complete answer to one question."""
        answer = self.complete([{"role": "user", "content": question}], max_tokens=self.limit_tokens(max_tokens))
        self.check_end(answer.choices[0].finish_reason)
        return answer

    def check_end(self, finish: str | None) -> None:
        """Raise Failed if an answer was cut off."""
        if self.ends and finish != "stop":
            raise Failed(f"the answer does not end: finish_reason is {finish} after {MOST_TOKENS} tokens")

    def call(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], choice: str, stream: bool) -> Calls:
        """Return which of these tools it calls; `choice` is `auto` or `required`."""
        asked: dict[str, Any] = {"tools": tools, "tool_choice": choice, "max_tokens": self.limit_tokens(192)}
        if not stream:
            answer = self.complete(messages, **asked).choices[0]
            calls = [(call.id, call.function.name, call.function.arguments) for call in answer.message.tool_calls or []]
            return Calls(answer.finish_reason, calls, answer.message.content or "")
        finish, content, pieces = "", "", dict[int, list[str]]()
        for chunk in self.stream(messages, **asked):
            for delta in chunk.choices:
                finish = delta.finish_reason or finish
                content += delta.delta.content or ""
                for call in delta.delta.tool_calls or []:
                    parts = pieces.setdefault(call.index, ["", "", ""])
                    function = call.function
                    piece = (call.id, function.name if function else None, function.arguments if function else None)
                    for at, part in enumerate(piece):
                        parts[at] += part or ""
        return Calls(finish, [(parts[0], parts[1], parts[2]) for _, parts in sorted(pieces.items())], content)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a prompt with this text has."""
        answer = self.complete([{"role": "user", "content": text}], max_tokens=1)
        return int(answer.usage.prompt_tokens)

    def speculation(self) -> list[float]:
        """Return the drafted and the accepted tokens so far; nothing if the engine does not count them."""
        text = http.get(f"{self.url}/metrics", self.limit).body.decode(errors="replace")
        names = (rf"^vllm:spec_decode_num_{kind}_tokens_total\S* (\S+)$" for kind in ("draft", "accepted"))
        counts = [[float(value) for value in re.findall(name, text, re.MULTILINE)] for name in names]
        return [sum(values) for values in counts] if all(counts) else []


def thoughts(message: Any) -> str:
    """Return the reasoning in a message or a piece of one: vLLM and SGLang have used both names."""
    return getattr(message, "reasoning", None) or getattr(message, "reasoning_content", None) or ""


def parsed(text: str, where: str) -> dict[str, Any]:
    """Return the arguments of a tool call. Raise Failed, with `where`, unless they are a JSON object."""
    try:
        arguments = files.from_json(text)
    except ValueError as error:
        raise Failed(f"the arguments of {where} are not JSON: {text[:120]!r}") from error
    if not isinstance(arguments, dict):
        raise Failed(f"the arguments of {where} are not an object: {text[:120]!r}")
    return arguments
