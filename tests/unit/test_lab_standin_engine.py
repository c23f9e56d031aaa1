"""The lab's stand-in engine: it answers as an engine does, and each of its faults shows where it should."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import lab.standin_engine.server as server

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ASK = {"model": "m", "messages": [{"role": "user", "content": "Reply with exactly: OK-7319"}], "max_tokens": 4}


@contextmanager
def engine(fault: str = "none") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    argv = [sys.executable, str(Path(server.__file__)), f"--port={port}", "--served-model-name=m", "--unknown=1"]
    argv += ["--lab-load-seconds=0", f"--lab-fault={fault}"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.communicate()


def get(url: str, body: object = None) -> str:
    deadline = time.monotonic() + 10
    while True:
        try:
            data = None if body is None else json.dumps(body).encode()
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(urllib.request.Request(url, data), timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError:
            raise
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def streamed(url: str, **more: Any) -> list[dict[str, Any]]:
    text = get(f"{url}/v1/chat/completions", {**ASK, "stream": True, **more})
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event)["choices"][0] for event in events]


def arguments(choices: list[dict[str, Any]]) -> str:
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    return "".join(call["function"]["arguments"] for call in calls)


def test_it_lists_its_model_and_chats_whole_and_streamed() -> None:
    with engine() as (url, _):
        assert json.loads(get(f"{url}/v1/models"))["data"][0]["id"] == "m"
        answer = json.loads(get(f"{url}/v1/chat/completions", ASK))
        assert answer["choices"][0]["message"]["content"] == "OK-7319"
        assert "".join(choice["delta"].get("content", "") for choice in streamed(url)).strip() == "OK-7319"
        call = json.loads(get(f"{url}/v1/chat/completions", {**ASK, "tools": [TOOL]}))["choices"][0]
        assert call["finish_reason"] == "tool_calls"
        assert json.loads(call["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris"}
        assert json.loads(arguments(streamed(url, tools=[TOOL]))) == {"city": "Paris"}


def test_a_fault_in_streamed_tool_calls_leaves_whole_ones_alone() -> None:
    with engine("no-streamed-tools") as (url, _):
        call = json.loads(get(f"{url}/v1/chat/completions", {**ASK, "tools": [TOOL]}))["choices"][0]
        assert json.loads(call["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris"}
        assert arguments(streamed(url, tools=[TOOL])) == '"city": "Paris"}'


def test_each_fault_shows_where_it_should() -> None:
    with engine("never-healthy") as (url, _), pytest.raises(urllib.error.HTTPError, match="503"):
        get(f"{url}/health")
    with engine("dies-at-load") as (_, process):
        assert process.wait(timeout=10) == 1
        assert process.stdout is not None
        assert "[512, 4096]" in process.stdout.read()
    with engine("dies-at-first-request") as (url, process):
        assert get(f"{url}/health") == "{}"
        with pytest.raises(urllib.error.HTTPError, match="500"):
            get(f"{url}/v1/chat/completions", ASK)
        assert process.wait(timeout=10) == 1
    with engine("stalls") as (_, process):
        assert process.stdout is not None
        assert "nccl" in process.stdout.readline()
        assert process.poll() is None
