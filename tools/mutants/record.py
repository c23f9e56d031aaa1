"""Record which tests run which functions, also in the processes that they start: `make mutants` runs only those."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias, TypedDict

import pytest

DIRECTORY = "RIGUP_MUTANTS_RECORD"
"""The variable with the directory that takes what one recording finds."""

# In each module: host programs import nothing from a checkout, and some run without any environment.
RECORDER = """
def ran_here(place, seen=set()):
    import json, os
    directory = {directory!r}
    try:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        tests = [test] if test else [open(f"{{directory}}/now/{{each}}").read() for each in os.listdir(directory + "/now")]
        for test in tests:
            if (test, place) not in seen:
                seen.add((test, place))
                end = os.open(directory + "/ran", os.O_WRONLY | os.O_APPEND)
                os.write(end, (json.dumps([test, place]) + "\\n").encode())
                os.close(end)
    except OSError:
        pass
"""  # noqa: E501


class OfTest(TypedDict):
    """What one test takes and runs."""

    seconds: float
    places: list[str]


Record: TypeAlias = dict[str, OfTest]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Name the test that runs now for processes that do not inherit the name."""
    directory = Path(os.environ[DIRECTORY])
    now = directory / "now" / str(os.getpid())
    now.write_text(item.nodeid)
    try:
        return (yield)
    finally:
        now.unlink()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    with Path(os.environ[DIRECTORY], "seconds").open("a") as file:
        file.write(json.dumps([report.nodeid, report.duration]) + "\n")


def place_of(module: str, source: str, line: int) -> str:
    """Return the innermost function around a line, as recordings name it; of other lines the module's name."""
    function = _around(source, line)
    return f"{module}:{function.lineno}" if function else module


def function_of(source: str, line: int) -> str:
    """Return the name of the innermost function around a line; empty if there is none."""
    function = _around(source, line)
    return function.name if function else ""


def _around(source: str, line: int) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    found = [each for each in _functions(source) if each.lineno <= line <= (each.end_lineno or 0)]
    return max(found, key=lambda each: each.lineno, default=None)


def of_tests(copy: Path, modules: Sequence[str], files: Sequence[str], directory: Path, jobs: int) -> dict[str, Record]:
    """Return of each test file its tests, with their seconds and the places that they run. Exit if one fails.

    Leaves the modules in the copy as they were.
    """
    (directory / "now").mkdir(parents=True)
    for name in ("ran", "seconds"):
        (directory / name).touch()
        (directory / name).chmod(0o666)
    before = {module: (copy / module).read_text() for module in modules}
    for module, source in before.items():
        (copy / module).write_text(_recording(module, source, directory))
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "tools.mutants.record", "-n", str(jobs)]
    environment = {**os.environ, "PYTHONPATH": str(copy), DIRECTORY: str(directory)}
    try:
        done = subprocess.run(
            [*argv, "--dist", "worksteal", *files], cwd=copy, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True,
        )  # fmt: skip
    finally:
        for module, source in before.items():
            (copy / module).write_text(source)
    if done.returncode:
        raise SystemExit(f"{done.stdout[-4000:]}\nthe tests fail without any change: run `make unit` first")
    found: dict[str, Record] = {file: {} for file in files}
    # Workers and their controller report the same seconds.
    for test, seconds in {tuple(json.loads(line)) for line in (directory / "seconds").read_text().splitlines()}:
        of_test = found[test.partition("::")[0]].setdefault(test, {"seconds": 0.0, "places": []})
        of_test["seconds"] = round(of_test["seconds"] + seconds, 2)
    for test, place in sorted({tuple(json.loads(line)) for line in (directory / "ran").read_text().splitlines()}):
        if known := found.get(test.partition("::")[0], {}).get(test):
            known["places"].append(place)
    return found


def digest(*content: bytes) -> str:
    return hashlib.sha256(b"\0".join(content)).hexdigest()[:16]


def _functions(source: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return the functions whose body has lines of its own, besides a docstring."""
    found = [each for each in ast.walk(ast.parse(source)) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [each for each in found if (first := _first(each)) is not None and first > each.lineno]


def _first(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int | None:
    """Return the line of the first statement after a docstring, if there is one."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    if not body:
        return None
    decorators: list[ast.expr] = getattr(body[0], "decorator_list", [])
    return min([body[0].lineno, *(each.lineno for each in decorators)])


def _recording(module: str, source: str, directory: Path) -> str:
    """Return a module that records each call of its functions."""
    added: dict[int, list[str]] = {}
    for function in _functions(source):
        line = _first(function)
        assert line is not None
        added.setdefault(line, []).append(
            " " * function.body[-1].col_offset + f"ran_here('{module}:{function.lineno}')"
        )
    # After the docstring and what must come first.
    head = 0
    for at, each in enumerate(ast.parse(source).body):
        is_docstring = at == 0 and isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)
        if is_docstring or (isinstance(each, ast.ImportFrom) and each.module == "__future__"):
            head = each.end_lineno or 0
    added.setdefault(head + 1, []).insert(0, RECORDER.format(directory=str(directory)))
    lines = []
    for number, text in enumerate(source.splitlines(), 1):
        lines += [*added.get(number, []), text]
    return "\n".join(lines) + "\n"
