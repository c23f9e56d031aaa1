"""A changed host key: clear words from deploy and audit, and the one command that accepts it. Against a real sshd."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from loopback_sshd import PYINFRA, ROOT, Sshd, running_sshd

from rigup.config.inventory import load_inventory
from rigup.errors import RigupError
from rigup.ssh import host_keys
from rigup.ssh.client import Client, Unreachable
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
        assert f"`RIGUP_INVENTORY={replaced.environment['RIGUP_INVENTORY']} rigup accept box`" in said
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
    inventory = replaced.environment["RIGUP_INVENTORY"]
    assert f"Next: `RIGUP_INVENTORY={inventory} rigup deploy box`" in accepted.stdout
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


def test_the_next_connection_of_a_run_is_checked_too(unknown: Sshd) -> None:
    known = unknown.folder / "new" / "known_hosts"
    (unknown.folder / "deploy.py").write_text(
        "from pathlib import Path\nfrom pyinfra import host\nfrom pyinfra.api.exceptions import ConnectError\n"
        f"known = Path({str(known)!r})\nname, *_ = known.read_text().split()\n"
        f"known.write_text(f'{{name}} ssh-rsa {OLD.get_base64()}')\n"
        "try:\n    host.connector.connect()\nexcept ConnectError as error:\n"
        "    assert 'its host key has changed' in str(error)\nelse:\n    raise SystemExit('it was accepted')\n"
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
        # The one of pyinfra's own connector.
        assert "SSHClient" not in text or path.name == "pyinfra_ssh.py", path
        assert "HostKeyPolicy" not in text, path
        assert "start_client" not in text or path.name == "connect.py", path


NAME = "[gpu-box]:2222"
HASHED = paramiko.HostKeys.hash_host(NAME, f"|1|{20 * 'A'}AAAAAAA=|")

# Lines that cannot be read, next to which other lines still count.
DAMAGED = {
    "cut off in the key": f"{NAME} ssh-rsa {OLD.get_base64()[:100]}",
    "cut off after the kind": f"{NAME} ssh-rsa",
    "no base64": f"{NAME} ssh-rsa AAAA!",
    "another kind than the key's": f"{NAME} ssh-ed25519 {OLD.get_base64()}",
    "a hash cut off": f"|1|F1E1 ssh-rsa {OLD.get_base64()}",
    "an unknown hash": f"|2|a|b ssh-rsa {OLD.get_base64()}",
    "a lone name": "gpu-box",
    "NUL bytes": "\0\0\0\0",
    "no text": "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} x y",
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_a_line_that_cannot_be_read_is_named_and_all_others_count(tmp_path: Path, line: str) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"# comment\n\nother ssh-rsa {OLD.get_base64()}\n{line}\n{NAME} ssh-rsa {OLD.get_base64()}\n")
    said = list[str]()
    known = host_keys.load([path], said.append)
    assert (known.of(NAME), known.of("other")) == ([OLD], [OLD])
    assert said == [f"{path}, line 4: cannot be read and is skipped: remove or correct it"]


# Names as sshd(8) describes them, and whether they name NAME.
NAMES = {
    NAME: True,
    "other,[gpu-box]:2222": True,
    "[GPU-box]:2222": True,
    HASHED: True,
    "[gpu-*]:2222": True,
    "[gpu-bo?]:*": True,
    "*,![gpu-box]:2222": False,
    "gpu-box": False,
    "[gpu-box]:2223": False,
    "[g]pu-box:2222": False,
}


@pytest.mark.parametrize(("names", "is_known"), NAMES.items(), ids=range(len(NAMES)))
def test_names_patterns_and_hashes_are_those_of_openssh(tmp_path: Path, names: str, is_known: bool) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"{names}  ssh-rsa\t{OLD.get_base64()} comment\n")
    assert host_keys.load([path], pytest.fail).of(NAME) == ([OLD] if is_known else [])
    found = subprocess.run(["ssh-keygen", "-F", NAME, "-f", str(path)], capture_output=True, text=True)
    assert bool(found.stdout) is is_known


def test_lines_for_other_programs_are_no_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    token = "AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIA=="
    path.write_text(f"@cert-authority * ssh-rsa {OLD.get_base64()}\n{NAME} sk-ssh-ed25519@openssh.com {token}\n")
    assert host_keys.load([path], pytest.fail).of(NAME) == []


@pytest.mark.parametrize("command", ["status", "deploy"])
def test_a_damaged_line_does_not_let_a_changed_key_pass(replaced: Sshd, command: str) -> None:
    known = replaced.folder / "known_hosts"
    before = f"box ssh-rsa AAAAB3N\n\0\0\n[{OWN_ADDRESS}]:{replaced.port} ssh-rsa {OLD.get_base64()}\n"
    known.write_text(before)
    done = COMMANDS[command]()
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1
    assert "its host key has changed" in said
    assert f"{known}, line 1: cannot be read and is skipped" in said and f"{known}, line 2:" in said
    assert known.read_text() == before


def test_a_revoked_key_is_refused(replaced: Sshd) -> None:
    real = (replaced.folder / "host_key.pub").read_text()
    (replaced.folder / "known_hosts").write_text(f"[{OWN_ADDRESS}]:{replaced.port} {real}@revoked * {real}")
    assert "its host key is revoked" in " ".join(rigup("status", cwd=ROOT).stdout.split())
    with pytest.raises(Unreachable) as refused:
        Client(load_inventory(Path(replaced.environment["RIGUP_INVENTORY"])).host("box"))
    assert refused.value.remedy == f"see @revoked in {replaced.folder}/known_hosts"


def test_each_of_several_keys_of_a_host_is_accepted(replaced: Sshd) -> None:
    name = f"[{OWN_ADDRESS}]:{replaced.port}"
    other = (replaced.folder / "user_key.pub").read_text()
    real = (replaced.folder / "host_key.pub").read_text()
    (replaced.folder / "known_hosts").write_text(f"{name} {other}{name} {real}")
    assert "host key" not in rigup("status", cwd=ROOT).stdout


def test_a_pinned_key_gets_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"other ssh-rsa {OLD.get_base64()}")
    keys = host_keys.load([path])
    host_keys.pin(keys, path, "box", OLD)
    assert path.read_text().splitlines() == [f"{name} ssh-rsa {OLD.get_base64()}" for name in ("other", "box")]
    assert host_keys.load([path]).of("box") == keys.of("box") == [OLD]


def test_hashed_names_are_found_too() -> None:
    hashed = paramiko.HostKeys.hash_host("[192.0.2.7]:2222")
    lines = [f"{hashed} ssh-rsa {OLD.get_base64()}", f"192.0.2.7 ssh-rsa {OLD.get_base64()}", "", "no key at all"]
    kept, keys = host_keys.without(lines, "[192.0.2.7]:2222")
    assert (kept, keys) == (lines[1:], [OLD.fingerprint])


def test_a_file_that_cannot_be_written_is_told_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RigupError, match=r"known_hosts: cannot be written: .*and run again"):
        host_keys.accept(tmp_path / "file" / "known_hosts", [], "rig1", OLD)
