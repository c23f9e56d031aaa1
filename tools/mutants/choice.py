"""Choose small changes of the code, the same ones for the same code."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import unified_diff
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

from tools.mutants.record import digest

Position: TypeAlias = tuple[int, int]

ROOT = Path(__file__).resolve().parents[2]

# The other two operators of cosmic-ray need arguments.
OPERATORS = sorted(name for name in operator_names() if not name.startswith("core/Variable"))


@dataclass(frozen=True)
class Area:
    """Modules that must not do the wrong thing unnoticed, and the tests that look at them; patterns from the root."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Mutant:
    """One change: the `occurrence`th one that an operator of cosmic-ray can make in a module, and its line there."""

    module: str
    operator: str
    occurrence: int
    line: int

    def text(self) -> str:
        """Return the module's text with the change."""
        mutated: str = mutate_code(read(self.module).decode(), get_operator(self.operator)(), self.occurrence)
        return mutated

    def is_possible(self) -> bool:
        """Return whether the change makes another program.

        cosmic-ray fails at exceptions with a dotted name, and puts `not` before assignment expressions.
        """
        try:
            return ast.dump(ast.parse(self.text())) != ast.dump(ast.parse(read(self.module).decode()))
        except (AttributeError, SyntaxError):
            return False

    def lines(self) -> tuple[str, str]:
        """Return the changed lines before and after, without indentation."""
        changed = self.diff().splitlines()[2:]
        before, after = ([line[1:].strip() for line in changed if line.startswith(sign)] for sign in "-+")
        return "\n".join(filter(None, before)), "\n".join(filter(None, after))

    def diff(self) -> str:
        """Return the change as a diff without context."""
        before = read(self.module).decode().splitlines()
        return "\n".join(unified_diff(before, self.text().splitlines(), self.module, lineterm="", n=0))


def choose(area: Area, number: int) -> list[Mutant]:
    """Return up to `number` mutants of an area, the same ones for the same content.

    Which ones depends on their lines alone, so that a change elsewhere exchanges few of them.
    """
    places: dict[tuple[str, Position], dict[str, Mutant]] = {}
    for module in files_of(area.modules):
        source = read(module).decode()
        lines, tree, unused = source.splitlines(), get_ast(source), annotations_of(source)
        seen: Counter[str] = Counter()
        for operator in OPERATORS:
            for occurrence, (start, _) in enumerate(positions(tree, operator)):
                if not any(first <= start < last for first, last in unused):
                    text = lines[start[0] - 1]
                    luck = f"{module} {operator} {text.strip()} {start[1] - len(text)}"
                    seen[luck] += 1
                    mutant = Mutant(module, operator, occurrence, start[0])
                    places.setdefault((module, start), {})[digest(f"{luck} {seen[luck]}".encode())] = mutant
    # One at each place: the changes of one comparison into each of the others would be most of all.
    each = dict(min(mutants.items()) for mutants in places.values())
    ordered = (each[luck] for luck in sorted(each, key=lambda luck: digest(b"order", luck.encode())))
    return list(islice(filter(Mutant.is_possible, ordered), number))


def positions(tree: object, operator: str) -> Iterator[tuple[Position, Position]]:
    """Yield start and end of each place in a module that an operator can change."""
    instance = get_operator(operator)()
    for node in ast_nodes(tree):
        yield from instance.mutation_positions(node)


def annotations_of(source: str) -> list[tuple[Position, Position]]:
    """Return start and end of all annotations, which nothing evaluates."""
    found = []
    for node in ast.walk(ast.parse(source)):
        for each in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(each, ast.expr) and each.end_lineno is not None and each.end_col_offset is not None:
                found.append(((each.lineno, each.col_offset), (each.end_lineno, each.end_col_offset)))
    return found


def files_of(patterns: tuple[str, ...]) -> list[str]:
    return sorted({str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)})


@cache
def read(name: str) -> bytes:
    """Return a file's content, the same during the whole run: somebody may write a test meanwhile."""
    return (ROOT / name).read_bytes()
