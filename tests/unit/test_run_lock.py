"""The lock of a host: a second run is refused or waits, and a run that died holds nothing."""

from __future__ import annotations

import getpass
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rigup import paths
from rigup.operations.run_lock import Holder, lock_command, parse_holder
from tests.unit.loopback_sshd import PYINFRA, Sshd, running_sshd
from tests.unit.waiting import HANG_S, until

DEPLOY = """
from pyinfra.operations import files, server
from rigup import paths
from rigup.operations import run_lock
paths.RUN_LOCK, paths.RUN_LOCK_COPY = "{folder}/run/lock", "{folder}/lock-copy"
run_lock.held(name="lock", wait={wait})
files.line(name="note", path="{folder}/{name}", line="done")
if {waits}:
    server.shell(name="wait", commands="touch {folder}/started; while ! test -e {folder}/go; do sleep 0.1; done")
"""


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    monkeypatch.setattr(paths, "RUN_LOCK", f"{tmp_path}/run/lock")
    monkeypatch.setattr(paths, "RUN_LOCK_COPY", f"{tmp_path}/lock-copy")
    with running_sshd(tmp_path) as server:
        yield server


def arguments(sshd: Sshd, name: str, *, wait: bool = False, waits: bool = False, connector: str = "rig") -> list[str]:
    text = DEPLOY.format(folder=sshd.folder, name=name, wait=wait, waits=waits)
    (sshd.folder / f"{name}.py").write_text(text)
    return [str(sshd.inventory(connector)), f"{name}.py", "-y", "-v"]


@contextmanager
def running(sshd: Sshd, name: str, **how: bool) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [str(PYINFRA), *arguments(sshd, name, **how)],  # type: ignore[arg-type]
        cwd=sshd.folder,
        env=sshd.shell_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def first_run(sshd: Sshd) -> Iterator[subprocess.Popen[str]]:
    """A run that holds the lock and goes on until `go` exists."""
    try:
        with running(sshd, "first", waits=True) as process:
            until((sshd.folder / "started").exists, lambda: process.poll() is None)
            yield process
    finally:
        # A command of a killed run goes on.
        (sshd.folder / "go").touch()


@pytest.mark.parametrize("connector", ["rig", "ssh"])
def test_a_second_run_is_refused_with_who_holds_the_host_and_changes_nothing(sshd: Sshd, connector: str) -> None:
    with first_run(sshd) as first:
        second = sshd.pyinfra(*arguments(sshd, "second", connector=connector))

        said = re.sub(r"\s+", " ", second.stdout + second.stderr)
        assert second.returncode == 1
        assert f"another run is changing box: {getpass.getuser()} on" in said
        assert socket.gethostname() in said and "--data lock=wait" in said and "Traceback" not in said
        assert not (sshd.folder / "second").exists()

        (sshd.folder / "go").touch()
        assert first.wait(HANG_S) == 0


def test_a_run_that_waits_begins_when_the_other_has_ended(sshd: Sshd) -> None:
    with first_run(sshd) as first, running(sshd, "second", wait=True) as second:
        assert second.stdout is not None
        assert any("waiting for another run" in line for line in second.stdout)
        assert not (sshd.folder / "second").exists() and second.poll() is None
        (sshd.folder / "go").touch()
        assert first.wait(HANG_S) == 0
        said = second.communicate(timeout=HANG_S)[0]
        assert second.returncode == 0, said
        assert (sshd.folder / "second").read_text() == "done\n"


def test_a_run_that_was_killed_holds_nothing(sshd: Sshd) -> None:
    with first_run(sshd) as first:
        first.send_signal(signal.SIGKILL)
        first.wait(HANG_S)
        # Its last command goes on; its connection ends.
        until(lambda: take("probe") is None)
        (sshd.folder / "run/lock").unlink()


def test_a_run_that_changes_nothing_takes_no_lock(sshd: Sshd) -> None:
    first = sshd.pyinfra(*arguments(sshd, "first"))
    assert first.returncode == 0, first.stderr
    lock = (sshd.folder / "run/lock").read_text()
    again = sshd.pyinfra(*arguments(sshd, "first"))

    assert "remote executions: 1" in again.stderr, again.stderr
    assert (sshd.folder / "run/lock").read_text() == lock


def command(*words: str) -> str:
    return lock_command(*words).get_raw_value()


def take(run: str) -> Holder | None:
    """Take the lock in this process's session; return the other run that holds it."""
    argv = command("take", run, f"{run}-user", "desk")
    result = subprocess.run(argv, shell=True, capture_output=True, text=True, check=True)
    return parse_holder(result.stdout.splitlines())


def reboot(folder: Path, **changes: object) -> Path:
    """Take the lock as run `one`, keep it through a reboot, and reboot: /run is empty, and the boot is another one."""
    take("one")
    subprocess.run(command("outlast", "one", "-", "-", "600"), shell=True, check=True)
    names = ("run", "user", "machine", "since", "boot", "pid", "start", "until")
    copy = folder / "lock-copy"
    record = dict(zip(names, copy.read_text().split(), strict=True)) | {"boot": "another"} | changes
    copy.write_text(" ".join(str(value) for value in record.values()) + "\n")
    (folder / "run/lock").unlink()
    return copy


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "RUN_LOCK", f"{tmp_path}/run/lock")
    monkeypatch.setattr(paths, "RUN_LOCK_COPY", f"{tmp_path}/lock-copy")
    return tmp_path


def test_the_lock_outlasts_the_reboot_of_its_own_run(folder: Path) -> None:
    copy = reboot(folder)
    for _ in range(2):
        # A refused run leaves nothing that would hide the copy.
        held = take("two")
        assert held is not None
        assert (held.run, held.user, held.machine) == ("one", "one-user", "desk")

    assert take("one") is None and not copy.exists()
    assert take("two") is not None


def test_a_host_that_was_away_for_too_long_is_free(folder: Path) -> None:
    reboot(folder, until=1)
    assert take("two") is None
    held = take("one")
    assert held is not None and held.run == "two"


def test_only_the_holder_may_keep_it_through_a_reboot(folder: Path) -> None:
    take("one")
    refused = subprocess.run(command("outlast", "two", "-", "-", "600"), shell=True, capture_output=True, text=True)
    assert refused.returncode != 0 and "does not hold" in refused.stderr
    assert not (folder / "lock-copy").exists()


@pytest.mark.parametrize("torn", ["", "one ann", "one ann desk 1 boot 1 1 1 1 1", "one ann; desk 1 boot 1 1 1\n"])
def test_a_torn_record_names_no_holder(folder: Path, torn: str) -> None:
    (folder / "run").mkdir()
    (folder / "run/lock").write_text(torn)
    assert take("two") is None
    assert take("one") is not None


@pytest.mark.parametrize("said", ["", "held", "held a b c d e", "taken by force", "\x1b[31mtaken"])
def test_a_host_that_answers_something_else_is_refused(said: str) -> None:
    with pytest.raises(ValueError, match=r"unexpected answer|invalid literal"):
        parse_holder([said])
