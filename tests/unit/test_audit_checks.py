"""What every check of the audit says of itself, and that checks share no code with the steps that they check."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import io
import re
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest

from rigup.cli import audit
from rigup.cli._terminal import SafeConsole
from tests.lab import breaks

ROOT = Path(__file__).resolve().parents[2]
AUDIT = ROOT / "tests/audit"

# The road, from the table of contents, and who is asked where no step can help.
STEPS = re.findall(r"^from tasks\.(\w+) import", (ROOT / "deploy.py").read_text(), re.MULTILINE)
YOU = "you"


@pytest.fixture
def checks() -> dict[str, FunctionType]:
    """All checks by their file's step and function: `docker test_docker_cdi`."""
    found = {}
    for path in sorted(AUDIT.glob("test_*.py")):
        spec = importlib.util.spec_from_file_location(f"audit_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if name.startswith("test_"):
                found[f"{path.stem.removeprefix('test_')} {name}"] = function
    return found


def test_every_check_names_a_step_that_there_is_and_is_named_for_its_file(checks: dict[str, FunctionType]) -> None:
    assert len(checks) > 60
    for name, function in checks.items():
        step, test = name.split()
        about = function.about  # type: ignore[attr-defined]
        assert test.startswith(f"test_{step}_"), name
        assert function.__doc__, name
        steps = about.repair or (step,)
        assert steps == (YOU,) or set(steps) <= {*STEPS} - {"preflight"}, name


def test_what_is_checked_is_made_by_the_step_that_the_check_names(checks: dict[str, FunctionType]) -> None:
    """Where what a step makes is named in a check's own text, that step is among those that repair it."""
    made = {
        "rig.text(PLAN)": "serve",
        "/proc/cmdline": "reboot",
        "/parameters/": "reboot",
        "nvidia-ctk cdi list": "reboot",
        'unit("nvidia-persistenced.service")': "reboot",
        "/sys/module/nvidia/version": "reboot",
        "{FETCH_UNIT}*": "serve",
        "{FETCH_UNIT}.service": "model",
        "HOST_CURRENT": "base",
        "expect_units(rig, COMMIT_UNIT)": "serve",
        "AUDIT_TIMER": "watch",
        "daemon.json": "docker",
        "grub.cfg": "kernel",
    }
    for what, step in made.items():
        named = {name: function for name, function in checks.items() if what in inspect.getsource(function)}
        assert named, what
        for name, function in named.items():
            about = function.about  # type: ignore[attr-defined]
            assert step in (about.repair or (name.split()[0],)), name


# What breaks these breaks others too: they are among what a test's other breaks must be found by.
TOGETHER = {
    "docker-log-driver",
    "serve-gpus",
    "serve-container",
    "verify-health",
    "verify-models",
    "verify-completion",
}
# Broken in tests of their own: the daily audit's, a store's disk, those of a recipe without a container, and bridges,
# which lab hosts lack.
ELSEWHERE = {"watch-timer", "model-disk", "config-venv", "serve-process", "hardware-acs"}


def test_every_check_was_seen_to_fail_for_what_it_is_about(checks: dict[str, FunctionType]) -> None:
    tables = (breaks.LIST, breaks.STOPPED, breaks.DOCKER, breaks.LIGHT, breaks.HEAVY)
    broken = [each for table in tables for each in table]
    alone = (
        {each.check for each in (*broken, breaks.KEY)} | {*breaks.GATEWAY_BREAKS, *breaks.BALANCER_BREAKS} | ELSEWHERE
    )
    ids = {name.split()[1].removeprefix("test_").replace("_", "-") for name in checks}
    assert ids == alone | TOGETHER
    assert {name for each in broken for name in each.also} >= TOGETHER


def imported(path: Path) -> Iterator[Path]:
    """The project's own files that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            place = ROOT / name.replace(".", "/")
            for file in (place.with_suffix(".py"), place / "__init__.py"):
                if file.exists():
                    yield file


def test_no_check_shares_code_with_the_steps_that_it_checks() -> None:
    reached, pending = set[Path](), [*AUDIT.glob("*.py"), *(ROOT / "rigup/audit").glob("*.py")]
    while pending:
        path = pending.pop()
        if path not in reached:
            reached.add(path)
            pending += imported(path)
    assert ROOT / "rigup/plan/model.py" in reached and ROOT / "rigup/audit/subject.py" in reached
    layers = ("operations", "render", "preflight", "facts", "run", "cli")
    makers = (ROOT / "tasks", *(ROOT / "rigup" / layer for layer in layers))
    assert [str(path) for path in sorted(reached) if any(maker in (path, *path.parents) for maker in makers)] == []


def test_a_table_has_a_line_for_each_check_and_a_column_for_each_host() -> None:
    results = {("rig1", "base-sysctl"): "ok", ("rig2", "base-sysctl"): "finding", ("rig1", "docker-cdi"): "ok"}
    told = {"checks": [{"host": h, "check": c, "severity": "major", "result": r} for (h, c), r in results.items()]}

    def lines(failed: bool) -> list[str]:
        out = io.StringIO()
        SafeConsole(file=out).print(audit.table(told, failed))
        return [" ".join(line.split()) for line in out.getvalue().splitlines()]

    assert lines(False) == ["check severity rig1 rig2", "base-sysctl major ok FAILED", "docker-cdi major ok"]
    assert lines(True) == ["check severity rig1 rig2", "base-sysctl major ok FAILED"]
