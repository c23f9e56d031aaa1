"""Break the code in small ways and count which ones the tests notice: `make mutants N=25`.

For each area N mutants are chosen, the same ones every time, and tried in a copy of the checkout. Results are kept
outside it, under ~/.cache/rigup-mutants, for each content of the area: a restart continues with what is missing.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from difflib import unified_diff
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import yaml
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

Position: TypeAlias = tuple[int, int]

ROOT = Path(__file__).resolve().parents[1]
HARMLESS = ROOT / "tools/mutants_harmless.yaml"
"""Changes that cannot matter: their lines before and after, and why."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rigup-mutants"


# The other two operators of cosmic-ray need arguments.
OPERATORS = sorted(name for name in operator_names() if not name.startswith("core/Variable"))


@dataclass(frozen=True)
class Area:
    """Modules that must not do the wrong thing unnoticed, and the tests that look at them; patterns from the root."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


AREAS: Mapping[str, Area] = {
    "undo": Area(
        ("rigup/operations/teardown/*.py", "rigup/operations/reboot.py"),
        (
            "tests/unit/test_ledger.py",
            "tests/unit/test_operations_reboot.py",
            "tests/unit/test_operations_teardown.py",
            "tests/unit/test_teardown_deletes.py",
        ),
    ),
    "switch": Area(
        ("files/rigup_host/switch/*.py", "rigup/operations/serving.py"),
        ("tests/unit/test_host_programs_switch.py", "tests/unit/test_operations_serving.py"),
    ),
    "connect": Area(("rigup/ssh/*.py",), ("tests/unit/test_ssh_*.py",)),
    "download": Area(("files/rigup_host/fetch/*.py",), ("tests/unit/test_host_programs_fetch*.py",)),
}


@dataclass(frozen=True)
class Mutant:
    """One change: the `occurrence`th one that an operator of cosmic-ray can make in a module."""

    module: str
    operator: str
    occurrence: int

    def text(self) -> str:
        """Return the module's text with the change."""
        mutated: str = mutate_code((ROOT / self.module).read_text(), get_operator(self.operator)(), self.occurrence)
        return mutated

    def is_possible(self) -> bool:
        """Return whether the change makes another program.

        cosmic-ray fails at exceptions with a dotted name, and puts `not` before assignment expressions.
        """
        try:
            return ast.dump(ast.parse(self.text())) != ast.dump(ast.parse((ROOT / self.module).read_text()))
        except (AttributeError, SyntaxError):
            return False

    def lines(self) -> tuple[str, str]:
        """Return the changed lines before and after, without indentation."""
        changed = self.diff().splitlines()[2:]
        before, after = ([line[1:].strip() for line in changed if line.startswith(sign)] for sign in "-+")
        return "\n".join(filter(None, before)), "\n".join(filter(None, after))

    def diff(self) -> str:
        """Return the change as a diff without context."""
        before = (ROOT / self.module).read_text().splitlines()
        return "\n".join(unified_diff(before, self.text().splitlines(), self.module, lineterm="", n=0))


def main() -> int:
    parser = argparse.ArgumentParser(description="Count which small changes of the code the tests notice.")
    parser.add_argument("number", type=int, help="mutants in each area")
    parser.add_argument("area", nargs="*", choices=[*AREAS, []], help="only these areas")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        for name in options.area or AREAS:
            report(name, *score(name, AREAS[name], options.number, Path(directory, name)))
    return 0


def score(name: str, area: Area, number: int, copy: Path) -> tuple[int, list[Mutant]]:
    """Try the mutants of an area. Return how many were tried and which ones no test noticed."""
    results = CACHE / f"{name}-{content_of(area)}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    known = {json.dumps(entry["mutant"]): entry["killed"] for entry in map(json.loads, lines_of(results))}
    chosen = choose(name, area, number)
    todo = [mutant for mutant in chosen if json.dumps(asdict(mutant)) not in known]
    if todo:
        copy_tree(copy)
        limit = 10 * measured(area, copy)
    for at, mutant in enumerate(todo, 1):
        began = time.monotonic()
        killed = not passes(area, copy, mutant, limit)
        with results.open("a") as file:
            file.write(json.dumps({"mutant": asdict(mutant), "killed": killed}) + "\n")
        known[json.dumps(asdict(mutant))] = killed
        word = "killed" if killed else "SURVIVED"
        print(f"{name} {at}/{len(todo)}  {word:8}  {time.monotonic() - began:4.0f} s  {mutant.module}", flush=True)
    return len(chosen), [mutant for mutant in chosen if not known[json.dumps(asdict(mutant))]]


def report(name: str, tried: int, survivors: list[Mutant]) -> None:
    """Print the score, and each survivor with the reason why it cannot matter, if HARMLESS has one."""
    known = {(each["before"], each["after"]): each["why"] for each in yaml.safe_load(HARMLESS.read_text())}
    killed, matter = tried - len(survivors), tried - sum(mutant.lines() in known for mutant in survivors)
    score = f"{killed} of {tried} killed, {tried - matter} cannot matter"
    print(f"\n{name}: {score}; {killed / max(1, matter):.0%} of those that can")
    for mutant in survivors:
        print(f"  {mutant.operator.removeprefix('core/')} in {mutant.module}")
        print("\n".join(mutant.diff().splitlines()[3:]))
        if why := known.get(mutant.lines()):
            print(f"    cannot matter: {why}")


def choose(name: str, area: Area, number: int) -> list[Mutant]:
    """Return up to `number` mutants of an area, the same ones for the same content."""
    places: dict[tuple[str, Position, Position], list[Mutant]] = {}
    for module in files_of(area.modules):
        source = (ROOT / module).read_text()
        tree, unused = get_ast(source), annotations_of(source)
        for operator in OPERATORS:
            for occurrence, (start, end) in enumerate(positions(tree, operator)):
                if not any(first <= start < last for first, last in unused):
                    places.setdefault((module, start, end), []).append(Mutant(module, operator, occurrence))
    # One at each place: the changes of one comparison into each of the others would be most of all.
    luck = random.Random(name)
    each = [luck.choice(mutants) for _, mutants in sorted(places.items())]
    luck.shuffle(each)
    return list(islice(filter(Mutant.is_possible, each), number))


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


def copy_tree(copy: Path) -> None:
    """Copy the files of the checkout that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)


def measured(area: Area, copy: Path) -> float:
    """Return how many seconds the area's tests take. Exit if they do not pass without a change."""
    began = time.monotonic()
    if not run_tests(area, copy, None):
        raise SystemExit("the tests fail without any change: run `make unit` first")
    return time.monotonic() - began


def passes(area: Area, copy: Path, mutant: Mutant, limit: float) -> bool:
    """Return whether the area's tests pass with this change, within `limit` seconds."""
    module = copy / mutant.module
    before = module.read_text()
    module.write_text(mutant.text())
    try:
        return run_tests(area, copy, limit)
    finally:
        module.write_text(before)


def run_tests(area: Area, copy: Path, limit: float | None) -> bool:
    argv = [
        sys.executable,
        "-B",
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "2",
        "--dist",
        "worksteal",
        "-p",
        "no:cacheprovider",
    ]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        [*argv, *files_of(area.tests)], cwd=copy, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            return process.wait(limit) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def files_of(patterns: tuple[str, ...]) -> list[str]:
    return sorted({str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)})


def content_of(area: Area) -> str:
    digest = hashlib.sha256()
    for name in files_of((*area.modules, *area.tests)):
        digest.update(name.encode() + (ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
