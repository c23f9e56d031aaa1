"""host_package.installed, on this machine, for real: versions come and go, and no program sees two of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rigup.operations import host_package
from tests.unit.deploys import Outcome, on_this_machine
from tests.unit.host_world import FILES
from tests.unit.test_operations_files import ME

WAITS = "import sys\n\n\ndef main(argv):\n    print('{version}', flush=True)\n    sys.stdin.read()\n    return 0\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the programs; the test gives `drift` another text."""
    copy = tmp_path / "files"
    shutil.copytree(FILES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def change(source: Path, version: str) -> None:
    host_package.package_files.cache_clear()
    (source / "rigup_host/drift.py").write_text(WAITS.format(version=version))


def install(source: Path, versions: Path) -> Outcome:
    return on_this_machine(host_package.installed, versions=str(versions), source=source, **ME)


def directories(versions: Path) -> list[str]:
    """The names of all versions."""
    return sorted(path.name for path in versions.iterdir() if path.is_dir() and not path.is_symlink())


@contextmanager
def running(versions: Path) -> Iterator[subprocess.Popen[str]]:
    """The program `drift` of the current version, which prints its version and waits."""
    argv = [sys.executable, "-IB", str(versions / "current/rigup-host"), "drift"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.communicate("")


def test_the_programs_are_installed_once_and_run_from_the_link(source: Path, tmp_path: Path) -> None:
    versions = tmp_path / "it's rigup" / "host"

    first, second = install(source, versions), install(source, versions)

    assert (first.foreseen, first.changed, first.failed) == (True, True, False), first.told
    assert (second.foreseen, second.changed, second.failed) == (False, False, False)
    assert os.listdir(versions / "current") and directories(versions) == [os.readlink(versions / "current")]
    said = subprocess.run([versions / "current/rigup-host", "--help"], capture_output=True, text=True)
    assert said.returncode == 0 and "wait-ready" in said.stdout, said.stderr
    # Running it leaves nothing behind that the next deploy or the audit would find.
    assert not install(source, versions).changed


def test_a_version_is_removed_once_no_program_of_it_runs(source: Path, tmp_path: Path) -> None:
    versions = tmp_path / "host"
    change(source, "one")
    install(source, versions)
    old = os.readlink(versions / "current")

    with running(versions) as program:
        assert program.stdout and program.stdout.readline() == "one\n"
        change(source, "two")
        assert install(source, versions).changed
        new = os.readlink(versions / "current")
        assert directories(versions) == sorted([old, new])
        with running(versions) as other:
            assert other.stdout and other.stdout.readline() == "two\n"
    change(source, "three")
    install(source, versions)

    assert directories(versions) == [os.readlink(versions / "current")]


@pytest.mark.parametrize("harm", ["edited", "removed", "added", "opened"])
def test_a_damaged_version_is_replaced_as_a_whole(source: Path, tmp_path: Path, harm: str) -> None:
    versions = tmp_path / "host"
    install(source, versions)
    program = versions / "current/rigup_host/files.py"
    if harm == "edited":
        program.write_text("# by hand\n")
    elif harm == "removed":
        program.unlink()
    elif harm == "added":
        (versions / "current/os.py").write_text("")
    else:
        program.chmod(0o666)

    outcome = install(source, versions)

    assert (outcome.changed, outcome.failed) == (True, False), outcome.told
    assert program.read_bytes() == (source / "rigup_host/files.py").read_bytes()
    assert not (versions / "current/os.py").exists()
    assert directories(versions) == [os.readlink(versions / "current")]
    assert not install(source, versions).changed


def test_what_an_interrupted_installation_leaves_is_removed_by_the_next(source: Path, tmp_path: Path) -> None:
    versions = tmp_path / "host"
    (versions / "0123456789ab.x1y2z3/rigup_host").mkdir(parents=True)
    (versions / ".current").symlink_to("nowhere")

    assert not install(source, versions).failed

    assert sorted(os.listdir(versions)) == sorted([*directories(versions), "current"])
    assert len(directories(versions)) == 1
