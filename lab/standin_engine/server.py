"""A stand-in for an engine: starts in a second, answers by rule in vLLM's wire format, and misbehaves on request.

It follows short instructions, calls tools, reasons, and recognizes a red image, which random weights cannot do. It
ignores vLLM's options that it does not need. Its own options are for tests:

--lab-load-seconds N  how long it "loads" before it listens
--lab-word-seconds N  how long each streamed word takes
--lab-fault NAME      the fault to simulate, one of FAULTS

One file on purpose: the image contains only this file, and tests run it as a program.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = {
    "none": "nothing",
    "never-healthy": "listens, but its health check answers 503 forever",
    "dies-at-load": "the shapes of the weights do not fit, as in an image from before vLLM's pull request 35156",
    "stalls": "hangs after NCCL's first log line",
    "dies-at-first-request": "the engine exits at the first chat request",
    "drips": "answers a chat with endless blanks, which no read timeout of a client ends",
    "no-streamed-tools": "streamed tool calls lose their opening brace and are not JSON",
    "garbage": "writes what a broken FP4 kernel writes",
    "babble": "writes random tokens",
    "endless": "repeats one sensible sentence until it is cut off",
    "thoughts-in-content": "no reasoning parser: the answer contains <think>",
    "no-tools": "no tool parser: the answer contains the call as XML",
    "required-as-xml": "tool_choice required returns XML in the content (vLLM issue 38106)",
    "required-as-blanks": "fills a required call with blanks up to the limit of the request (vLLM issue 54497)",
    "required-cut-off": "parses a required call that was cut off, and answers with the parser's error",
    "corrupt-third-step": "corrupts arguments in the third step (speculation with prefix caching)",
    "one-system-message": "refuses a second system message, as Qwen's template does",
    "forgetful": "reads only the last 2000 characters of a prompt",
    "blind": "refuses images",
    "drafter-broken": "accepts no drafted token",
    "silent-drafter": "counts no drafted tokens in its metrics",
    "no-streamed-usage": "does not count the tokens of streamed answers",
    "stops-at-tools": "ends a tool call with finish_reason stop",
}

SEA = (
    "The sea is a wide and restless field of water that covers most of the earth. It is blue on a clear day and grey "
    "in a storm, and it is never quite still. The waves come in from far away and break on the sand, and the wind "
    "carries the smell of salt to the land. For as long as there have been people they have lived with the sea, "
    "fished in it, sailed on it and told stories of it to their children in the long evenings."
)


def log(text: str) -> None:
    print(f"(APIServer pid={os.getpid()}) INFO {time.strftime('%m-%d %H:%M:%S')} {text}", flush=True)


def complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def said(message: dict[str, Any]) -> str:
    """Return the text of a message, whether it is a string or a list of parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def first_pixel(url: str) -> tuple[int, int, int]:
    """Return the first pixel of an 8-bit RGB PNG in a data URL."""
    data, at, pixels = base64.b64decode(url.partition(",")[2]), 8, b""
    while at < len(data):
        (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        pixels += data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    red, green, blue = zlib.decompress(pixels)[1:4]
    return red, green, blue


class Refusal(Exception):
    """A request answered with 400."""


class Mind:
    """The rules that derive an answer from the last messages."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return `content`, `reasoning` and `calls` (name and arguments as text). Raises Refusal."""
        messages = body["messages"]
        systems = [message for message in messages if message["role"] == "system"]
        if len(systems) > 1 and self.fault == "one-system-message":
            raise Refusal("System message must be at the beginning.")
        tools = [entry["function"]["name"] for entry in body.get("tools") or []]
        found = self.call(messages, tools) if tools else None
        if found:
            return self.with_faults(found, body.get("tool_choice") == "required", bool(body.get("stream")))
        return self.text(messages, thinks=(body.get("chat_template_kwargs") or {}).get("enable_thinking", True))

    def call(self, messages: list[dict[str, Any]], tools: list[str]) -> dict[str, Any] | None:
        task = next(said(message) for message in messages if message["role"] == "user")
        if "get_stock" in tools and "stock of" in task:
            articles = re.findall(r"\b[A-Z]\d\b", task)
            results = [said(message) for message in messages if message["role"] == "tool"]
            if len(results) < len(articles):
                step = len(results) + 1
                return {"name": "get_stock", "arguments": json.dumps({"article": articles[len(results)]}), "step": step}
            return None
        city = re.search(r"in ([A-Z]\w+)", task)
        return {"name": tools[0], "arguments": json.dumps({"city": city[1] if city else "Paris"}), "step": 1}

    def with_faults(self, call: dict[str, Any], required: bool, stream: bool) -> dict[str, Any]:
        xml = f"<tool_call>\n<function={call['name']}>\n</function>\n</tool_call>"
        if self.fault == "no-tools" or (required and self.fault == "required-as-xml"):
            return {"content": xml}
        if required and self.fault == "required-as-blanks":
            return {"content": " \n" * 96, "cut": True}
        if required and self.fault == "required-cut-off":
            raise Refusal(
                "1 validation error for list[function-wrap[__log_extra_fields__()]]\n"
                "  Invalid JSON: EOF while parsing a list at line 96 column 0"
            )
        arguments = call["arguments"]
        if stream and self.fault == "no-streamed-tools":
            arguments = arguments.removeprefix("{")
        if call["step"] == 3 and self.fault == "corrupt-third-step":
            arguments = arguments.replace('"', "!", 2)
        return {"calls": [(call["name"], arguments)]}

    def text(self, messages: list[dict[str, Any]], thinks: bool) -> dict[str, Any]:
        last = messages[-1]
        text = said(last)
        if self.fault == "garbage":
            return {"content": "!" * 64}
        if self.fault == "babble":
            return {"content": "worturn ay ks tuft eks amet aboutt asD " * 8, "reasoning": "wrong" if thinks else ""}
        if self.fault == "endless":
            return {"content": f"{SEA} " * 4, "cut": True}
        parts = [part for part in last.get("content") or [] if isinstance(part, dict)]
        images = [part["image_url"]["url"] for part in parts if "image_url" in part]
        if images and self.fault == "blind":
            raise Refusal("At most 0 image(s) may be provided in one prompt.")
        if images:
            return {"content": "Red" if first_pixel(images[0]) == (255, 0, 0) else "Another colour"}
        if self.fault == "forgetful":
            text = text[-2000:]
        if exact := re.search(r"Reply with exactly: (\S+)", text):
            return {"content": exact[1]}
        if "magic word" in text:
            magic = re.search(r"magic word is (\S+)\.", text)
            return {"content": magic[1] if magic else "I do not know."}
        if product := re.search(r"(\d+) \* (\d+)", text):
            result = str(int(product[1]) * int(product[2]))
            thought = f"{product[0]} is {result}."
            if self.fault == "thoughts-in-content":
                return {"content": f"<think>{thought}</think>{result}"}
            return {"content": result, "reasoning": thought if thinks else ""}
        if count := re.search(r"Count from 1 to (\d+)", text):
            return {"content": ", ".join(map(str, range(1, int(count[1]) + 1)))}
        numbers = [int(said(message)) for message in messages if message["role"] == "tool"]
        return {"content": f"The sum is {sum(numbers)}." if numbers else SEA}


class Handler(BaseHTTPRequestHandler):
    """vLLM's HTTP endpoints, as far as clients use them."""

    protocol_version = "HTTP/1.1"
    server: Engine
    refused = False

    def do_GET(self) -> None:
        pages = {"/health": b"{}", "/metrics": self.server.metrics().encode()}
        card = {"id": self.server.model, "object": "model", "owned_by": "vllm", "max_model_len": self.server.context}
        pages["/v1/models"] = json.dumps({"object": "list", "data": [card]}).encode()
        healthy = self.server.mind.fault != "never-healthy"
        status = 404 if self.path not in pages else 200 if healthy else 503
        self.reply(status, pages.get(self.path, b""))

    def do_POST(self) -> None:
        if self.refused:
            # vLLM 0.20.2 and 0.25.1 close the connection on which they refused a request, and do not announce it.
            self.close_connection = True
            return None
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.mind.fault == "dies-at-first-request":
            complain("(EngineCore pid=25) ERROR [core.py] EngineCore encountered a fatal error.")
            text = "EngineCore encountered an issue. See stack trace (above) for the root cause."
            error: dict[str, Any] = {"message": text, "type": "InternalServerError", "code": 500}
            self.reply(500, json.dumps({"error": error}).encode())
            os._exit(1)
        if self.server.mind.fault == "drips":
            self.drip()
        if body.get("model") not in (None, self.server.model):
            # vLLM 0.32, entrypoints/serve/engine/serving.py.
            text = f"The model `{body['model']}` does not exist. Valid aliases: {self.server.model}."
            error = {"message": text, "type": "NotFoundError", "param": "model", "code": 404}
            return self.reply(404, json.dumps({"error": error}).encode())
        with self.server.running():
            return self.chat(body)

    def chat(self, body: dict[str, Any]) -> None:
        try:
            answer = self.server.mind.answer(body)
        except Refusal as refusal:
            error = {"message": str(refusal), "type": "BadRequestError", "param": None, "code": 400}
            self.refused = True
            return self.reply(400, json.dumps({"error": error}).encode())
        self.server.count_drafts()
        prompt = sum(len(said(message)) for message in body["messages"]) // 4 + 8
        pieces = re.findall(r"\S+\s*", answer.get("content") or "") or [""]
        pieces = pieces[: body.get("max_tokens") or len(pieces)]
        tokens = max(1, len(pieces))
        if not body.get("stream"):
            self.server.count_tokens(tokens)
        usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
        if body.get("stream"):
            return self.stream(
                answer, pieces, usage if (body.get("stream_options") or {}).get("include_usage") else None
            )
        calls = [self.tool_call(at, name, arguments) for at, (name, arguments) in enumerate(answer.get("calls") or [])]
        content = None if calls else "".join(pieces)
        reasoning = answer.get("reasoning") or None
        message = {"role": "assistant", "content": content, "tool_calls": calls, "reasoning": reasoning}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason(answer)}
        whole = {**self.head("chat.completion"), "choices": [choice], "usage": usage}
        self.reply(200, json.dumps(whole).encode())

    def drip(self) -> None:
        """Send blanks until the client disconnects."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(1 << 40))
        self.end_headers()
        while True:
            self.wfile.write(b" ")
            time.sleep(0.1)

    def stream(self, answer: dict[str, Any], pieces: list[str], usage: dict[str, int] | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for delta in [{"role": "assistant", "content": ""}, *self.deltas(answer, pieces)]:
            time.sleep(self.server.pause)
            self.server.count_tokens(1)
            self.event(delta)
        self.event({"content": ""}, self.finish_reason(answer))
        if usage and self.server.mind.fault != "no-streamed-usage":
            last = {**self.head("chat.completion.chunk"), "choices": [], "usage": usage}
            self.wfile.write(f"data: {json.dumps(last)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def finish_reason(self, answer: dict[str, Any]) -> str:
        calls = bool(answer.get("calls")) and self.server.mind.fault != "stops-at-tools"
        return "tool_calls" if calls else "length" if answer.get("cut") else "stop"

    def deltas(self, answer: dict[str, Any], pieces: list[str]) -> Iterator[dict[str, Any]]:
        if answer.get("reasoning"):
            yield {"reasoning": answer["reasoning"]}
        if not answer.get("calls"):
            yield from ({"content": piece} for piece in pieces)
        for at, (name, arguments) in enumerate(answer.get("calls") or []):
            yield {"tool_calls": [self.tool_call(at, name, "")]}
            for start in range(0, len(arguments), 5):
                yield {"tool_calls": [{"index": at, "function": {"arguments": arguments[start : start + 5]}}]}

    def tool_call(self, at: int, name: str, arguments: str) -> dict[str, Any]:
        function = {"name": name, "arguments": arguments}
        made = f"chatcmpl-tool-{time.monotonic_ns():x}{at}"
        return {"id": made, "type": "function", "index": at, "function": function}

    def event(self, delta: dict[str, Any], finish_reason: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = {**self.head("chat.completion.chunk"), "choices": [choice]}
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": kind, "created": int(time.time()), "model": self.server.model}

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if body.startswith(b"{") else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        log(f"{self.client_address[0]} - {format % args}")


class Engine(ThreadingHTTPServer):
    """The server and its counters."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], model: str, context: int, fault: str, pause: float) -> None:
        super().__init__(address, Handler)
        self.pause = pause
        self.model, self.context, self.mind = model, context, Mind(fault)
        self.drafted = self.accepted = self.generated = self.requests = 0
        self.lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a request as one that runs."""
        with self.lock:
            self.requests += 1
        try:
            yield
        finally:
            with self.lock:
                self.requests -= 1

    def count_tokens(self, tokens: int) -> None:
        with self.lock:
            self.generated += tokens

    def count_drafts(self) -> None:
        self.drafted += 100
        self.accepted += 0 if self.mind.fault == "drafter-broken" else 80

    def metrics(self) -> str:
        """Return them in vLLM's format (vllm/v1/metrics/loggers.py): the cache is full with a hundred requests."""
        labels = f'{{engine="0",model_name="{self.model}"}}'
        counted = {
            "num_requests_running": self.requests,
            "num_requests_waiting": 0,
            "kv_cache_usage_perc": min(1.0, self.requests / 100),
            "generation_tokens_total": self.generated,
        }
        if self.mind.fault != "silent-drafter":
            counted |= {
                "spec_decode_num_draft_tokens_total": self.drafted,
                "spec_decode_num_accepted_tokens_total": self.accepted,
            }
        return "".join(f"vllm:{name}{labels} {float(number)}\n" for name, number in counted.items())


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--served-model-name", default="model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-model-len", type=int, default=262144)
    parser.add_argument("--lab-load-seconds", type=float, default=1.0)
    parser.add_argument("--lab-word-seconds", type=float, default=0.0)
    parser.add_argument("--lab-fault", choices=FAULTS, default="none")
    return parser.parse_known_args(argv)[0]


def load(options: argparse.Namespace) -> None:
    """Pretend to load the model; exit or hang if that is the fault to simulate."""
    log("vLLM is using nccl==2.28.3")
    if options.lab_fault == "stalls":
        while True:
            time.sleep(3600)
    for part in range(1, 5):
        log(f"Loading safetensors checkpoint shards: {25 * part}% Completed")
        time.sleep(options.lab_load_seconds / 4)
    if options.lab_fault == "dies-at-load":
        complain(
            "(EngineCore pid=25) ERROR [core.py] AssertionError: Tried to load weights of size torch.Size([512, 4096]) "
            "to a parameter of size torch.Size([512, 2048])\n"
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
        )
        raise SystemExit(1)


def main() -> None:
    options = parse()
    load(options)
    address, name = (options.host, options.port), options.served_model_name
    engine = Engine(address, name, options.max_model_len, options.lab_fault, options.lab_word_seconds)
    log(f"Starting vLLM server on http://{options.host}:{engine.server_port}")
    engine.serve_forever()


if __name__ == "__main__":
    main()
