"""What `make` says before it begins, and how it installs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.host_world import program

ROOT = Path(__file__).resolve().parents[2]
UV = "uv tool install --quiet --reinstall --with-executables-from pyinfra ."
PIPX = "pipx install --force ."
PIP = "python3 -m pip install --quiet --user ."


def make(tools: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run make with only these tools."""
    for name in ("make", "sh"):
        if not (tools / name).exists():
            (tools / name).symlink_to(shutil.which(name) or "")
    argv = [tools / "make", "--no-print-directory", *words]
    return subprocess.run(argv, cwd=ROOT, env={"PATH": str(tools)}, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("release", "root", "said"),
    [
        ("ID=debian\nVERSION_ID=12\n", True, ""),
        ("ID=debian\nVERSION_ID=13\n", True, ""),
        ("ID=debian\nVERSION_ID=13\n", False, "the lab needs root: it boots hosts with networks of their own\n"),
        *(
            (
                f'ID={id}\nVERSION_ID={version}\nPRETTY_NAME="{name}"\n',
                True,
                f"the lab needs Debian 12 or 13, and this is {name}; `make install` works here\n",
            )
            for id, version, name in (
                ("fedora", "43", "Fedora Linux 43"),
                ("debian", "11", "Debian 11"),
                ("arch", "", "Arch"),
            )
        ),
    ],
)
def test_a_machine_that_cannot_have_a_lab_is_told_at_once(tmp_path: Path, release: str, root: bool, said: str) -> None:
    (tmp_path / "os-release").write_text(release)
    program(tmp_path, "id", f"echo {0 if root else 1000}")
    done = make(tmp_path, "lab-machine", f"OS_RELEASE={tmp_path}/os-release")
    assert (done.stdout, done.returncode == 0) == (said, not said)


def test_everything_that_needs_a_lab_asks_for_the_machine_first() -> None:
    said = subprocess.run(
        ["make", "--dry-run", "lab", "OS_RELEASE=the-release"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert said.startswith(". the-release;")


@pytest.mark.parametrize(
    ("tools", "ran"), [(("uv", "pipx", "python3"), UV), (("pipx", "python3"), PIPX), (("python3",), PIP)]
)
def test_it_installs_with_what_there_is(tmp_path: Path, tools: tuple[str, ...], ran: str) -> None:
    for name in tools:
        program(tmp_path, name, f'echo "{name} $*" >>{tmp_path}/ran')
    done = make(tmp_path, "install")
    assert (done.returncode, (tmp_path / "ran").read_text()) == (0, f"{ran}\n")
    assert done.stdout == "rigup is installed. Next: rigup init DIR\n"


def test_where_pip_refuses_it_says_what_to_install(tmp_path: Path) -> None:
    program(tmp_path, "python3", "echo error: externally-managed-environment >&2; exit 1")
    done = make(tmp_path, "install")
    assert done.returncode != 0
    assert done.stdout == "make install: pip refuses. Install uv, or pipx (apt-get install pipx), and run it again\n"
