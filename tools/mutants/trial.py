"""Try changes of the code, several at a time: the quickest tests first, and none after the first that fails.

Each trial is a process that is forked with pytest imported, in a copy of the checkout of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

import httpx  # noqa: F401
import hypothesis  # noqa: F401
import pydantic  # noqa: F401
import pytest

T = TypeVar("T")

START_S = 120.0
"""The longest start of pytest, on a busy machine."""
TEST_S, TIMES = 30.0, 10.0
"""A test that takes longer than this and so many times what it took in the recording does not end."""

PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h


@dataclass
class Trial:
    """What runs in one copy: the process, the end of its pipe, what it has said, until when it must say more."""

    process: int
    pipe: int
    seconds: Mapping[str, float]
    deadline: float
    said: bytes = b""
    test: str = ""
    failed: str = ""
    ended: bool = False

    def hear(self) -> None:
        """Take what the process says. Its end is the end of the trial."""
        content = os.read(self.pipe, 65536)
        self.ended = not content
        *lines, self.said = (self.said + content).split(b"\n")
        for kind, test in map(json.loads, lines):
            if kind == "start":
                self.test = test
                self.deadline = time.monotonic() + TEST_S + TIMES * self.seconds[test]
            elif kind == "failed":
                self.failed = self.failed or test
            else:
                self.ended = True


def tried(
    things: Sequence[T],
    copies: Sequence[Path],
    change: Callable[[T], tuple[str, str]],
    tests: Callable[[T], Mapping[str, float]],
) -> Iterator[tuple[T, str | None, float]]:
    """Yield each thing with the test that noticed it, or None, and the seconds that took, in the order of their ends.

    `change` returns a module and its changed text; `tests` the tests to run, with the seconds that each usually takes.
    """
    todo, free = [thing for thing in reversed(things) if tests(thing)], list(copies)
    yield from ((thing, None, 0.0) for thing in things if not tests(thing))
    running: dict[Path, tuple[T, Trial, float]] = {}
    try:
        while todo or running:
            while todo and free:
                thing, copy = todo.pop(), free.pop()
                running[copy] = thing, _start(copy, *change(thing), tests(thing)), time.monotonic()
            now = time.monotonic()
            first = min(trial.deadline for _, trial, _ in running.values())
            heard, _, _ = select.select([each.pipe for _, each, _ in running.values()], [], [], max(0.0, first - now))
            for copy, (thing, trial, began) in list(running.items()):
                if trial.pipe in heard:
                    trial.hear()
                hangs = not trial.ended and time.monotonic() > trial.deadline
                if trial.ended or hangs:
                    del running[copy]
                    free.append(copy)
                    _end(trial)
                    noticed = trial.failed or (trial.test or "the start of pytest" if hangs else None)
                    yield thing, noticed, time.monotonic() - began
    finally:
        for _, trial, _ in running.values():
            _end(trial)


def _start(copy: Path, module: str, text: str, tests: Mapping[str, float]) -> Trial:
    listening, saying = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            _supervise(copy, module, text, tests, saying)
        finally:
            os._exit(1)
    os.close(saying)
    return Trial(process, listening, tests, time.monotonic() + START_S)


def _end(trial: Trial) -> None:
    """End the process and all that it started, and wait for that."""
    os.kill(trial.process, signal.SIGTERM)
    os.waitpid(trial.process, 0)
    os.close(trial.pipe)


def _supervise(copy: Path, module: str, text: str, tests: Mapping[str, float], saying: int) -> NoReturn:
    """Run the tests in a process below this one. Leave none of what they start, and the module as it was."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = (copy / module).read_text()
    (copy / module).write_text(text)
    inner = os.fork()
    if inner == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        status = 1
        try:
            status = _run(copy, tests, saying)
        finally:
            os._exit(status)
    signal.signal(signal.SIGTERM, lambda *_: _kill(inner))
    status = os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _kill_all()
    (copy / module).write_text(before)
    if status:
        # Nothing more if a test has been named: only the first line counts.
        _say(saying, "failed", f"pytest ended with {status}")
    _say(saying, "end", "")
    os.close(saying)
    os._exit(0)


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _kill_all() -> None:
    """Kill the children of this process until there are none: theirs become its own."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while True:
        for child in children.read_text().split():
            _kill(int(child))
        try:
            os.wait()
        except ChildProcessError:
            return


def _run(copy: Path, tests: Mapping[str, float], saying: int) -> int:
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    here = str(Path(__file__).resolve().parents[2])
    sys.path[:] = [str(copy), *(each for each in sys.path if each not in ("", here))]
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    argv = ["-q", "-x", "-p", "no:xdist", "--basetemp", str(copy.parent / f"{copy.name}-temporary"), *files]
    return int(pytest.main(argv, plugins=[_Chosen(tests, saying)]))


class _Chosen:
    """The plugin that runs the chosen tests alone, the quickest first, and says which one runs."""

    def __init__(self, tests: Mapping[str, float], saying: int) -> None:
        self.tests, self.saying = tests, saying

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (each for each in items if each.nodeid in self.tests), key=lambda each: self.tests[each.nodeid]
        )

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        _say(self.saying, "start", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            _say(self.saying, "failed", report.nodeid)


def _say(pipe: int, kind: str, test: str) -> None:
    os.write(pipe, (json.dumps([kind, test]) + "\n").encode())
