"""The first steps of a newcomer: `make lab`, the line that it prints, again, and `make lab-down`, which leaves nothing.

They run in their own checkout and lab. The tests build on each other, in file order.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.settings import NUMBER
from tests.lab.rigs import ROOT

PASSING = 200 + NUMBER
PASSING_STATE = Path(f"/var/lib/rigup-lab-{PASSING}")
NOT_CLONED = (".git", ".venv", ".rigup", "__pycache__", ".*_cache", "lab.yaml")

Shell = Callable[..., str]


@pytest.fixture(scope="module")
def shell(services: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Runs a command in the newcomer's checkout, to its success; returns what it printed."""
    checkout = tmp_path_factory.mktemp("newcomer") / "rigup"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*NOT_CLONED))
    mine = {name: value for name, value in os.environ.items() if not name.startswith("RIGUP_")}

    def shell(*argv: str, timeout: float = 1200) -> str:
        done = subprocess.run(
            argv,
            cwd=checkout,
            env={**mine, "RIGUP_LAB": str(PASSING), "PYTHONPATH": str(checkout)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    yield shell
    shell(*LAB_DOWN)


# What the two make targets run once everything is installed.
LAB = (sys.executable, "-m", "lab", "tour", "--hosts", "1")
LAB_DOWN = (sys.executable, "-m", "lab", "down")


def test_make_lab_ends_with_a_line_that_has_the_endpoint_answer(shell: Shell) -> None:
    assert traces() == {}
    told = shell(*LAB)
    assert "Took lab up " in told and ", audit " in told
    after = told.partition("rig1 serves vllm-nvfp4-cu130 at http://127.0.0.1:8000. Try it:\n")[2]
    answer = shell("bash", "-c", after.splitlines()[0])
    assert json.loads(answer[answer.index("{") :])["usage"]["completion_tokens"] == 32, answer
    assert "make lab-down" in after


def test_make_lab_again_changes_nothing(shell: Shell) -> None:
    told = shell(*LAB)
    assert "rig1: 0 changed" in told, told


def test_make_lab_down_leaves_nothing_behind(shell: Shell) -> None:
    shell(sys.executable, "-c", "from lab import machine; machine.get('rig1').add_disk('data', 16 << 20)")
    there = traces()
    assert set(there) >= {"link", "namespace", "mount", "loop device", "control group", "state", "process"}
    assert "the lab is down (1 hosts removed)" in shell(*LAB_DOWN)
    assert traces() == {}


def traces() -> dict[str, set[str]]:
    """Return the traces of the lab on this machine, by kind, without empty kinds."""
    links = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, check=True).stdout)
    loops = subprocess.run(["losetup", "--list", "--noheadings", "--output=BACK-FILE"], capture_output=True, text=True)
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    nspawn = Path("/run/systemd/nspawn")
    found = {
        "link": {link["ifname"] for link in links},
        "namespace": {path.name for path in Path("/run/netns").glob("*")},
        "mount": {line.split()[4] for line in mounts},
        "loop device": set(loops.stdout.splitlines()),
        "control group": {str(path) for path in Path("/sys/fs/cgroup").glob("**/rigup-lab*") if path.is_dir()},
        "nspawn": {str(path) for path in nspawn.rglob("*")} if nspawn.exists() else set(),
        "state": {str(path) for path in PASSING_STATE.parent.glob("*")},
    }
    words = (f"rigup{PASSING}", f"rigup-lab-{PASSING}")
    kept = {kind: {name for name in names if any(word in name for word in words)} for kind, names in found.items()}
    kept["process"] = {str(path) for path in Path("/proc").glob("[0-9]*") if _is_of_the_passing_lab(path)}
    return {kind: names for kind, names in kept.items() if names}


def _is_of_the_passing_lab(process: Path) -> bool:
    try:
        environment = (process / "environ").read_bytes().split(b"\0")
        groups = (process / "cgroup").read_text()
    except OSError:
        return False
    return f"RIGUP_LAB={PASSING}".encode() in environment or f"rigup-lab-{PASSING}/" in groups
