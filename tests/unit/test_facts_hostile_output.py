"""Every fact, with output that no healthy host prints: it is read, or refused with the one error that ends one host."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.facts import FactBase

import rigup.facts

FACTS = sorted(
    {
        each
        for module in pkgutil.iter_modules(rigup.facts.__path__)
        for each in vars(importlib.import_module(f"rigup.facts.{module.name}")).values()
        if isinstance(each, type) and issubclass(each, FactBase) and each.__module__.startswith("rigup.facts.")
    },
    key=lambda fact: fact.__name__,
)

DEEP = '{"a":' * 200_000
WORDS = ["{", "}", "[]", "null", "-43", "1e999", "NaN", "9" * 5000, "=", ":", "/", "--- stamp x", "--- plan",
         "--- units", "--- sizes", "--- arriving", "--- machine", "--- state", "{}", '{"held": 5}',
         '{"endpoints": 5}', '{"name": [], "recipe": {}}', "MemTotal: x", "\x1b]0;x\x07", "\ud800",
         "mtime=x y"]  # fmt: skip


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.__name__)
def test_odd_output_ends_in_a_value_or_in_the_one_error(fact: type[FactBase[object]]) -> None:
    alone = [[word] for word in (DEEP, *WORDS)]
    pairs = [[first, second] for first in WORDS for second in WORDS]
    rotated = [WORDS[at:] + WORDS[:at] for at in range(len(WORDS))]
    for lines in [*alone, *pairs, *rotated]:
        try:
            fact().process(lines)
        except FactProcessError:
            continue


def test_all_facts_are_here() -> None:
    assert len(FACTS) > 30
