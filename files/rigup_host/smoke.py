"""Try out what an endpoint must be able to do, with the requests that its users would send.

The checks follow from what the recipe is for (`Expectation`), from the health check to tool calls in several steps and
an image. A failed check says what that means for users, and which recipe avoids it. From a checkpoint with random
weights, as in the embedded lab, nonsense is expected, and meaningful text is a failure.

Exit status: 0 all checks passed, 1 a check failed.
"""

from __future__ import annotations

import argparse
import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import openai

from rigup_host import checks, http
from rigup_host.chat import Endpoint, thoughts
from rigup_host.checks import Check, Failed, Noted
from rigup_host.meanings import MEANINGS
from rigup_host.prompts import FILLER, MAGIC, PARAGRAPH, STOCK, red_square, tool, why_nonsense
from rigup_host.tool_loop import look_up

# The grammar of a required call allows any number of blanks between its words (vllm-project/vllm#54497), and nothing
# makes random weights choose a word.
CUT_OFF = "the call was cut off at the limit of the request, which says nothing about a model with random weights"


def main(argv: list[str]) -> int:
    """Run the checks; return the exit status."""
    parser = argparse.ArgumentParser(prog="rigup-host smoke", description="Try out what an endpoint is for.")
    parser.add_argument("--url", required=True, help="the endpoint's base URL, such as http://127.0.0.1:8000")
    parser.add_argument("--health", default="/health", help="path that answers 200")
    parser.add_argument("--model", required=True, help="name under which the model is served")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one request")
    parser.add_argument("--expect", type=json.loads, default={}, help="JSON object with the fields of Expectation")
    checks.add_arguments(parser)
    options = parser.parse_args(argv)
    smoke = Smoke(options.url, options.health, options.model, options.timeout, Expectation(**options.expect))
    return checks.record("endpoint", smoke.checks(), options)


@dataclass(frozen=True)
class Expectation:
    """What the endpoint is for.

    `long_prompt` and `context` are in tokens, as the recipe has them. `instead` is the recipe to use if this one
    fails. With `random_weights` the checkpoint's weights are random, and what they write is nonsense. `thinking` is the
    key of `chat_template_kwargs` that turns thinking on and off.
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
    thinking: str = "enable_thinking"


class Smoke:
    """The checks of one endpoint."""

    def __init__(self, url: str, health: str, model: str, limit: float, expect: Expectation) -> None:
        self.health, self.model, self.expect = health, model, expect
        self.sense = not expect.random_weights
        self.endpoint = Endpoint(url.rstrip("/"), model, limit, ends=self.sense, thinking=expect.thinking)

    def checks(self) -> list[Check]:
        """Return the checks for what this endpoint is for, in order; each may raise Failed or Noted."""
        expect = self.expect
        chosen: list[tuple[str, bool, Callable[[], str]]] = [
            ("is healthy", True, self.is_healthy),
            ("lists its model", True, self.lists_model),
            ("completes a chat", True, self.chats),
            (
                "writes meaningful text" if self.sense else "writes nonsense, as random weights do",
                True,
                self.writes_text,
            ),
            ("streams a chat", True, self.streams),
            ("separates its reasoning", expect.reasoning, self.separates_reasoning),
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
        return [(f"endpoint {name}", self._explained(name, check)) for name, applies, check in chosen if applies]

    def _explained(self, name: str, check: Callable[[], str]) -> Callable[[], str]:
        """Return `check` such that errors of the client are failures too, and failures say what they mean."""

        def explained() -> str:
            try:
                return check()
            except Noted:
                raise
            except Exception as error:
                meaning = MEANINGS.get(name)
                text = str(error) if isinstance(error, Failed | http.NoAnswer) else f"{type(error).__name__}: {error}"
                if meaning:
                    text += f". This means: {meaning.text}"
                    if meaning.avoidable and self.expect.instead:
                        text += f". Recipe {self.expect.instead} avoids it"
                raise Failed(text) from error

        return explained

    def is_healthy(self) -> str:
        """Check that the health check answers 200."""
        status = http.get(self.endpoint.url + self.health, self.endpoint.limit).status
        if status != 200:
            raise Failed(f"{self.health} answered {status}")
        return "200"

    def lists_model(self) -> str:
        """Check that the list of models has the name, with the recipe's context if the engine states one."""
        listed = {model.id: model for model in self.endpoint.client.models.list()}
        if self.model not in listed:
            raise Failed(f"it lists {', '.join(listed) or 'nothing'}, not {self.model}")
        context = getattr(listed[self.model], "max_model_len", None)
        if self.expect.context and context and context != self.expect.context:
            raise Failed(f"its context is {context} tokens, and the recipe says {self.expect.context}")
        return f"{self.model}, {context or 'unknown'} tokens"

    def chats(self) -> str:
        """Check that a short completion, without sampling and without thinking, has the right text."""
        answer = self.endpoint.ask("Reply with exactly: OK-7319", max_tokens=32)
        tokens = answer.usage.completion_tokens if answer.usage else 0
        if tokens < 1:
            raise Failed("the completion has no tokens")
        text = answer.choices[0].message.content or ""
        if self.sense and "OK-7319" not in text:
            raise Failed(f"asked for OK-7319, it answered {text[:80]!r}")
        return f"{tokens} tokens: {text[:80]!r}"

    def writes_text(self) -> str:
        """Check that a complete paragraph makes sense: even a broken kernel may get a first word right."""
        text = self.endpoint.ask(PARAGRAPH, max_tokens=300).choices[0].message.content or ""
        nonsense = why_nonsense(text)
        if self.sense and nonsense:
            raise Failed(f"it writes nonsense ({nonsense}): {text[:120]!r}")
        if not self.sense and not nonsense:
            raise Failed(f"expected nonsense from random weights, but it writes {text[:120]!r}")
        return nonsense or f"{len(text.split())} words"

    def streams(self) -> str:
        """Check that an answer comes in several pieces and ends."""
        began, first, pieces, finish = time.monotonic(), 0.0, 0, None
        question = {"role": "user", "content": "Count from 1 to 20."}
        for chunk in self.endpoint.stream([question], max_tokens=self.endpoint.limit_tokens(96)):
            if not chunk.choices:
                continue
            finish = chunk.choices[0].finish_reason or finish
            if chunk.choices[0].delta.content or thoughts(chunk.choices[0].delta):
                first = first or time.monotonic() - began
                pieces += 1
        if pieces < 2 or finish is None:
            raise Failed(f"{pieces} pieces, finish_reason {finish}")
        self.endpoint.check_end(finish)
        return f"{pieces} pieces, the first after {first:.2f} s"

    def separates_reasoning(self) -> str:
        """Check that thoughts come in a field of their own, and that the answer is right."""
        messages = [{"role": "user", "content": "What is 17 * 23? Answer with the number."}]
        choice = self.endpoint.complete(
            messages, max_tokens=self.endpoint.limit_tokens(64), extra_body=self.endpoint.body(thinks=True)
        ).choices[0]
        self.endpoint.check_end(choice.finish_reason)
        message = choice.message
        content, reasoning = message.content or "", thoughts(message)
        if "<think>" in content or "</think>" in content:
            raise Failed(f"the answer contains thoughts: {content[:80]!r}")
        if not reasoning:
            raise Failed(f"no reasoning; the answer is {content[:80]!r}")
        if self.sense and "391" not in content:
            raise Failed(f"17 * 23 is 391, not {content[:80]!r}")
        return f"{len(reasoning)} characters of reasoning"

    def calls_tool(self, choice: str, stream: bool) -> str:
        """Check that one question leads to one call of the right tool; `choice` is `auto` or `required`."""
        messages = [{"role": "user", "content": "What is the weather in Paris? Use the tool."}]
        try:
            answer = self.endpoint.call(messages, [tool("get_weather")], choice, stream)
        except openai.APIStatusError as error:
            # Some versions of vLLM parse the cut-off call, and answer with the parser's error.
            if self.sense or "Invalid JSON: EOF while parsing" not in str(error):
                raise
            raise Noted(CUT_OFF) from error
        if not self.sense and answer.finish == "length":
            raise Noted(CUT_OFF)
        name, arguments = answer.first()
        # After guided decoding the reason differs between versions.
        if choice == "auto" and answer.finish != "tool_calls":
            raise Failed(f"finish_reason is {answer.finish}, not tool_calls, which agents rely on")
        # Guided decoding determines the tool; the arguments are from the model.
        if name != "get_weather" or (self.sense and arguments.get("city") != "Paris"):
            raise Failed(f"it calls {name}({json.dumps(arguments)}), not get_weather for Paris")
        return f"get_weather({json.dumps(arguments)})"

    def calls_step_by_step(self) -> str:
        """Check five calls in a row; every second one is streamed."""
        return f"{look_up(self.endpoint, STOCK, lambda step: step % 2 == 0)} results"

    def takes_two_system_messages(self) -> str:
        """Check that a chat with two system messages is accepted."""
        messages = [
            {"role": "system", "content": "You are brief."},
            {"role": "system", "content": "You speak English."},
            {"role": "user", "content": "Say hello."},
        ]
        try:
            self.endpoint.complete(messages, max_tokens=16)
        except openai.BadRequestError as error:
            # Qwen's own template allows only one. The endpoint serves nevertheless.
            if self.expect.merges_system or "System message must be at the beginning" not in str(error):
                raise
            raise Noted(
                "refused: the chat template allows only one. OpenCode sends two; a recipe with the chat-template patch "
                "`system: merge` accepts them"
            ) from error
        return "200"

    def reads_long_prompt(self) -> str:
        """Check that a word at the beginning of a long prompt is found."""
        per_token = len(FILLER * 20) / self.endpoint.count_tokens(FILLER * 20)
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
        """Check that the color of an image is recognized."""
        url = "data:image/png;base64," + base64.b64encode(red_square()).decode()
        parts = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "Which color is this square? One word."},
        ]
        messages = [{"role": "user", "content": parts}]
        choice = self.endpoint.complete(messages, max_tokens=self.endpoint.limit_tokens(32)).choices[0]
        self.endpoint.check_end(choice.finish_reason)
        text = choice.message.content or ""
        if self.sense and "red" not in text.lower():
            raise Failed(f"asked for the color of a red square, it answered {text[:80]!r}")
        return repr(text[:40])

    def speculates(self) -> str:
        """Check that drafted tokens are accepted."""
        before = self.endpoint.speculation()
        self.endpoint.ask("Count from 1 to 60, separated by commas.", max_tokens=200)
        after = self.endpoint.speculation()
        if not before or not after:
            raise Noted("/metrics does not count drafted tokens, so the share of accepted ones is unknown")
        drafted, accepted = (now - then for now, then in zip(after, before, strict=True))
        if drafted <= 0:
            raise Failed("nothing was drafted")
        if accepted / drafted < 0.05 and self.sense:
            raise Failed(f"{accepted:.0f} of {drafted:.0f} drafted tokens were accepted")
        return f"{accepted / drafted:.0%} of {drafted:.0f} drafted tokens were accepted"
