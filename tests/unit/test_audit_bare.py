"""`rigup audit` of a host on which nothing is deployed: one sentence instead of a finding for each check."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rigup.lock import lockfile
from tests.unit.loopback_sshd import ROOT, Sshd, running_sshd
from tests.unit.sample import lock
from tests.unit.waiting import HANG_S


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with running_sshd(tmp_path) as server:
        server.lab()
        lockfile.write(Path(server.environment["RIGUP_INVENTORY"]).with_suffix(".lock"), lock())
        yield server


def audit(sshd: Sshd, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "rigup.cli", "audit", "box", "--step=base", *arguments]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, env=sshd.shell_environment())


@pytest.mark.parametrize("form", [[], ["--table"], ["--failed"]], ids=["lines", "table", "failed"])
def test_it_says_so_and_what_to_do(sshd: Sshd, form: list[str]) -> None:
    done = audit(sshd, *form)
    assert done.returncode == 2
    command = f"RIGUP_INVENTORY={sshd.environment['RIGUP_INVENTORY']} rigup deploy box"
    assert done.stdout.count(f"box: nothing is deployed here. Next: `{command}`\n") == 1
    assert "FAILED" not in done.stdout and "findings" not in done.stdout


def test_so_does_its_json(sshd: Sshd) -> None:
    done = audit(sshd, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["result"], found["bare"], found["checks"]) == (2, "findings", ["box"], [])
