"""`rigup deploy` and `rigup rebuild` are pyinfra's runs, with the options and the hosts of the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.own_command import rigup

# The names of the inventory are groups of pyinfra's here, which its --limit takes too.
LAB = 'rig1 = rig2 = ["@local"]\n'
TOLD = 'import json, pathlib, sys\npathlib.Path("told").write_text(json.dumps(sys.argv[1:]))\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "inventory").mkdir()
    (tmp_path / "inventory/lab.py").write_text(LAB)
    (tmp_path / "inventory/lab.yaml").write_text("hosts: {rig1: {address: a}, rig2: {address: b}}\n")
    for name in ("deploy.py", "rebuild.py"):
        (tmp_path / name).write_text(TOLD)
    return tmp_path


def told(project: Path, *argv: str) -> list[str]:
    """What pyinfra was started with."""
    done = subprocess.run([sys.executable, "-m", "rigup.cli", *argv], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads((project / "told").read_text())
    return found


def test_options_and_hosts_are_passed_on(project: Path) -> None:
    assert told(project, "deploy", "-y") == ["inventory/lab.py", "deploy.py", "--yes"]
    words = ("--data", "a=b c", "-vv", "rig1", "rig2", "--data", "d=", "--dry")
    passed = ["--limit", "rig1", "--limit", "rig2", "--data", "a=b c", "--data", "d=", "--dry", "-vv"]
    assert told(project, "deploy", *words) == ["inventory/lab.py", "deploy.py", *passed]
    assert told(project, "rebuild", *words) == ["inventory/lab.py", "rebuild.py", *passed]


def test_pyinfras_exit_code_is_the_commands(project: Path) -> None:
    (project / "deploy.py").write_text("raise SystemExit(7)\n")
    argv = [sys.executable, "-m", "rigup.cli", "deploy", "-y"]
    assert subprocess.run(argv, cwd=project, capture_output=True).returncode == 7


def test_another_inventory_is_the_one_of_the_run(project: Path) -> None:
    (project / "other.yaml").write_text("hosts: {rig2: {address: b}}\n")
    (project / "deploy.py").write_text(
        'import os, pathlib\npathlib.Path("told").write_text(os.environ["RIGUP_INVENTORY"])\n'
    )
    argv = [sys.executable, "-m", "rigup.cli", "deploy", "-y", "--inventory", "other.yaml"]
    environment = {name: value for name, value in os.environ.items() if name != "RIGUP_INVENTORY"}
    assert subprocess.run(argv, cwd=project, env=environment, capture_output=True).returncode == 0
    assert (project / "told").read_text() == "other.yaml"


@pytest.mark.parametrize("command", ["deploy", "rebuild"])
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rig3", "no host is named 'rig3': did you mean rig2 or rig1?"),
        ("rig1/mian", "rig1 has no endpoint 'mian': did you mean main?"),
        ("rig1/main", "rig1/main: this command works on whole hosts: write rig1"),
    ],
)
def test_what_the_inventory_does_not_have_is_refused_before_pyinfra_starts(
    project: Path, command: str, word: str, message: str
) -> None:
    done = rigup(command, "rig1", word, cwd=project)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert not (project / "told").exists()


def test_a_rebuild_of_all_hosts_must_be_meant(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        rigup("rebuild", "-y", cwd=project)
    assert ended.value.code == 1
    assert not (project / "told").exists()


@pytest.mark.parametrize("argv", [("deploy",), ("rebuild", "rig1"), ("plan",)])
def test_outside_a_project_the_commands_say_how_to_make_one(tmp_path: Path, argv: tuple[str, ...]) -> None:
    done = rigup(*argv, cwd=tmp_path)
    assert done.returncode == 1
    file = "rebuild.py" if argv[0] == "rebuild" else "deploy.py"
    assert f"{tmp_path} has no {file} and inventory/lab.py: change to the directory that has them" in done.stderr
    assert "`rigup init DIR`" in done.stderr
