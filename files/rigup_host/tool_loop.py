"""A task that needs several tool calls in a row: only this shows what breaks over time.

`rigup-host tool-calls` gives it to an endpoint many times, and prints a JSON line for each time: `number`, `stream`,
`error` (a kind; empty if all was right) and `detail`. Half of them are streamed. The numbers and the order differ each
time, so that the tries are not one try repeated. It needs the client's virtual environment.

Exit status: 0, whatever the endpoint answered.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping
from typing import Any

import openai

from rigup_host.bench.output import emit
from rigup_host.chat import Endpoint, parsed
from rigup_host.checks import Failed
from rigup_host.prompts import STOCK, TOOLS, tool


class Wrong(Failed):
    """What was wrong with the calls; `kind` is short and always the same for the same mistake."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def main(argv: list[str]) -> int:
    """Run the task as often as asked."""
    parser = argparse.ArgumentParser(prog="rigup-host tool-calls", description="Count tool calls that go wrong.")
    parser.add_argument("--url", required=True, help="the endpoint's base URL, such as http://127.0.0.1:8000")
    parser.add_argument("--model", required=True, help="name under which the model is served")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one request")
    parser.add_argument("--thinking", default="enable_thinking", help="the key that turns thinking on and off")
    parser.add_argument("--times", type=int, required=True, help="how often to give it the task")
    options = parser.parse_args(argv)
    endpoint = Endpoint(options.url.rstrip("/"), options.model, options.timeout, ends=True, thinking=options.thinking)
    for number in range(options.times):
        stream = number % 2 == 1
        kind, detail = outcome(endpoint, stock_of(number), stream)
        emit("loop", number=number, stream=stream, error=kind, detail=detail[:200])
    emit("end")
    return 0


def stock_of(number: int) -> dict[str, int]:
    """Return the articles in an order of their own, with numbers of their own, the same for the same `number`."""
    chosen = random.Random(number)
    articles = chosen.sample(sorted(STOCK), len(STOCK))
    return {article: chosen.randrange(2, 100) for article in articles}


def outcome(endpoint: Endpoint, stock: Mapping[str, int], stream: bool) -> tuple[str, str]:
    """Return what went wrong, as a kind and in words; two empty texts if nothing did."""
    try:
        look_up(endpoint, stock, lambda step: stream)
    except Wrong as wrong:
        return wrong.kind, str(wrong)
    except openai.APITimeoutError as error:
        return "timeout", str(error)
    except openai.APIStatusError as error:
        return f"status {error.status_code}", str(error)
    except openai.APIConnectionError as error:
        return "no connection", str(error)
    except Exception as error:  # The client has no common error for answers that it cannot parse.
        return "broken answer", f"{type(error).__name__}: {error}"
    return "", ""


def look_up(endpoint: Endpoint, stock: Mapping[str, int], streams: Callable[[int], bool]) -> int:
    """Let the model look up each article of `stock`, with six tools to choose from; return how many results it got.

    `streams` says whether a step, counted from 1, is streamed. Raise Wrong, or an error of `openai`.
    """
    task = f"Look up the stock of {', '.join(stock)}, one at a time with get_stock. Then reply with the sum alone."
    messages: list[dict[str, Any]] = [{"role": "user", "content": task}]
    tools, asked, content = [tool(name) for name in TOOLS], set[str](), ""
    for step in range(1, 3 * len(stock) + 1):
        answer = endpoint.call(messages, tools, "auto", stream=streams(step))
        content = answer.content
        if not answer.calls:
            break
        calls = [{"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
                 for id, name, arguments in answer.calls]  # fmt: skip
        messages.append({"role": "assistant", "content": content or None, "tool_calls": calls})
        for id, name, text in answer.calls:
            try:
                article = str(parsed(text, f"step {step}").get("article"))
            except Failed as failed:
                raise Wrong("broken arguments", str(failed)) from failed
            if name != "get_stock" or article not in stock:
                raise Wrong("wrong call", f"step {step}: it calls {name}({text[:120]})")
            asked.add(article)
            messages.append({"role": "tool", "tool_call_id": id, "content": str(stock[article])})
    if asked != set(stock):
        looked_up = ", ".join(sorted(asked)) or "nothing"
        raise Wrong("missing calls", f"it looked up {looked_up} of {', '.join(stock)}: {content[:80]!r}")
    if str(sum(stock.values())) not in content:
        raise Wrong("wrong answer", f"the sum is {sum(stock.values())}, and it says {content[:80]!r}")
    return len(asked)
