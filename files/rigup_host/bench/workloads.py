"""What is asked in a measurement. A change here makes results incomparable: count up `METHOD` in rigup/measure.

No two prompts of a repeat or of two runs begin alike, except where that is the point: a prefix that the engine has in
its cache costs nothing. Answers end at their limit of tokens: each question asks for more.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rigup_host.prompts import FILLER

Messages = list[dict[str, Any]]

SUBJECTS = (
    "how a diesel engine works", "how bread rises", "why the sky is blue", "how a bill becomes law", "how tides work",
    "how vaccines work", "how a violin is made", "how steel is made", "how packets are routed", "how bees live",
    "how glaciers form", "how a compiler works", "how a suspension bridge holds", "how coffee is grown",
    "how locks on a canal work", "how the printing press spread",
)  # fmt: skip
COLUMNS = (
    "name",
    "owner",
    "address",
    "city",
    "country",
    "phone",
    "email",
    "created",
    "updated",
    "state",
    "size",
    "color",
)
PREFIX_TOKENS, RESULT_TOKENS, TURNS = 2000, 300, 4


@dataclass(frozen=True)
class Sizes:
    """`filler_tokens` is how many tokens FILLER has for this model, `long_tokens` the length of a long prompt."""

    filler_tokens: float
    long_tokens: int

    def text(self, tokens: float) -> str:
        """Return text of about so many tokens."""
        return FILLER * max(1, round(tokens / self.filler_tokens))


@dataclass
class Session:
    """The requests of one user, one after the other; each goes on from the answer to the one before."""

    first: Messages
    following: tuple[str, ...] = ()
    max_tokens: int = 200

    @property
    def turns(self) -> int:
        """How many requests it has."""
        return 1 + len(self.following)


def sessions(workload: str, mark: str, sizes: Sizes) -> Iterator[Session]:
    """Yield sessions without end; those with the same `mark` share a prefix, if the workload has one."""
    chosen, make, number = random.Random(7), WORKLOADS[workload], 0
    while True:
        number += 1
        yield make(mark, number, chosen, sizes)


def chat(mark: str, number: int, chosen: random.Random, sizes: Sizes) -> Session:
    """A short question, a long answer."""
    text = f"Question {mark}-{number}: explain {chosen.choice(SUBJECTS)}, in about six hundred words."
    return Session(user(text))


def code(mark: str, number: int, chosen: random.Random, sizes: Sizes) -> Session:
    """A file to change: most of the answer repeats the question, which drafts profit from."""
    methods = "".join(
        f"    def get_{each}(self, default=None):\n"
        f"        value = self.rows[self.position].get('{each}')\n"
        f"        return default if value is None else value\n\n"
        for each in chosen.sample(COLUMNS, len(COLUMNS))
    )
    text = f"# File {mark}-{number}\nclass Table:\n{methods}\n\nAdd type hints to this file. Reply with the whole file."
    return Session(user(text), max_tokens=400)


def agent(mark: str, number: int, chosen: random.Random, sizes: Sizes) -> Session:
    """A long system prompt that all sessions share, and several turns that each add a result."""
    system = f"Agent {mark}. You work on a repository, step by step. {sizes.text(PREFIX_TOKENS)}"
    task = f"Task {number}: plan how to speed up {chosen.choice(SUBJECTS)} in a simulation, in about 300 words."
    result = sizes.text(RESULT_TOKENS)
    following = tuple(f"Result {turn}: {result} Say what it means, in about 300 words." for turn in range(1, TURNS))
    return Session([{"role": "system", "content": system}, *user(task)], following, 150)


def long(mark: str, number: int, chosen: random.Random, sizes: Sizes) -> Session:
    """A long prompt, a short answer."""
    text = f"Document {mark}-{number}. {sizes.text(sizes.long_tokens)} Summarize this document in two hundred words."
    return Session(user(text), max_tokens=64)


def user(text: str) -> Messages:
    """Return the messages of one question."""
    return [{"role": "user", "content": text}]


WORKLOADS = {"chat": chat, "agent": agent, "code": code, "long": long}
