"""How the smoke set asks an endpoint: with the client that its users have, the package `openai`."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import openai
from prove import Failed

PLAIN: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}

# Models that think although they were asked not to must come to their answer all the same; they end by themselves.
ROOM = 8192


@dataclass
class Calls:
    """Tool calls of one answer: id, name and arguments of each, in order."""

    finish: str
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    content: str = ""

    def first(self) -> tuple[str, dict[str, Any]]:
        """The first one's name and arguments. Raises Failed where there is none."""
        if not self.calls:
            raise Failed(f"no tool call; finish_reason {self.finish}: {self.content[:120]!r}")
        _, name, text = self.calls[0]
        return name, parsed(text, "the call")


class Endpoint:
    """One model of an endpoint. What it refuses is raised as an error of `openai`, an odd answer as Failed."""

    def __init__(self, url: str, model: str, limit: float, ends: bool) -> None:
        """`limit` in seconds for each request; `ends`: answers come to an end, which random weights never do."""
        self.url, self.model, self.limit, self.ends = url, model, limit, ends
        # A proxy is for elsewhere, and a request that is sent twice would hide the first one's failure.
        direct = openai.DefaultHttpxClient(trust_env=False, timeout=limit)
        self.client = openai.OpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=limit, http_client=direct
        )

    def room(self, max_tokens: int) -> int:
        """How many tokens an answer may have: `max_tokens` where it never ends."""
        return ROOM if self.ends else max_tokens

    def get(self, path: str) -> str:
        """What it answers to a plain request, outside of the API."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.url + path, timeout=self.limit) as response:
            return str(response.read().decode(errors="replace"))

    def complete(self, messages: list[dict[str, Any]], **more: Any) -> Any:
        """A chat completion, without sampling and, unless `more` says otherwise, without thinking."""
        more = {"extra_body": PLAIN, **more}
        answer = self.client.chat.completions.create(
            model=self.model, messages=messages, temperature=0, stream=False, **more
        )
        if not getattr(answer, "choices", None):
            raise Failed(f"the answer is no chat completion: {str(answer)[:120]}")
        return answer

    def stream(self, messages: list[dict[str, Any]], **more: Any) -> Iterator[Any]:
        """The same, piece by piece."""
        more = {"extra_body": PLAIN, **more}
        yield from self.client.chat.completions.create(
            model=self.model, messages=messages, temperature=0, stream=True, **more
        )

    def ask(self, question: str, max_tokens: int) -> Any:
        """The whole answer to one question."""
        answer = self.complete([{"role": "user", "content": question}], max_tokens=self.room(max_tokens))
        self.ended(answer.choices[0].finish_reason)
        return answer

    def ended(self, finish: str | None) -> None:
        """Raises Failed where an answer was cut off."""
        if self.ends and finish != "stop":
            raise Failed(
                f"the answer does not come to an end: finish_reason is {finish}, and {ROOM} tokens are allowed"
            )

    def call(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], choice: str, stream: bool) -> Calls:
        """What it calls of these tools; `choice` is auto or required."""
        asked: dict[str, Any] = {"tools": tools, "tool_choice": choice, "max_tokens": self.room(192)}
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
                    said = (call.id, function.name if function else None, function.arguments if function else None)
                    for at, part in enumerate(said):
                        parts[at] += part or ""
        return Calls(finish, [(parts[0], parts[1], parts[2]) for _, parts in sorted(pieces.items())], content)

    def tokens(self, text: str) -> int:
        """How many tokens a prompt with this text has."""
        answer = self.complete([{"role": "user", "content": text}], max_tokens=1)
        return int(answer.usage.prompt_tokens)

    def speculation(self) -> list[float]:
        """Drafted and accepted tokens so far; empty where the engine does not count them."""
        try:
            text = self.get("/metrics")
        except urllib.error.HTTPError:
            return []
        names = (rf"^vllm:spec_decode_num_{kind}_tokens_total\S* (\S+)$" for kind in ("draft", "accepted"))
        counts = [[float(value) for value in re.findall(name, text, re.MULTILINE)] for name in names]
        return [sum(values) for values in counts] if all(counts) else []


def thoughts(message: Any) -> str:
    """The reasoning in a message or a piece of one: vLLM and SGLang have named it both ways."""
    return getattr(message, "reasoning", None) or getattr(message, "reasoning_content", None) or ""


def parsed(text: str, where: str) -> dict[str, Any]:
    """The arguments of a tool call. Raises Failed, with `where`, unless they are a JSON object."""
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise Failed(f"the arguments of {where} are no JSON: {text[:120]!r}") from error
    if not isinstance(arguments, dict):
        raise Failed(f"the arguments of {where} are no object: {text[:120]!r}")
    return arguments
