"""A stand-in for an engine: it starts in a second, speaks the OpenAI protocol, and misbehaves on request.

It takes vLLM's options and passes over those it has no use for. Its own are for tests:

--lab-load-seconds N  how long it "loads" before it listens
--lab-fault NAME      what is wrong with it, one of FAULTS
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = {
    "none": "nothing",
    "never-healthy": "it listens, and its health check answers 503 for ever",
    "dies-at-load": "the shapes of the weights do not fit, as in an image from before vLLM's pull request 35156",
    "stalls": "after NCCL's first line it says and does nothing more",
    "dies-at-first-request": "the engine ends with the first chat",
    "no-streamed-tools": "tool calls work, but the streamed ones carry text that is no JSON",
}

WORDS = ("The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "the", "band", "plays", "on.")
CITY = "Paris"


def log(text: str) -> None:
    print(f"(APIServer pid={os.getpid()}) INFO {time.strftime('%m-%d %H:%M:%S')} {text}", flush=True)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--served-model-name", default="model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-model-len", type=int, default=262144)
    parser.add_argument("--lab-load-seconds", type=float, default=1.0)
    parser.add_argument("--lab-fault", choices=FAULTS, default="none")
    return parser.parse_known_args(argv)[0]


def load(options: argparse.Namespace) -> None:
    """Be busy for as long as loading takes; ends the process, or never returns, where that is its fault."""
    log("vLLM is using nccl==2.28.3")
    if options.lab_fault == "stalls":
        while True:
            time.sleep(3600)
    for part in range(1, 5):
        log(f"Loading safetensors checkpoint shards: {25 * part}% Completed")
        time.sleep(options.lab_load_seconds / 4)
    if options.lab_fault == "dies-at-load":
        print(
            "(EngineCore pid=25) ERROR [core.py] AssertionError: Tried to load weights of size torch.Size([512, 4096]) "
            "to a parameter of size torch.Size([512, 2048])\n"
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
            file=sys.stderr,
            flush=True,
        )
        raise SystemExit(1)


def words_of(asked: dict[str, Any]) -> str:
    """The answer's text: what it was asked to repeat, else so many words."""
    last = str(asked["messages"][-1].get("content") or "")
    if "exactly: " in last:
        return last.partition("exactly: ")[2].split()[0].strip(".\"'")
    limit = int(asked.get("max_tokens") or asked.get("max_completion_tokens") or 64)
    return " ".join(WORDS[index % len(WORDS)] for index in range(limit))


def call_of(asked: dict[str, Any]) -> dict[str, Any] | None:
    """The tool call that the question asks for; None where there are no tools or their results are in."""
    tools, choice = asked.get("tools") or [], asked.get("tool_choice", "auto")
    results = sum(message.get("role") == "tool" for message in asked["messages"])
    if not tools or choice == "none" or (results and choice == "auto" and results >= len(tools)):
        return None
    function = tools[min(results, len(tools) - 1)]["function"]
    schema = function.get("parameters", {})
    values = {name: value_for(schema["properties"][name]) for name in schema.get("required", [])}
    return {"name": function["name"], "arguments": json.dumps(values)}


def value_for(schema: dict[str, Any]) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    return {"integer": 1, "number": 1.0, "boolean": True, "array": [], "object": {}}.get(schema.get("type", ""), CITY)


def pieces(text: str, size: int = 8) -> Iterator[str]:
    for start in range(0, len(text), size):
        yield text[start : start + size]


class Handler(BaseHTTPRequestHandler):
    options: argparse.Namespace
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer({}, 503 if self.options.lab_fault == "never-healthy" else 200)
        elif self.path == "/v1/models":
            name, length = self.options.served_model_name, self.options.max_model_len
            self.answer({"object": "list", "data": [{"id": name, "object": "model", "max_model_len": length}]})
        elif self.path == "/metrics":
            self.answer(None)
        else:
            self.answer({"error": {"message": "Not Found", "type": "NotFoundError", "code": 404}}, 404)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        if self.path != "/v1/chat/completions":
            self.answer({"error": {"message": "Not Found", "type": "NotFoundError", "code": 404}}, 404)
            return
        if self.options.lab_fault == "dies-at-first-request":
            print("(EngineCore pid=25) ERROR [core.py] EngineCore encountered a fatal error.", file=sys.stderr)
            message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
            self.answer({"error": {"message": message, "type": "InternalServerError", "code": 500}}, 500)
            os._exit(1)
        call = call_of(asked)
        if asked.get("stream"):
            self.stream(asked, call)
        else:
            self.whole(asked, call)

    def whole(self, asked: dict[str, Any], call: dict[str, Any] | None) -> None:
        text = None if call else words_of(asked)
        message: dict[str, Any] = {"role": "assistant", "content": text, "tool_calls": []}
        if thinks(asked):
            message["reasoning"] = message["reasoning_content"] = "Let me think."
        if call:
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": call}]
        reason = "tool_calls" if call else "stop"
        tokens = len((text or json.dumps(call)).split())
        self.answer(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": asked.get("model"),
                "choices": [{"index": 0, "message": message, "finish_reason": reason}],
                "usage": {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": 8 + tokens},
            }
        )

    def stream(self, asked: dict[str, Any], call: dict[str, Any] | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self.event(asked, {"role": "assistant", "content": ""})
        if thinks(asked):
            self.event(asked, {"reasoning": "Let me think.", "reasoning_content": "Let me think."})
        if call:
            head = {"index": 0, "id": "call_1", "type": "function", "function": {**call, "arguments": ""}}
            self.event(asked, {"tool_calls": [head]})
            arguments = call["arguments"]
            if self.options.lab_fault == "no-streamed-tools":
                arguments = arguments[1:]
            for piece in pieces(arguments):
                self.event(asked, {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
        else:
            for word in words_of(asked).split():
                self.event(asked, {"content": f"{word} "})
                time.sleep(0.02)
        self.event(asked, {}, "tool_calls" if call else "stop")
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, asked: dict[str, Any], delta: dict[str, Any], reason: str | None = None) -> None:
        chunk = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": asked.get("model"),
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
        }
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.flush()

    def answer(self, body: dict[str, Any] | None, status: int = 200) -> None:
        text = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if body is None else "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        log(f"{self.client_address[0]} - {format % args}")


def thinks(asked: dict[str, Any]) -> bool:
    return bool((asked.get("chat_template_kwargs") or {}).get("enable_thinking", True))


def main() -> None:
    options = parse()
    load(options)
    Handler.options = options
    log(f"Starting vLLM server on http://{options.host}:{options.port}")
    ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
