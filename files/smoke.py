"""What an endpoint must be able to do, tried as its users would.

`prove.py` runs these. What is tried goes by what the recipe is for (`Expectation`), from the health check over tool
calls in several steps to an image. A check that fails says what it means and which recipe avoids it. Of a checkpoint
with random weights, as the embedded lab's, nonsense is expected, and sense would be the failure.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import openai
from prove import Check, Failed, Noted
from smoke_ask import Endpoint, parsed, thoughts

THINKING: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": True}}

PARAGRAPH = "Write one paragraph of about one hundred words about the sea, in plain English."
MAGIC = "7319-cobalt"
FILLER = "The quick brown fox jumps over the lazy dog while the grey cat sleeps in the warm sun. "
STOCK = {"A1": 7, "B2": 11, "C3": 13, "D4": 17, "E5": 19}

# Words that no English paragraph does without; tokens drawn at random hardly ever make one.
COMMON = frozenset(("the", "a", "an", "and", "of", "to", "in", "is", "it", "that", "with", "as", "on", "for", "are"))

# Words in a row that stand twice in a paragraph only by rare chance.
PHRASE = 6


@dataclass(frozen=True)
class Expectation:
    """What the endpoint is for. `long_prompt` and `context` (as the recipe asks) in tokens, `instead` a recipe's name.

    `random_weights`: the checkpoint's weights are random, and what they write is nonsense.
    """

    tools: bool = False
    reasoning: bool = False
    images: bool = False
    speculation: bool = False
    merges_system: bool = False
    random_weights: bool = False
    long_prompt: int = 0
    context: int | None = None
    instead: str | None = None


@dataclass(frozen=True)
class Meaning:
    """What a failed check means for users. `avoidable`: another recipe does not have it."""

    text: str
    avoidable: bool = True


MEANINGS = {
    "lists its model": Meaning("clients that ask for the model by its name get 404", avoidable=False),
    "completes a chat": Meaning("it is up and does not serve; its log says why"),
    "writes sense": Meaning(
        "the weights are read wrongly: an FP4 kernel that does not work on these cards, or a patch of the config that "
        "matches nothing"
    ),
    "streams a chat": Meaning("chat programs show nothing until the answer is whole, or break off"),
    "keeps reasoning apart": Meaning("thoughts stand in the answer: the reasoning parser does not fit the model"),
    "calls a tool": Meaning("agents do not get as far as their first step: the tool parser does not fit the model"),
    "streams a tool call": Meaning("OpenCode and other agents stream, and see broken JSON: speculation does that"),
    "calls a required tool": Meaning("guided decoding does not work with this model"),
    "streams a required tool call": Meaning("guided decoding does not work with this model where it streams"),
    "calls tools step by step": Meaning(
        "single calls pass and longer work breaks: speculation together with prefix caching corrupts the state"
    ),
    "takes two system messages": Meaning("OpenCode sends two, and gets an error"),
    "reads a long prompt": Meaning("what stands early in a long prompt is lost, or the prompt is refused"),
    "sees an image": Meaning("images are refused or not understood", avoidable=False),
    "speculates": Meaning("the drafter costs time and brings nothing"),
}

TOOLS = {
    "get_weather": ("The weather in a city now.", {"city": {"type": "string", "enum": ["Paris", "Oslo", "Lima"]}}),
    "get_stock": ("How many of an article are in stock.", {"article": {"type": "string", "enum": sorted(STOCK)}}),
    "get_time": ("The time in a city.", {"city": {"type": "string"}}),
    "read_file": ("The text of a file.", {"path": {"type": "string"}}),
    "list_files": ("The files in a folder.", {"path": {"type": "string"}}),
    "send_mail": ("Send a mail.", {"to": {"type": "string"}, "text": {"type": "string"}}),
}


def tool(name: str) -> dict[str, Any]:
    """A tool as the API describes it; every argument is required."""
    text, properties = TOOLS[name]
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": text, "parameters": parameters}}


class Smoke:
    """The checks of one endpoint."""

    def __init__(self, url: str, health: str, model: str, limit: float, expect: Expectation) -> None:
        self.health, self.model, self.expect = health, model, expect
        self.sense = not expect.random_weights
        self.endpoint = Endpoint(url.rstrip("/"), model, limit, ends=self.sense)

    def checks(self) -> list[Check]:
        """All that this endpoint is to be tried for, in order; each raises Failed or Noted."""
        expect = self.expect
        chosen: list[tuple[str, bool, Callable[[], str]]] = [
            ("is healthy", True, self.is_healthy),
            ("lists its model", True, self.lists_model),
            ("completes a chat", True, self.chats),
            ("writes sense" if self.sense else "writes nonsense, as random weights do", True, self.writes_sense),
            ("streams a chat", True, self.streams),
            ("keeps reasoning apart", expect.reasoning, self.keeps_reasoning_apart),
            ("calls a tool", expect.tools and self.sense, lambda: self.calls_tool("auto", stream=False)),
            ("streams a tool call", expect.tools and self.sense, lambda: self.calls_tool("auto", stream=True)),
            ("calls a required tool", expect.tools, lambda: self.calls_tool("required", stream=False)),
            ("streams a required tool call", expect.tools, lambda: self.calls_tool("required", stream=True)),
            ("calls tools step by step", expect.tools and self.sense, self.calls_step_by_step),
            ("takes two system messages", expect.tools, self.takes_two_system_messages),
            ("reads a long prompt", bool(expect.long_prompt), self.reads_long_prompt),
            ("sees an image", expect.images, self.sees_image),
            ("speculates", expect.speculation, self.speculates),
        ]
        return [(f"endpoint {name}", self._told(name, check)) for name, wanted, check in chosen if wanted]

    def _told(self, name: str, check: Callable[[], str]) -> Callable[[], str]:
        """`check`, with errors of the client as failures, and what a failure means."""

        def told() -> str:
            try:
                return check()
            except Noted:
                raise
            except Exception as error:
                meaning = MEANINGS.get(name)
                text = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
                if meaning:
                    text += f". It means: {meaning.text}"
                    if meaning.avoidable and self.expect.instead:
                        text += f". Recipe {self.expect.instead} avoids it"
                raise Failed(text) from error

        return told

    def is_healthy(self) -> str:
        self.endpoint.get(self.health)
        return "200"

    def lists_model(self) -> str:
        listed = {model.id: model for model in self.endpoint.client.models.list()}
        if self.model not in listed:
            raise Failed(f"it lists {', '.join(listed) or 'nothing'}, not {self.model}")
        context = getattr(listed[self.model], "max_model_len", None)
        if self.expect.context and context and context != self.expect.context:
            raise Failed(f"its context is {context} tokens, and the recipe says {self.expect.context}")
        return f"{self.model}, {context or 'unknown'} tokens"

    def chats(self) -> str:
        """One short completion, without sampling and without thinking."""
        answer = self.endpoint.ask("Reply with exactly: OK-7319", max_tokens=32)
        tokens = answer.usage.completion_tokens if answer.usage else 0
        if tokens < 1:
            raise Failed("the completion has no tokens")
        text = answer.choices[0].message.content or ""
        if self.sense and "OK-7319" not in text:
            raise Failed(f"asked for OK-7319, it says {text[:80]!r}")
        return f"{tokens} tokens: {text[:80]!r}"

    def writes_sense(self) -> str:
        """A whole paragraph: a broken kernel may still get a first word right."""
        text = self.endpoint.ask(PARAGRAPH, max_tokens=300).choices[0].message.content or ""
        nonsense = why_nonsense(text)
        if self.sense and nonsense:
            raise Failed(f"it writes nonsense ({nonsense}): {text[:120]!r}")
        if not self.sense and not nonsense:
            raise Failed(f"random weights were expected to write nonsense, and it writes {text[:120]!r}")
        return nonsense or f"{len(text.split())} words"

    def streams(self) -> str:
        began, first, pieces, finish = time.monotonic(), 0.0, 0, None
        question = {"role": "user", "content": "Count from 1 to 20."}
        for chunk in self.endpoint.stream([question], max_tokens=self.endpoint.room(96)):
            if not chunk.choices:
                continue
            finish = chunk.choices[0].finish_reason or finish
            if chunk.choices[0].delta.content or thoughts(chunk.choices[0].delta):
                first = first or time.monotonic() - began
                pieces += 1
        if pieces < 2 or finish is None:
            raise Failed(f"{pieces} pieces, finish_reason {finish}")
        self.endpoint.ended(finish)
        return f"{pieces} pieces, the first after {first:.2f} s"

    def keeps_reasoning_apart(self) -> str:
        messages = [{"role": "user", "content": "What is 17 * 23? Answer with the number."}]
        choice = self.endpoint.complete(messages, max_tokens=self.endpoint.room(64), extra_body=THINKING).choices[0]
        self.endpoint.ended(choice.finish_reason)
        message = choice.message
        content, reasoning = message.content or "", thoughts(message)
        if "<think>" in content or "</think>" in content:
            raise Failed(f"thoughts stand in the answer: {content[:80]!r}")
        if not reasoning:
            raise Failed(f"no reasoning; the answer is {content[:80]!r}")
        if self.sense and "391" not in content:
            raise Failed(f"17 * 23 is 391, not {content[:80]!r}")
        return f"{len(reasoning)} characters of reasoning"

    def calls_tool(self, choice: str, stream: bool) -> str:
        messages = [{"role": "user", "content": "What is the weather in Paris? Use the tool."}]
        answer = self.endpoint.call(messages, [tool("get_weather")], choice, stream)
        name, arguments = answer.first()
        # What guided decoding ends with differs between versions.
        if choice == "auto" and answer.finish != "tool_calls":
            raise Failed(f"finish_reason is {answer.finish}, not tool_calls: agents go by it")
        # The guided format names the tool; its arguments are the model's own.
        if name != "get_weather" or (self.sense and arguments.get("city") != "Paris"):
            raise Failed(f"it calls {name}({json.dumps(arguments)}), not get_weather for Paris")
        return f"get_weather({json.dumps(arguments)})"

    def calls_step_by_step(self) -> str:
        """Five results, one after the other, among six tools: what breaks over time shows here alone."""
        listed = ", ".join(STOCK)
        task = f"Look up the stock of {listed}, one at a time with get_stock. Then reply with the sum alone."
        messages: list[dict[str, Any]] = [{"role": "user", "content": task}]
        tools, asked = [tool(name) for name in TOOLS], set[str]()
        for step in range(1, 3 * len(STOCK) + 1):
            answer = self.endpoint.call(messages, tools, "auto", stream=step % 2 == 0)
            if not answer.calls:
                break
            calls = [{"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
                     for id, name, arguments in answer.calls]  # fmt: skip
            messages.append({"role": "assistant", "content": answer.content or None, "tool_calls": calls})
            for id, name, text in answer.calls:
                arguments = parsed(text, f"step {step}")
                article = str(arguments.get("article"))
                if name != "get_stock" or article not in STOCK:
                    raise Failed(f"step {step}: it calls {name}({text[:120]})")
                asked.add(article)
                messages.append({"role": "tool", "tool_call_id": id, "content": str(STOCK[article])})
        if asked != set(STOCK):
            raise Failed(f"it looked up {', '.join(sorted(asked)) or 'nothing'} of {listed}: {answer.content[:80]!r}")
        if str(sum(STOCK.values())) not in answer.content:
            raise Failed(f"the sum is {sum(STOCK.values())}, and it says {answer.content[:80]!r}")
        return f"{len(asked)} results"

    def takes_two_system_messages(self) -> str:
        messages = [
            {"role": "system", "content": "You are brief."},
            {"role": "system", "content": "You speak English."},
            {"role": "user", "content": "Say hello."},
        ]
        try:
            self.endpoint.complete(messages, max_tokens=16)
        except openai.BadRequestError as error:
            # Qwen's own template allows one; it serves all the same.
            if self.expect.merges_system or "System message must be at the beginning" not in str(error):
                raise
            raise Noted(
                "refused: the chat template allows one. OpenCode sends two; a recipe with the chat-template patch "
                "`system: merge` takes them"
            ) from error
        return "200"

    def reads_long_prompt(self) -> str:
        per_token = len(FILLER * 20) / self.endpoint.tokens(FILLER * 20)
        count = max(1, int(self.expect.long_prompt * per_token / len(FILLER)))
        fact = f"Remember: the magic word is {MAGIC}. "
        text = fact + FILLER * count + "What is the magic word? Reply with it alone."
        answer = self.endpoint.ask(text, max_tokens=32)
        content, read = answer.choices[0].message.content or "", answer.usage.prompt_tokens if answer.usage else 0
        if read < self.expect.long_prompt / 2:
            raise Failed(f"it read {read} tokens of about {self.expect.long_prompt}")
        if self.sense and MAGIC not in content:
            raise Failed(f"after {read} tokens the magic word is {content[:80]!r}")
        return f"{read} tokens"

    def sees_image(self) -> str:
        url = "data:image/png;base64," + base64.b64encode(red_square()).decode()
        parts = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "Which colour is this square? One word."},
        ]
        messages = [{"role": "user", "content": parts}]
        choice = self.endpoint.complete(messages, max_tokens=self.endpoint.room(32)).choices[0]
        self.endpoint.ended(choice.finish_reason)
        text = choice.message.content or ""
        if self.sense and "red" not in text.lower():
            raise Failed(f"a red square is {text[:80]!r} to it")
        return repr(text[:40])

    def speculates(self) -> str:
        before = self.endpoint.speculation()
        self.endpoint.ask("Count from 1 to 60, separated by commas.", max_tokens=200)
        after = self.endpoint.speculation()
        if not before or not after:
            raise Noted("it counts no drafted tokens in /metrics, so how many of them are accepted is not known")
        drafted, accepted = (now - then for now, then in zip(after, before, strict=True))
        if drafted <= 0:
            raise Failed("nothing was drafted")
        if accepted / drafted < 0.05 and self.sense:
            raise Failed(f"{accepted:.0f} of {drafted:.0f} drafted tokens were accepted")
        return f"{accepted / drafted:.0%} of {drafted:.0f} drafted tokens were accepted"


def why_nonsense(text: str) -> str:
    """Why a text that should be an English paragraph is none; empty for one that may be."""
    words = re.findall(r"[a-z']+", text.lower())
    if not words:
        return "no words"
    if found := re.search(r"<\|[a-z_]+\|>", text):
        return f"the special token {found[0]} in it"
    if found := re.search(r"(\S)\1{9,}", text):
        return f"{found[0][:3]} over and over"
    odd = sum(char == "\N{REPLACEMENT CHARACTER}" or (ord(char) < 32 and not char.isspace()) for char in text)
    if odd > 2:
        return f"{odd} characters that no text has"
    common = sum(word in COMMON for word in words) / len(words)
    if len(words) >= 10 and common < 0.12:
        return f"{common:.0%} common words"
    if len(words) >= 30 and len(set(words)) / len(words) < 0.2:
        return "the same words over and over"
    phrases = [tuple(words[at : at + PHRASE]) for at in range(len(words) - PHRASE + 1)]
    if len(phrases) > PHRASE and len(set(phrases)) / len(phrases) < 0.7:
        return "the same phrases over and over"
    return ""


def red_square(side: int = 64) -> bytes:
    """A PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + b"\xff\0\0" * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * side)) + chunk(b"IEND", b"")
    )
