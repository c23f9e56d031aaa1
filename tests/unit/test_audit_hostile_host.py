"""`rigup audit` of a host whose every answer is markup, escape sequences and what breaks a report: each check has a
result in every form of the report, and no terminal obeys the host."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_sshd import ROOT, Sshd, running_sshd

from rigup.lock import lockfile
from tests.unit.sample import lock
from tests.unit.test_hostile_text import EVIL, is_harmless
from tests.unit.waiting import HANG_S

FORGED = "box: base-packages                           ok"
TEXTS = "".join(each for each in EVIL.values() if each != "\ud800")
ANSWER = f"[red]0[/] [/] {TEXTS}\n{FORGED}\n<b>]]>&\t|"
STEPS = ("base", "kernel")


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    answer = tmp_path / "answer"
    # Bytes that are no text, too.
    answer.write_bytes(ANSWER.encode() + b"\xff\n")
    mark = '$(printf %s "$SSH_ORIGINAL_COMMAND" | grep -oE "[0-9a-f]{32}" | head -n 1)'
    force = f'ForceCommand m={mark}; printf %s "$m-1"; cat {answer}; (printf %s "$m-2"; cat {answer}) >&2\n'
    with running_sshd(tmp_path, force) as server:
        server.lab()
        lockfile.write(Path(server.environment["RIGUP_INVENTORY"]).with_suffix(".lock"), lock())
        yield server


def audit(sshd: Sshd, *arguments: str) -> str:
    """The report, which is harmless whatever its form."""
    steps = [f"--step={step}" for step in STEPS]
    argv = [sys.executable, "-m", "rigup.cli", "audit", *steps, *arguments]
    environment = sshd.shell_environment(RIGUP_CACHE=str(sshd.folder / "facts"))
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, env=environment)
    assert done.returncode == 2, done.stdout + done.stderr
    assert is_harmless(done.stdout) and is_harmless(done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


def test_lines_and_junit(sshd: Sshd) -> None:
    report = sshd.folder / "junit.xml"
    lines = audit(sshd, "--junit", str(report)).splitlines()
    assert any("\\x1b[2J\\x1b]0;owned\\x07" in line and "[red]0[/] [/]" in line for line in lines)
    # What the host says cannot be taken for the result of a check.
    assert FORGED not in lines and f"    {FORGED}" in lines
    assert sum(line.startswith("box: base-packages ") for line in lines) == 1
    cases = ElementTree.parse(report).getroot().iter("testcase")
    assert len([case for case in cases if list(case.iter("failure"))]) > 3


@pytest.mark.parametrize("hosts", [(), ("box",)])
def test_the_command_that_repairs_has_the_inventory_and_the_hosts_of_the_audit(
    sshd: Sshd, hosts: tuple[str, ...]
) -> None:
    inventory = sshd.environment["RIGUP_INVENTORY"]
    named = f"`RIGUP_INVENTORY={inventory} rigup deploy{' box' if hosts else ''}` repairs"
    assert named in audit(sshd, *hosts)


def test_table(sshd: Sshd) -> None:
    table = audit(sshd, "--table")
    assert all(check in table for check in ("base-packages", "base-apt-lock", "kernel-headers"))
