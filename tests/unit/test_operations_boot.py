"""Operations on generated files, environments and users: what they run, and when they have nothing to do."""

import re
import subprocess
from pathlib import Path

import pytest
from deploys import Actor, on_this_machine
from pyinfra.api.operation import OperationMeta

from rigup.operations import boot, users, venv
from rigup.operations._host import exclusive
from tests.unit.waiting import until

SOURCE = "/etc/modprobe.d/rigup.conf"
UNCHANGED = OperationMeta("source", is_change=False)
TO_BE_WRITTEN = OperationMeta("source", is_change=True)
SHA = "a" * 64


def test_every_initramfs_that_is_older_than_the_options_is_made_anew() -> None:
    host = Actor().answers("update-initramfs", ["/usr/sbin/update-initramfs"])
    host.answers(
        "find /boot ",
        [
            "/boot/initrd.img-6.12.0-1-amd64",
            "/boot/initrd.img-6.1.0-9-amd64",
            # Not of kernels of these names.
            "/boot/initrd.img-6.1.0-9-amd64.old-dkms",
            "/boot/initrd.img-6.1.0-9-amd64.dpkg-bak",
            "/boot/initrd.img-6.1.0-9-amd64.new",
        ],
    )
    outcome = host.does(boot.initramfs, source=SOURCE, written=UNCHANGED)
    assert outcome.changed
    assert [command for command in outcome.commands if command.startswith("flock ")] == [
        "flock /boot update-initramfs -u -k 6.1.0-9-amd64",
        "flock /boot update-initramfs -u -k 6.12.0-1-amd64",
    ]


def test_an_initramfs_that_is_newer_than_the_options_is_left_alone() -> None:
    host = Actor().answers("command -v update-initramfs", ["/usr/sbin/update-initramfs"]).answers("find /boot ", [])
    outcome = host.does(boot.initramfs, source=SOURCE, written=UNCHANGED)
    assert not outcome.foreseen
    assert not outcome.changed


def test_a_plan_foresees_the_initramfs_of_options_that_are_still_to_be_written() -> None:
    host = Actor().answers("command -v update-initramfs", ["/usr/sbin/update-initramfs"]).answers("find /boot ", [])
    assert host.does(boot.initramfs, source=SOURCE, written=TO_BE_WRITTEN).foreseen


def test_a_menu_older_than_its_drop_in_is_made_anew() -> None:
    host = Actor().answers("command -v update-grub", ["/usr/sbin/update-grub"])
    host.answers("find /boot/grub ", ["/boot/grub/grub.cfg"])
    outcome = host.does(boot.grub, source="/etc/default/grub.d/60-rigup.cfg", written=UNCHANGED)
    assert outcome.ran("flock /boot update-grub") >= 1


def test_what_a_killed_run_has_begun_is_waited_for(tmp_path: Path) -> None:
    log, room = tmp_path / "log", tmp_path / "room"
    room.mkdir()

    def begin(script: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sh", "-c", exclusive(str(room), f"sh -c '{script}'").get_raw_value()])

    left_over = begin(f"echo begun >>{log}; until [ -e {tmp_path}/go ]; do sleep 0.02; done; echo ended >>{log}")
    until(log.exists, lambda: left_over.poll() is None)
    next_run = begin(f"echo next >>{log}")
    # An arrow marks a process that waits for a lock; files are identified by inode (proc_locks(5)).
    waits = re.compile(rf"-> FLOCK .*:{room.stat().st_ino} ")
    until(lambda: waits.search(Path("/proc/locks").read_text()), lambda: next_run.poll() is None)
    (tmp_path / "go").touch()
    assert (left_over.wait(), next_run.wait()) == (0, 0)
    assert log.read_text().split() == ["begun", "ended", "next"]


@pytest.mark.parametrize("operation", [boot.grub, boot.initramfs])
def test_a_host_that_boots_otherwise_is_left_alone(operation: object) -> None:
    outcome = Actor().does(operation, source=SOURCE, written=TO_BE_WRITTEN)  # type: ignore[arg-type]
    assert not outcome.changed


def test_an_environment_is_made_anew_where_its_packages_are_not_the_locked_ones_and_says_so_last() -> None:
    host = Actor().answers("/opt/venv/requirements.lock", [f"{'b' * 64}  /opt/venv/requirements.lock"])
    host.answers("/opt/wanted.lock", [f"{SHA}  /opt/wanted.lock"])
    outcome = host.does(
        venv.synced, path="/opt/venv", requirements="/opt/wanted.lock", index="http://mirror:8000/simple"
    )
    made = [command for command in outcome.commands if "sha256" not in command]
    assert made == [
        "flock /opt python3 -m venv --clear /opt/venv",
        "flock /opt /opt/venv/bin/pip install --quiet --no-input --no-cache-dir --disable-pip-version-check "
        "--require-hashes --requirement /opt/wanted.lock --index-url http://mirror:8000/simple --trusted-host mirror",
        "install -m 0644 /opt/wanted.lock /opt/venv/requirements.lock",
    ]


def test_an_environment_with_the_locked_packages_is_left_alone() -> None:
    host = Actor().answers("/opt/venv/requirements.lock", [f"{SHA}  /opt/venv/requirements.lock"])
    host.answers("/opt/wanted.lock", [f"{SHA}  /opt/wanted.lock"])
    assert not host.does(venv.synced, path="/opt/venv", requirements="/opt/wanted.lock", index="https://pypi").changed


def test_an_environment_that_an_earlier_umask_closed_is_opened_once(tmp_path: Path) -> None:
    made = tmp_path / "venv"
    (made / "bin").mkdir(parents=True)
    for name, mode in (("bin/python", 0o700), ("bin/link", 0), ("lib.py", 0o600), ("requirements.lock", 0o644)):
        (made / name).symlink_to("/nonexistent") if not mode else (made / name).touch(mode)
    wanted = tmp_path / "wanted.lock"
    wanted.touch()
    for each in (made, made / "bin"):
        each.chmod(0o700)
    arguments = {"path": str(made), "requirements": str(wanted), "index": "https://pypi"}
    assert on_this_machine(venv.synced, **arguments).changed
    found = {path.name: oct(path.stat().st_mode)[-3:] for path in (made, *made.rglob("*")) if not path.is_symlink()}
    assert found == {"venv": "755", "bin": "755", "python": "755", "lib.py": "644", "requirements.lock": "644"}
    assert not on_this_machine(venv.synced, **arguments).changed
    (made / "lib.py").chmod(0o640)
    assert on_this_machine(venv.synced, **arguments).changed


def test_an_index_with_tls_is_not_trusted_blindly() -> None:
    assert venv.index_arguments("https://pypi.org/simple") == ["--index-url", "https://pypi.org/simple"]


def test_a_user_is_made_once() -> None:
    made = Actor().does(users.system, user="rigup-fetch")
    assert made.ran("useradd --system --user-group --no-create-home") == 1
    there = Actor().answers("getent passwd", ["rigup-fetch:x:996:996::/nonexistent:/usr/sbin/nologin"])
    assert not there.does(users.system, user="rigup-fetch").changed
