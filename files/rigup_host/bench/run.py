"""Measure an endpoint: send it the requests of several users at a time, and print when each was answered.

It prints a JSON object per line, times in seconds since its start: `request` (`workload`, `concurrency`, `repeat`,
`began`, `first`, `last`, `ended`, `prompt_tokens`, `tokens`, `error`, `detail`), `sample` (`at`, `watts`, `kv_cache`),
`repeat` (`began`, `ended`, and the `drafted` and `accepted` tokens meanwhile) and at last `end`. Repeat 0 warms up. If
no request of a warm-up is answered, the other levels of that workload are skipped.

Exit status: 0, whatever the endpoint answered.
"""

from __future__ import annotations

import argparse
import json
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

from rigup_host.bench.output import emit
from rigup_host.bench.request import Outcome, ask
from rigup_host.bench.sampler import Sampler, drafts
from rigup_host.bench.workloads import Messages, Session, Sizes, sessions, user
from rigup_host.prompts import FILLER

FILLER_TOKENS = 20.0
"""What FILLER has for most models; asked of the engine if it answers."""
CALIBRATION = 20


def main(argv: list[str]) -> int:
    """Measure all levels of the schedule."""
    parser = argparse.ArgumentParser(prog="rigup-host bench", description="Measure an endpoint.")
    parser.add_argument("--url", required=True, help="the endpoint's base URL, such as http://127.0.0.1:8000")
    parser.add_argument("--model", required=True, help="name under which the model is served")
    parser.add_argument("--thinking", default="enable_thinking", help="the key that turns thinking on and off")
    parser.add_argument("--gpus", default="all", help="the endpoint's GPUs for nvidia-smi: all, or with commas")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one request")
    parser.add_argument("--repeats", type=int, default=3, help="how often each level is measured")
    parser.add_argument("--long-tokens", type=int, default=32000, help="the length of a long prompt")
    parser.add_argument(
        "--schedule", type=json.loads, required=True, help="JSON: a list of [workload, users, requests]"
    )
    options = parser.parse_args(argv)
    Bench(options).run()
    return 0


class Bench:
    """The measurement of one endpoint."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self._start = options, time.monotonic()
        self._url = options.url.rstrip("/")
        self._run = secrets.token_hex(4)
        self._sizes = Sizes(FILLER_TOKENS, options.long_tokens)

    def run(self) -> None:
        """Measure level by level."""
        sampler = Sampler(self._url, self._options.gpus, lambda: time.monotonic() - self._start)
        sampler.start()
        self._sizes = Sizes(self._filler_tokens(), self._options.long_tokens)
        dead = set[str]()
        for workload, users, requests in self._options.schedule:
            if workload in dead:
                continue
            if not self._repeat(workload, users, users, 0):
                dead.add(workload)
                continue
            for number in range(1, self._options.repeats + 1):
                self._repeat(workload, users, requests, number)
        sampler.end()
        emit("end")

    def _filler_tokens(self) -> float:
        """Return how many tokens FILLER has for this model."""
        found = self._ask(user(FILLER * CALIBRATION), 1)
        return (found.prompt_tokens or 0) / CALIBRATION or FILLER_TOKENS

    def _ask(self, messages: Messages, max_tokens: int) -> Outcome:
        body: dict[str, Any] = {"model": self._options.model, "messages": messages, "max_tokens": max_tokens}
        body |= {"temperature": 0, "chat_template_kwargs": {self._options.thinking: False}}
        return ask(self._url, body, self._options.timeout)

    def _repeat(self, workload: str, users: int, requests: int, number: int) -> int:
        """Have `users` send about `requests` requests; return how many were answered."""
        supply = sessions(workload, f"{self._run}-{users}-{number}", self._sizes)
        left, lock, answered = requests, threading.Lock(), 0

        def sessions_left() -> Iterator[Session]:
            nonlocal left
            while True:
                with lock:
                    if left <= 0:
                        return
                    session = next(supply)
                    # Each user warms up.
                    left -= session.turns if number else 1
                yield session

        def one_user() -> None:
            nonlocal answered
            for session in sessions_left():
                for outcome in self._turns(session):
                    self._tell(outcome, workload, users, number)
                    with lock:
                        answered += not outcome.error

        before, began = drafts(self._url), time.monotonic()
        threads = [threading.Thread(target=one_user, daemon=True) for _ in range(users)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ended, after = time.monotonic(), drafts(self._url)
        counts: tuple[float | None, float | None] = (None, None)
        # Counters begin anew with the engine.
        if before and after and after[0] >= before[0] and after[1] >= before[1]:
            counts = after[0] - before[0], after[1] - before[1]
        times = {"began": began - self._start, "ended": ended - self._start}
        where = {"workload": workload, "concurrency": users, "repeat": number}
        emit("repeat", **where, **times, drafted=counts[0], accepted=counts[1])
        return answered

    def _turns(self, session: Session) -> Iterator[Outcome]:
        """Yield the outcome of each request of a session; a failed one is the last."""
        messages = session.first
        for question in (*session.following, None):
            outcome = self._ask(messages, session.max_tokens)
            yield outcome
            if outcome.error or question is None:
                return
            messages = [*messages, {"role": "assistant", "content": outcome.text}, *user(question)]

    def _tell(self, outcome: Outcome, workload: str, users: int, number: int) -> None:
        def since_start(at: float | None) -> float | None:
            return None if at is None else at - self._start

        emit(
            "request",
            workload=workload,
            concurrency=users,
            repeat=number,
            began=since_start(outcome.began),
            first=since_start(outcome.first),
            last=since_start(outcome.last),
            ended=since_start(outcome.ended),
            prompt_tokens=outcome.prompt_tokens,
            tokens=outcome.tokens,
            error=outcome.error,
            detail=outcome.detail[:200],
        )
