"""Break the code in small ways and count which ones the tests notice: `make mutants N=25`.

For each area N mutants are chosen, the same ones every time, and tried in copies of the checkout. What is found is kept
outside it, under ~/.cache/rigup-mutants: a restart continues with what is missing. A mutant is tried again when its
module changes, or the file of the test that noticed it, or any test file of its area if none noticed it.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from difflib import unified_diff
from functools import cache
from itertools import accumulate, islice
from pathlib import Path
from typing import TypeAlias

import yaml
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

from tools import mutant_record, mutant_trial
from tools.mutant_record import Record, digest

Position: TypeAlias = tuple[int, int]

ROOT = Path(__file__).resolve().parents[1]
HARMLESS = ROOT / "tools/mutants_harmless.yaml"
"""Changes that cannot matter: their lines before and after, and why."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rigup-mutants"


LONGEST_S = 240.0
"""Seconds of tests for one mutant. One that survives them may still be noticed by the slowest tests."""

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
    "connect": Area(("rigup/ssh/*.py",), ("tests/unit/test_ssh_*.py", "tests/unit/test_cli_logs.py")),
    "download": Area(("files/rigup_host/fetch/*.py",), ("tests/unit/test_host_programs_fetch*.py",)),
}


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


def main() -> int:
    parser = argparse.ArgumentParser(description="Count which small changes of the code the tests notice.")
    parser.add_argument("number", type=int, help="mutants in each area")
    parser.add_argument("area", nargs="*", choices=[*AREAS, []], help="only these areas")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time (default: %(default)s)"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        for name in options.area or AREAS:
            report(name, *score(name, AREAS[name], options.number, Copies(Path(directory), options.jobs)))
    return 0


@dataclass(frozen=True)
class Copies:
    """Copies of the checkout, made when they are needed."""

    directory: Path
    jobs: int

    def paths(self) -> list[Path]:
        found = [self.directory / str(number) for number in range(self.jobs)]
        for path in found:
            if not path.exists():
                copy_tree(path)
        return found


def score(name: str, area: Area, number: int, copies: Copies) -> tuple[int, list[Mutant]]:
    """Try the mutants of an area. Return how many were tried and which ones no test noticed."""
    results = CACHE / f"{name}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    known = {json.dumps(entry["mutant"]): entry for entry in map(json.loads, lines_of(results))}
    chosen = choose(area, number)
    todo = [each for each in chosen if not holds(area, known.get(json.dumps(asdict(each))))]
    if todo:
        record = record_of(area, copies)
        found = mutant_trial.tried(
            todo,
            copies.paths(),
            lambda mutant: (mutant.module, mutant.text()),
            lambda mutant: tests_for(mutant, record),
        )
        for at, (mutant, noticed, seconds) in enumerate(found, 1):
            entry = {"mutant": asdict(mutant), "noticed": noticed, "content": content_of(area, mutant.module, noticed)}
            with results.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            known[json.dumps(asdict(mutant))] = entry
            place = f"{mutant.module}:{mutant.line}"
            print(f"{name} {at}/{len(todo)}  {seconds:4.0f} s  {place}  {noticed or 'SURVIVED'}", flush=True)
    return len(chosen), [each for each in chosen if known[json.dumps(asdict(each))]["noticed"] is None]


def holds(area: Area, entry: Mapping[str, object] | None) -> bool:
    """Return whether what was found about a mutant is still true."""
    if entry is None:
        return False
    mutant, noticed = entry["mutant"], entry["noticed"]
    assert isinstance(mutant, dict) and (noticed is None or isinstance(noticed, str))
    return bool(entry["content"] == content_of(area, mutant["module"], noticed))


def content_of(area: Area, module: str, noticed: str | None) -> str:
    """Return a name for what a finding depends on: the module, and the test that noticed or all that did not."""
    file = (noticed or "").partition("::")[0]
    files = [file] if (ROOT / file).is_file() else files_of(area.tests)
    return digest(*(read(each) for each in (module, *files)))


def record_of(area: Area, copies: Copies) -> Record:
    """Return what each test of the area runs, from earlier recordings where neither it nor the area has changed."""
    modules = files_of(area.modules)
    content = [read(each) for each in modules]
    kept = {
        file: CACHE / "record" / f"{Path(file).stem}-{digest(*content, read(file))}.json"
        for file in files_of(area.tests)
    }
    missing = [file for file, path in kept.items() if not path.exists()]
    if missing:
        print(f"recording what {len(missing)} test files run", flush=True)
        with tempfile.TemporaryDirectory(prefix="mutants-record-") as directory:
            Path(directory).chmod(0o755)
            copy, found = copies.paths()[0], Path(directory) / "found"
            for file, record in mutant_record.of_tests(copy, modules, missing, found, 2 * copies.jobs).items():
                kept[file].parent.mkdir(parents=True, exist_ok=True)
                kept[file].write_text(json.dumps(record))
    return {test: of_test for path in kept.values() for test, of_test in json.loads(path.read_text()).items()}


def tests_for(mutant: Mutant, record: Record) -> dict[str, float]:
    """Return the tests that run a mutant's function, or all if it is outside of functions, with their seconds.

    Of many only the quickest, as long as a trial may take.
    """
    place = mutant_record.place_of(mutant.module, read(mutant.module).decode(), mutant.line)
    seconds = {test: of_test["seconds"] for test, of_test in record.items() if place in of_test["places"]}
    if place == mutant.module:
        seconds = {test: of_test["seconds"] for test, of_test in record.items()}
    quickest = sorted(seconds, key=lambda test: seconds[test])
    sums = accumulate(seconds[test] for test in quickest)
    return {test: seconds[test] for test, total in zip(quickest, sums, strict=True) if total <= LONGEST_S}


def report(name: str, tried: int, survivors: list[Mutant]) -> None:
    """Print the score, and each survivor with the reason why it cannot matter, if HARMLESS has one."""
    reasons = {mutant: why for mutant in survivors if (why := reason(mutant))}
    killed, matter = tried - len(survivors), tried - len(reasons)
    score = f"{killed} of {tried} killed, {tried - matter} cannot matter"
    print(f"\n{name}: {score}; {killed / max(1, matter):.0%} of those that can")
    for mutant in survivors:
        print(f"  {mutant.operator.removeprefix('core/')} in {mutant.module}")
        print("\n".join(mutant.diff().splitlines()[3:]))
        if mutant in reasons:
            print(f"    cannot matter: {reasons[mutant]}")


def reason(mutant: Mutant) -> str:
    """Return why a mutant cannot matter; empty if HARMLESS does not say so."""
    around = mutant_record.function_of(read(mutant.module).decode(), mutant.line)
    for each in yaml.safe_load(HARMLESS.read_text()):
        if (each["before"], each["after"]) == mutant.lines() and each.get("function", around) == around:
            return str(each["why"])
    return ""


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
    # By content: a change may leave both size and second of a file as they were.
    argv = [sys.executable, "-m", "compileall", "-q", "-j0", "--invalidation-mode", "checked-hash", "."]
    subprocess.run(argv, cwd=copy, check=False, stdout=subprocess.DEVNULL)


def files_of(patterns: tuple[str, ...]) -> list[str]:
    return sorted({str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)})


@cache
def read(name: str) -> bytes:
    """Return a file's content, the same during the whole run: somebody may write a test meanwhile."""
    return (ROOT / name).read_bytes()


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
