"""Break the code in small ways and count which ones the tests notice: `make mutants N=25`.

For each area N mutants are chosen, the same ones every time, and tried in copies of the checkout. What is found is kept
outside it, under ~/.cache/rigup-mutants: a restart continues with what is missing. A mutant is tried again when its
module changes, or the file of the test that noticed it, or any test file of its area if none noticed it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import yaml

from tools.mutants import record as recording
from tools.mutants import trial
from tools.mutants.choice import ROOT, Area, Mutant, choose, files_of, read
from tools.mutants.record import Record, digest

HARMLESS = ROOT / "tools/mutants/harmless.yaml"
"""Changes that cannot matter: their lines before and after, and why."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rigup-mutants"


LONGEST_S = 240.0
"""Seconds of tests for one mutant. One that survives them may still be noticed by the slowest tests."""

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
        found = trial.tried(
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
            for file, record in recording.of_tests(copy, modules, missing, found, 2 * copies.jobs).items():
                kept[file].parent.mkdir(parents=True, exist_ok=True)
                kept[file].write_text(json.dumps(record))
    return {test: of_test for path in kept.values() for test, of_test in json.loads(path.read_text()).items()}


def tests_for(mutant: Mutant, record: Record) -> dict[str, float]:
    """Return the tests that run a mutant's function, or all if it is outside of functions, with their seconds.

    Of many only the quickest, as long as a trial may take.
    """
    place = recording.place_of(mutant.module, read(mutant.module).decode(), mutant.line)
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
    around = recording.function_of(read(mutant.module).decode(), mutant.line)
    for each in yaml.safe_load(HARMLESS.read_text()):
        if (each["before"], each["after"]) == mutant.lines() and each.get("function", around) == around:
            return str(each["why"])
    return ""


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


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
