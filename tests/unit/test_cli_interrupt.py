"""Ctrl-C at any moment ends rigup with one line and 130: while it imports, while it waits for a host, as it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rigup.cli._new_project import FILES
from tests.unit.loopback_sshd import PYINFRA, ROOT, children
from tests.unit.own_address import OWN_ADDRESS
from tests.unit.waiting import HANG_S

# The same signal that a terminal sends, at the import of a module.
HOOK = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["CTRL_C_AT"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
        return None

sys.meta_path.insert(0, Finder())
"""
AT_EXIT = """
import atexit, os, signal
atexit.register(os.kill, os.getpid(), signal.SIGINT)
"""
INTERRUPTED = (130, "", "Interrupted.\n")


def ignores(pid: int, number: signal.Signals) -> bool:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigIgn"], 16) >> (number - 1) & 1)


def result(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


def run(folder: Path, hook: str, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(hook)
    env = {**os.environ, "PYTHONPATH": str(folder), **environment}
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=HANG_S)


@pytest.mark.parametrize(
    "module",
    ["rigup.cli.main", "pyinfra", "gevent", "paramiko", "pydantic", "rich.console", "rigup.cli.version"],
)
def test_while_modules_are_imported(tmp_path: Path, module: str) -> None:
    done = run(tmp_path, HOOK, sys.executable, "-m", "rigup.cli", "version", CTRL_C_AT=module)
    assert result(done) == INTERRUPTED


def test_as_the_interpreter_ends(tmp_path: Path) -> None:
    done = run(tmp_path, AT_EXIT, sys.executable, "-m", "rigup.cli", "completion", "bash")
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")


def test_the_installed_program_is_the_one_that_is_tested_here() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"rigup": "rigup.cli.__main__:main"}


@pytest.mark.parametrize(
    "words", [["status"], ["models"], ["key", "box"], ["plan"], ["audit"]], ids=lambda words: words[0]
)
def test_while_it_waits_for_a_host(tmp_path: Path, words: list[str]) -> None:
    with socket.create_server((OWN_ADDRESS, 0)) as silent:
        host = f"{{address: {OWN_ADDRESS}, port: {silent.getsockname()[1]}, user: root, known_hosts: /dev/null, "
        public = "endpoints: {main: {listen: 192.0.2.7, allowed_networks: [192.0.2.0/24]}}}"
        inventory = tmp_path / "lab.yaml"
        inventory.write_text(f"hosts: {{box: {host}{public}}}\n")
        argv = [sys.executable, "-m", "rigup.cli", *words, f"--inventory={inventory}"]
        pipe = subprocess.PIPE
        # As a terminal does, to the whole group of processes.
        with subprocess.Popen(argv, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, process_group=0) as waiting:
            silent.settimeout(HANG_S)
            connection, _ = silent.accept()
            if words == ["audit"]:
                # Its pytest prints to the same terminal, and would print its own words.
                assert all(ignores(child, signal.SIGINT) for child in children(waiting.pid))
            os.killpg(waiting.pid, signal.SIGINT)
            out, err = waiting.communicate(timeout=HANG_S)
            connection.close()
    assert (waiting.returncode, out, err) == INTERRUPTED


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project directory with a host that refuses connections."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "inventory/lab.yaml").write_text(f"hosts: {{box: {{address: {OWN_ADDRESS}, port: 9, user: root}}}}\n")
    return tmp_path


# The program that runs pyinfra, what pyinfra imports before and after it has set a handler of its own, the project.
DEPLOY = ("rigup.cli._pyinfra", "gevent", "pyinfra_cli.inventory", "rigup.project", "rigup.run.recorder")


@pytest.mark.parametrize("module", DEPLOY)
def test_a_deploy_at_every_stage_of_its_start(project: Path, module: str) -> None:
    done = run(project, HOOK, sys.executable, "-m", "rigup.cli", "deploy", "-y", CTRL_C_AT=module)
    # What pyinfra is about to do may stand before it.
    assert (done.returncode, done.stdout) == (130, "")
    assert [line for line in done.stderr.splitlines() if not line.startswith("-->")] == ["Interrupted."]


def test_a_ctrl_c_between_the_two_programs_of_a_deploy_is_not_lost(project: Path) -> None:
    # As the second interpreter starts, where a handler of Python would print a traceback.
    hook = "import os, signal, sys\nif '_pyinfra' in ' '.join(sys.orig_argv): os.kill(os.getpid(), signal.SIGINT)\n"
    done = run(project, hook, sys.executable, "-m", "rigup.cli", "deploy", "-y")
    assert result(done) == INTERRUPTED


def test_pyinfras_own_program_once_it_reads_the_inventory(project: Path) -> None:
    done = run(project, HOOK, str(PYINFRA), "inventory/lab.py", "deploy.py", CTRL_C_AT="rigup.run.recorder")
    assert done.returncode == 130
    assert [line for line in done.stderr.splitlines() if not line.startswith("-->")] == ["Interrupted."]
