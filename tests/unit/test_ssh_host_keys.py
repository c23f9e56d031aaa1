"""A changed host key: clear words from deploy and audit, and the one command that accepts it. Against a real sshd."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from loopback_sshd import PYINFRA, ROOT, Sshd, running_sshd

from rigup.errors import RigupError
from rigup.ssh import host_keys
from tests.unit.own_address import OWN_ADDRESS
from tests.unit.own_command import rigup
from tests.unit.waiting import HANG_S

OLD = paramiko.RSAKey.generate(2048)


@pytest.fixture
def replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """A host of which another key is known than it shows, among other hosts."""
    with running_sshd(tmp_path) as server:
        server.lab()
        monkeypatch.setenv("RIGUP_INVENTORY", server.environment["RIGUP_INVENTORY"])
        monkeypatch.setenv("RIGUP_CACHE", str(tmp_path / "facts"))
        known = server.folder / "known_hosts"
        known.write_text(
            "# ours\n"
            f"other.example.org,[{OWN_ADDRESS}]:{server.port} ssh-rsa {OLD.get_base64()} old\n"
            f"peer ssh-rsa {OLD.get_base64()}\n"
        )
        known.chmod(0o640)
        yield server


def audit() -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rigup.cli", "audit"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S)


def test_deploy_and_audit_say_what_to_do(replaced: Sshd) -> None:
    argv = [str(PYINFRA), "inventory/lab.py", "fact", "server.Kernel", "-y"]
    deploy = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S)
    for done in (deploy, audit()):
        assert done.returncode == 1
        said = " ".join((done.stdout + done.stderr).split())
        assert "its host key has changed" in said, said
        assert "`rigup accept box`" in said
        assert "ssh-keygen -R" not in said


def test_the_new_key_is_shown_and_accepted_and_all_others_stay(replaced: Sshd) -> None:
    known = replaced.folder / "known_hosts"
    before = known.read_text()
    refused = rigup("accept", "box", cwd=ROOT, answer="n\n")
    assert refused.returncode == 1
    assert OLD.fingerprint in refused.stdout
    assert known.read_text() == before

    accepted = rigup("accept", "box", cwd=ROOT, answer="y\n")
    assert accepted.returncode == 0, accepted.stderr
    lines = known.read_text().splitlines()
    assert lines[:3] == [
        "# ours",
        f"other.example.org ssh-rsa {OLD.get_base64()} old",
        f"peer ssh-rsa {OLD.get_base64()}",
    ]
    assert known.stat().st_mode & 0o777 == 0o640
    assert "no connection" not in audit().stdout
    again = rigup("accept", "box", "-y", cwd=ROOT)
    assert (again.returncode, known.read_text().splitlines()) == (0, lines)


@pytest.fixture
def unknown(replaced: Sshd, monkeypatch: pytest.MonkeyPatch) -> Sshd:
    """A host that nobody here has connected to, without a file of known ones."""
    known = replaced.folder / "new" / "known_hosts"
    replaced.lab(known_hosts=str(known))
    return replaced


def deploy() -> subprocess.CompletedProcess[str]:
    argv = [str(PYINFRA), "inventory/lab.py", "fact", "server.Kernel", "-y"]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S)


COMMANDS = {
    "status": lambda: rigup("status", cwd=ROOT),
    "key": lambda: rigup("key", "box", cwd=ROOT),
    "models": lambda: rigup("models", cwd=ROOT),
    "audit": audit,
    "deploy": deploy,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_first_use_pins_the_key_and_another_one_is_refused(unknown: Sshd, command: str) -> None:
    public = {"endpoints": {"main": {"listen": "192.0.2.7", "allowed_networks": ["192.0.2.0/24"]}}}
    known = unknown.folder / "new" / "known_hosts"
    unknown.lab(known_hosts=str(known), **public)
    COMMANDS[command]()
    real = (unknown.folder / "host_key.pub").read_text().split()[:2]
    assert known.read_text().split() == [f"[{OWN_ADDRESS}]:{unknown.port}", *real]
    assert known.stat().st_mode & 0o777 == 0o600
    known.write_text(f"no key at all\nx ssh-rsa AAAA!\n[{OWN_ADDRESS}]:{unknown.port} ssh-rsa {OLD.get_base64()}\n")
    for again in COMMANDS.values() if command == "status" else [COMMANDS[command]]:
        done = again()
        assert done.returncode == 1
        assert "its host key has changed" in " ".join((done.stdout + done.stderr).split()), done


def test_a_key_that_was_pinned_in_this_run_is_known_to_its_next_connection(unknown: Sshd) -> None:
    known = unknown.folder / "new" / "known_hosts"
    (unknown.folder / "deploy.py").write_text(
        "from pyinfra import host\nkeys = host.connector.client.get_host_keys()\n"
        f"assert keys.lookup('[{OWN_ADDRESS}]:{unknown.port}')\n"
    )
    done = unknown.pyinfra(str(unknown.inventory(ssh_known_hosts_file=str(known))), "deploy.py", "-y")
    assert done.returncode == 0, done.stderr


def test_a_key_that_cannot_be_pinned_is_not_accepted(unknown: Sshd) -> None:
    (unknown.folder / "new").write_text("a file, no directory")
    done = rigup("status", cwd=ROOT)
    assert done.returncode == 1
    assert "so its key is not pinned" in " ".join(done.stdout.split())


def test_no_other_module_connects() -> None:
    for path in (ROOT / "rigup").rglob("*.py"):
        text = path.read_text()
        assert "AutoAddPolicy" not in text and "WarningPolicy" not in text, path
        assert "paramiko.SSHClient()" not in text or path.name == "client.py", path


def test_a_pinned_key_gets_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"other ssh-rsa {OLD.get_base64()}")
    keys = host_keys.load([path])
    host_keys.pin(keys, path, "box", OLD)
    assert path.read_text().splitlines() == [f"{name} ssh-rsa {OLD.get_base64()}" for name in ("other", "box")]
    assert host_keys.load([path]).lookup("box") and keys.lookup("box")


def test_hashed_names_are_found_too() -> None:
    hashed = paramiko.HostKeys.hash_host("[192.0.2.7]:2222")
    lines = [f"{hashed} ssh-rsa {OLD.get_base64()}", f"192.0.2.7 ssh-rsa {OLD.get_base64()}", "", "no key at all"]
    kept, keys = host_keys.without(lines, "[192.0.2.7]:2222")
    assert (kept, keys) == (lines[1:], [OLD.fingerprint])


def test_a_file_that_cannot_be_written_is_told_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RigupError, match=r"known_hosts: cannot be written: .*and run again"):
        host_keys.accept(tmp_path / "file" / "known_hosts", [], "rig1", OLD)
