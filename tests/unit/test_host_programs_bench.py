"""rigup-host bench and tool-calls: what they record of engines that answer, and of those that answer wrongly."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from rigup_host import tool_loop
from rigup_host.bench import request
from tests.unit.host_world import LAUNCH, Page, program, run_program, site
from tests.unit.test_smoke import engine
from tests.unit.waiting import HANG_S


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def of_kind(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [each for each in found if each["kind"] == kind]


def bench(url: str, *schedule: tuple[str, int, int], tools: Path | None = None, **more: Any) -> list[dict[str, Any]]:
    words = [f"--url={url}", "--model=qwen", f"--schedule={json.dumps(schedule)}", "--repeats=2"]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in more.items()]
    done = run_program("bench", *words, tools=tools)
    assert (done.returncode, done.stderr) == (0, "")
    return records(done.stdout)


def test_every_request_of_every_level_is_recorded_and_its_times_are_in_order() -> None:
    with engine("none") as url:
        found = bench(url, ("chat", 2, 5), ("agent", 1, 4))
    asked = of_kind(found, "request")
    levels = Counter((each["workload"], each["concurrency"], each["repeat"]) for each in asked)
    # The warm-up has a request for each user; a session of an agent has four turns.
    assert levels == {("chat", 2, 0): 2, ("chat", 2, 1): 5, ("chat", 2, 2): 5,
                      ("agent", 1, 0): 4, ("agent", 1, 1): 4, ("agent", 1, 2): 4}  # fmt: skip
    assert {each["error"] for each in asked} == {""}
    assert all(each["began"] < each["first"] < each["last"] <= each["ended"] for each in asked)
    repeats = of_kind(found, "repeat")
    assert [(each["workload"], each["repeat"]) for each in repeats] == [
        ("chat", 0), ("chat", 1), ("chat", 2), ("agent", 0), ("agent", 1), ("agent", 2)
    ]  # fmt: skip
    # The stand-in drafts 100 tokens for each request.
    assert [(each["drafted"], each["accepted"]) for each in repeats] == [
        (200.0, 160.0), (500.0, 400.0), (500.0, 400.0), (400.0, 320.0), (400.0, 320.0), (400.0, 320.0)
    ]  # fmt: skip
    assert found[-1] == {"kind": "end"}


def test_a_turn_of_an_agent_has_the_answers_before_it_and_all_sessions_share_their_beginning() -> None:
    asked = []

    def answers(method: str, path: str, body: bytes) -> Page:
        if method == "POST":
            asked.append(json.loads(body))
        return stream(text(f"answer {len(asked)}"), usage(3)) if method == "POST" else Page(status=404)

    with site(answers) as url:
        bench(url, ("agent", 1, 8), repeats=1)
    # The first measures the filler. Then a session for the warm-up, and two.
    sessions = [[each["messages"] for each in asked[start : start + 4]] for start in (1, 5, 9)]
    assert [len(turn) for turn in sessions[1]] == [2, 4, 6, 8]
    assert [each["content"] for each in sessions[1][3] if each["role"] == "assistant"] == [
        "answer 6", "answer 7", "answer 8"
    ]  # fmt: skip
    system = [session[0][0]["content"] for session in sessions]
    assert system[1] == system[2] != system[0]
    assert sessions[1][0][1] != sessions[2][0][1]


def test_prompts_do_not_begin_alike_and_a_long_one_has_the_tokens_that_were_asked_for() -> None:
    with engine("none") as url:
        found = bench(url, ("long", 1, 2), repeats=1, long_tokens=3000)
    # The stand-in counts a token for four characters.
    tokens = [each["prompt_tokens"] for each in of_kind(found, "request")]
    assert all(2900 < count < 3200 for count in tokens)
    beginnings = set()

    def answers(method: str, path: str, body: bytes) -> Page:
        if method == "POST":
            beginnings.add(json.loads(body)["messages"][0]["content"][:24])
        return stream(text("x"), usage(2)) if method == "POST" else Page(status=404)

    with site(answers) as url:
        for _ in range(2):
            bench(url, ("chat", 1, 2), ("code", 1, 2), ("long", 1, 2), repeats=1)
    # Twice: three requests of each of three workloads; and the same one that measures the filler.
    assert len(beginnings) == 2 * 9 + 1


def test_times_are_at_least_those_of_an_engine_that_takes_a_known_time_for_a_word() -> None:
    word_s = 0.02
    with engine("none", word_seconds=word_s) as url:
        found = [each for each in of_kind(bench(url, ("chat", 1, 2), repeats=1), "request")]
    for each in found:
        # A pause before each piece: an empty one with the role, the words.
        assert each["first"] - each["began"] >= 2 * word_s
        assert each["last"] - each["began"] >= (1 + each["tokens"]) * word_s
        assert each["tokens"] > 50


# Engines that answer wrongly


def event(chunk: Any) -> bytes:
    return f"data: {json.dumps(chunk)}\n\n".encode()


def text(content: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": content}}]})


def usage(tokens: Any) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": tokens}})


DONE = b"data: [DONE]\n\n"


def stream(*events: bytes, end: bytes = DONE) -> Page:
    return Page(b"".join(events) + end, headers={"Content-Type": "text/event-stream"})


WRONG = {
    "no usage": stream(text("a"), text("b")),
    "no usage: not a number": stream(text("a"), usage("7")),
    "no text": stream(usage(7)),
    "no text: none counted": stream(text("a"), usage(0)),
    "broken stream: no end": stream(text("a"), usage(7), end=b""),
    "broken stream: no JSON": stream(b"data: {oops\n\n"),
    "broken stream: nested": stream(b"data: " + b"[" * 100_000 + b"\n\n"),
    "broken stream: empty": Page(),
    "error in the stream": stream(text("a"), event({"error": {"message": "out of memory"}})),
    "error in the stream: a list": stream(event([1])),
    "status 500": Page(b"the engine died", 500),
    "status 400": Page(b"too long", 400),
    "broken answer": Page(b"", headers={"Content-Length": "many", "Transfer-Encoding": "chunked"}),
    "no usage: odd choices": stream(event({"choices": [None, 7, {"delta": 3}]}), event({"choices": 5}), b": ping\n\n"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_recorded_with_its_kind(name: str) -> None:
    page = WRONG[name]
    with site(lambda method, path, body: page if method == "POST" else Page(status=404)) as url:
        found = bench(url, ("chat", 2, 4), ("chat", 4, 4), ("code", 1, 2))
    asked = of_kind(found, "request")
    assert {each["error"] for each in asked} == {name.partition(":")[0]}
    # After a warm-up without any answer, no more of that workload is measured.
    assert [(each["workload"], each["repeat"]) for each in of_kind(found, "repeat")] == [("chat", 0), ("code", 0)]
    assert len(asked) == 3
    assert found[-1] == {"kind": "end"}


def test_some_wrong_answers_among_right_ones_lose_nothing() -> None:
    count = iter(range(1000))

    def answers(method: str, path: str, body: bytes) -> Page:
        if method != "POST":
            return Page(status=404)
        return Page(b"busy", 503) if next(count) % 3 == 2 else stream(text("a"), text("b"), usage(40))

    with site(answers) as url:
        asked = of_kind(bench(url, ("chat", 1, 6)), "request")
    assert Counter(each["error"] for each in asked) == {"": 9, "status 503": 4}
    # Tokens are those that the engine counts, not the chunks.
    assert {each["tokens"] for each in asked if not each["error"]} == {40}


def test_a_turn_that_fails_ends_its_session() -> None:
    def answers(method: str, path: str, body: bytes) -> Page:
        if method != "POST":
            return Page(status=404)
        return Page(status=500) if len(json.loads(body)["messages"]) > 2 else stream(text("a"), usage(2))

    with site(answers) as url:
        asked = of_kind(bench(url, ("agent", 1, 8), repeats=1), "request")
    # A session to warm up, and two.
    assert [each["error"] for each in asked] == ["", "status 500"] * 3


@contextmanager
def silent(sends: bytes) -> Iterator[str]:
    """A server that answers each connection with these bytes and nothing more."""
    kept = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            kept.append(connection)
            connection.sendall(sends)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    for connection in kept:
        connection.close()


class AtOnce(threading.Timer):
    """A timer whose time is up once the request waits for its answer."""

    def __init__(self, interval: float, function: Any, args: Any) -> None:
        super().__init__(0, function, args)


@pytest.mark.parametrize("sends", [b"", b"HTTP/1.1 200 OK\r\n\r\ndata: {"], ids=["nothing", "half"])
def test_an_engine_that_hangs_is_a_timeout(sends: bytes) -> None:
    with silent(sends) as url, patch.object(request.threading, "Timer", AtOnce):
        found = request.ask(url, {"model": "qwen"}, HANG_S)
    assert (found.error, found.detail) == ("timeout", f"after {HANG_S} s")


def test_no_engine_is_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    found = bench(f"http://127.0.0.1:{port}", ("chat", 1, 2))
    assert {each["error"] for each in of_kind(found, "request")} == {"no connection"}


def test_it_ends_once_nobody_reads_it_even_while_the_engine_hangs() -> None:
    with silent(b"") as url:
        argv = [*LAUNCH, "bench", f"--url={url}", "--model=m", '--schedule=[["chat",1,1]]', "--timeout=100000"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.close()
            assert process.wait(HANG_S) == 1


# Power


def test_the_cards_of_the_endpoint_are_asked_what_they_draw(tmp_path: Path) -> None:
    cards = ("0, GPU-0000, 99.0", "1, GPU-1111, [N/A]", "2, GPU-2222, 310.5", "3, GPU-3333, 289.5")
    program(tmp_path / "bin", "nvidia-smi", f"printf '%s\\n' {shlex.join(cards)}")
    with engine("none") as url:
        found = bench(url, ("chat", 1, 1), tools=tmp_path / "bin", gpus="2,GPU-3333")
    samples = of_kind(found, "sample")
    assert {each["watts"] for each in samples} == {600.0}


@pytest.mark.parametrize(
    ("gpus", "script"),
    [
        ("0", "echo '0, GPU-0000, [N/A]'"),
        ("0", "echo '1, GPU-1111, 300.0'"),
        # One of two is gone.
        ("0,5", "echo '0, GPU-0000, 300.0'"),
        ("all", "echo oops"),
        ("all", "echo 'Failed to initialize NVML' >&2; exit 9"),
    ],
)
def test_cards_that_do_not_say_what_they_draw(tmp_path: Path, gpus: str, script: str) -> None:
    program(tmp_path / "bin", "nvidia-smi", script)
    with engine("none") as url:
        samples = of_kind(bench(url, ("chat", 1, 1), tools=tmp_path / "bin", gpus=gpus), "sample")
    assert {each["watts"] for each in samples} == {None}


# Tool calls


def loops(url: str, times: int, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert tool_loop.main([f"--url={url}", "--model=qwen", f"--timeout={HANG_S}", f"--times={times}"]) == 0
    found = records(capsys.readouterr().out)
    assert found[-1] == {"kind": "end"}
    return of_kind(found, "loop")


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        ("none", {"": 4}),
        ("no-streamed-tools", {"": 2, "broken arguments": 2}),
        ("corrupt-third-step", {"broken arguments": 4}),
        ("no-tools", {"missing calls": 4}),
        ("dies-at-first-request", {"status 500": 1, "no connection": 3}),
    ],
)
def test_each_try_is_recorded_with_what_went_wrong(
    fault: str, kinds: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    with engine(fault) as url:
        found = loops(url, 4, capsys)
    assert Counter(each["error"] for each in found) == kinds
    assert [each["stream"] for each in found] == [False, True, False, True]


def test_no_two_tries_are_the_same_task() -> None:
    tasks = {json.dumps(tool_loop.stock_of(number)) for number in range(100)}
    assert len(tasks) == 100
    assert tool_loop.stock_of(3) == tool_loop.stock_of(3)
