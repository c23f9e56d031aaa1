"""Host programs and the control machine name the same paths, and the launcher lets in nobody else's modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rigup import paths
from rigup_host import paths as on_host
from rigup_host.__main__ import PROGRAMS
from tests.unit.host_world import FILES, LAUNCH

# As they are, before the tests' own ledger takes the place of the host's.
KNOWN = dict(vars(paths))


def test_what_both_name_is_the_same_and_only_the_programs_own_files_are_unknown_to_rigup() -> None:
    named = {name: str(path) for name, path in vars(on_host).items() if name.isupper() and name != "ROOT"}
    assert Path("/") == on_host.ROOT
    assert {name for name in named if name not in KNOWN} == {
        "HARDWARE_BEFORE",
        "PCI_DEVICES",
        "SWITCH_LOCK",
        "SWITCH_UNDER_WAY",
    }
    assert {name: KNOWN[name] for name in named if name in KNOWN} == {
        name: named[name] for name in named if name in KNOWN
    }


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_each_program_starts_whatever_the_working_directory_and_the_environment_hold(
    tmp_path: Path, program: str
) -> None:
    for name in ("json", "http", "rigup_host"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger was imported')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    said = subprocess.run([*LAUNCH, program, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert f"usage: rigup-host {program}" in said.stdout


def test_programs_that_run_without_a_virtual_environment_need_the_standard_library_alone() -> None:
    for program in sorted({*PROGRAMS} - {"hub-worker", "smoke", "tool-calls"}):
        # -S: without site-packages.
        argv = [sys.executable, "-IBS", str(FILES / "rigup-host"), program, "--help"]
        said = subprocess.run(argv, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
