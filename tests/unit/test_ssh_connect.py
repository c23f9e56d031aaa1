"""Failed or slow connections report their cause and a remedy, and the other hosts continue. Uses a real sshd."""

from __future__ import annotations

import getpass
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from loopback_sshd import ROOT, Sshd, programs_first, running_sshd

from rigup.ssh import probe, tcp
from tests.unit import warm_pyinfra
from tests.unit.own_address import DARK_ADDRESS, OWN_ADDRESS, black_hole, free_port
from tests.unit.waiting import HANG_S

USER = getpass.getuser()

DEPLOY = """
from pyinfra import host
from pyinfra.operations import server
server.shell(commands=[f"echo deployed >FOLDER/{host.name}"])
"""


@dataclass
class Two:
    """An inventory with two hosts, `bad` and `good`, and a deploy that leaves a file on each."""

    servers: dict[str, Sshd]
    folder: Path

    def write(self, **bad: object) -> Path:
        """Write the inventory; `bad` changes the entry of that host."""
        hosts = {
            name: {
                "address": OWN_ADDRESS,
                "port": server.port,
                "user": USER,
                "key": str(server.key),
                "known_hosts": str(server.folder / "known_hosts"),
                "sudo": False,
            }
            for name, server in self.servers.items()
        }
        hosts["bad"] |= bad
        path = self.folder / "lab.yaml"
        path.write_text(yaml.safe_dump({"hosts": hosts}))
        return path

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "RIGUP_INVENTORY": str(self.folder / "lab.yaml"),
            "RIGUP_CACHE": str(self.folder / "facts"),
            "COLUMNS": "500",
        }

    def deploy(self, head: str = "", text: str = DEPLOY, more: Sequence[str] = ()) -> tuple[dict[str, str], str]:
        """Deploy, after `head`; return what was said about each host, and the names of those that were deployed to."""
        deploy = self.folder / "deploy.py"
        deploy.write_text(text.replace("FOLDER", str(self.folder)))
        inventory = self.folder / "inventory.py"
        inventory.write_text(f"{head}\nimport runpy\nlab = runpy.run_path({str(ROOT / 'inventory/lab.py')!r})['lab']\n")
        arguments = [str(inventory), str(deploy), "-y", *more]
        done = warm_pyinfra.run(arguments, self.folder, self.environment(), "\n", HANG_S)
        assert "Traceback" not in done.stderr, done.stderr
        told = {
            name: " ".join(" ".join(line for line in done.stderr.splitlines() if f"[{name}]" in line).split())
            for name in self.servers
        }
        return told, ",".join(name for name in self.servers if (self.folder / name).exists())

    def status(self) -> dict[str, str | None]:
        """Return what `rigup status` says is wrong with each host."""
        argv = [sys.executable, "-m", "rigup.cli", "status", "--json"]
        done = subprocess.run(argv, cwd=ROOT, env=self.environment(), capture_output=True, text=True, timeout=HANG_S)
        return {name: host["error"] for name, host in json.loads(done.stdout)["hosts"].items()}


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Callable[[str], Two]]:
    """Two hosts; the argument is configuration of the first one's sshd."""
    with ExitStack() as stack:

        def make(more: str) -> Two:
            servers = {}
            for name in ("bad", "good"):
                (tmp_path / name).mkdir()
                servers[name] = stack.enter_context(running_sshd(tmp_path / name, more if name == "bad" else ""))
            folder = tmp_path / "here"
            folder.mkdir()
            return Two(servers, folder)

        yield make


def programs(two: Two, **scripts: str) -> None:
    """Give the host `bad` programs of its own."""
    folder = two.servers["bad"].folder / "programs"
    folder.mkdir(exist_ok=True)
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)


# sshd's words (session.c), and those of the command that cloud-init writes into root's authorized_keys.
EXPIRED = """ForceCommand printf 'WARNING: Your password has expired.\\n\
Password change required but no TTY available.\\n' >&2; exit 1
"""
OTHER_USER = """ForceCommand echo 'Please login as the user "debian" rather than the user "root".';echo;exit 142
"""
NO_SHELL = """ForceCommand echo 'This account is currently not available.'; exit 1
"""

REFUSALS = {
    "an expired password": (
        EXPIRED,
        "runs no commands: WARNING: Your password has expired. Password change required but no TTY available.",
        "change the password",
    ),
    "another user": (
        OTHER_USER,
        'runs no commands: Please login as the user "debian" rather than the user "root".',
        "set `user: debian` for this host in the inventory",
    ),
    "no shell": (NO_SHELL, "runs no commands: This account is currently not available.", "a login shell"),
    "silence": ("ForceCommand exit 1\n", "runs no commands: it prints nothing", "and see why"),
    "escape sequences": (
        "ForceCommand printf '\\033[2J\\033]0;owned\\007 hello'; exit 1\n",
        "\\x1b[2J\\x1b]0;owned\\x07 hello",
        "and see why",
    ),
    "no sessions": ("MaxSessions 0\n", "sshd refuses another session", "set `MaxSessions 10` in /etc/ssh/sshd_config"),
    "no keys": (
        "PubkeyAuthentication no\nPasswordAuthentication yes\n",
        "authentication failed",
        "set `user` or `key` for it",
    ),
    "too many attempts": (
        "AuthorizedKeysFile none\nMaxAuthTries 1\n",
        "Too many authentication failures",
        "",
    ),
    "a key that is not accepted": (
        "AuthorizedKeysFile none\nBanner /etc/hostname\n",
        "accepts none of the keys offered (ssh-ed25519 SHA256:",
        f"put the public key into ~{USER}/.ssh/authorized_keys on the host",
    ),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_a_host_that_refuses_says_why_and_the_other_one_goes_on(two: Callable[[str], Two], why: str) -> None:
    configuration, says, remedy = REFUSALS[why]
    hosts = two(configuration)
    hosts.write()
    told, deployed = hosts.deploy()
    status = hosts.status()
    for said in (told["bad"], status["bad"] or ""):
        assert says in said and remedy in said, said
    assert (deployed, status["good"]) == ("good", None)


SUDO = {
    "requiretty": ("sudo: sorry, you must have a tty to run sudo", "!requiretty` under /etc/sudoers.d/"),
    "not a sudoer": ("ops is not in the sudoers file.", "NOPASSWD: ALL` under /etc/sudoers.d/"),
    "no sudoers": ("sudo: no valid sudoers sources found, quitting", "sudo -n true` must succeed"),
    "no sudo": ("/bin/sh: 1: sudo: not found", "install sudo on the host"),
}


@pytest.mark.parametrize("why", SUDO)
def test_a_sudo_that_does_not_work_says_why(two: Callable[[str], Two], tmp_path: Path, why: str) -> None:
    says, remedy = SUDO[why]
    hosts = two(programs_first(tmp_path / "bad/programs"))
    programs(hosts, sudo=f"echo {shlex.quote(says)} >&2; exit 1")
    hosts.write(sudo=True)
    told, deployed = hosts.deploy()
    status = hosts.status()
    for said in (told["bad"], status["bad"] or ""):
        assert f"{USER} cannot use sudo: {says}" in said and remedy in said, said
    assert (deployed, status["good"]) == ("good", None)


def test_a_sudo_that_asks_for_a_password_is_left_to_preflight(two: Callable[[str], Two], tmp_path: Path) -> None:
    hosts = two(programs_first(tmp_path / "bad/programs"))
    programs(hosts, sudo="echo 'sudo: a password is required' >&2; exit 1")
    hosts.write(sudo=True)
    said = hosts.status()["bad"] or ""
    assert f"sudo asks {USER} for a password: add `{USER} ALL=(ALL) NOPASSWD: ALL`" in said
    hosts.write(sudo=False)
    assert hosts.deploy()[1] == "bad,good"


SLOW = """
import logging
from pathlib import Path
from rigup.ssh import probe
probe.SLOW_S = 0.05
class Listener(logging.Handler):
    def emit(self, record):
        if "sudo is slow" in record.getMessage():
            Path({!r}).touch()
logging.getLogger("pyinfra").addHandler(Listener())
"""


def test_a_slow_sudo_is_announced_while_it_runs_with_the_reason(two: Callable[[str], Two], tmp_path: Path) -> None:
    """This sudo answers only after it was announced."""
    assert probe.SLOW_S <= 5
    announced = tmp_path / "announced"
    hosts = two(programs_first(tmp_path / "bad/programs"))
    wait = f"until [ -e {announced} ]; do sleep 0.02; done"
    programs(hosts, sudo=f'{wait}\nshift 2\nexec "$@"', uname="echo gpu-box-7")
    hosts.write(sudo=True)
    remedy = "add the line `127.0.1.1 gpu-box-7` to /etc/hosts on the host"
    told, deployed = hosts.deploy(SLOW.format(str(announced)))
    assert "sudo is slow" in told["bad"] and remedy in told["bad"], told["bad"]
    assert deployed == "bad,good"

    announced.unlink()
    code = "from rigup.ssh import probe; probe.SLOW_S = 0.05; from rigup.cli.main import main; main(['status'])"
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, cwd=ROOT, env=hosts.environment(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        line = next(line for line in process.stderr if "sudo is slow" in line)
        announced.touch()
        process.stderr.read()
    assert line.startswith("bad: sudo is slow") and remedy in line


ONE_BY_ONE = """
from pyinfra import host
from pyinfra.facts.files import File
from pyinfra.facts.server import Kernel
from pyinfra.operations import files, server
host.get_fact(Kernel)
for n in range(2):
    files.put(src="source", dest=f"FOLDER/{host.name}.put{n}")
    server.shell(commands=[f"echo deployed >FOLDER/{host.name}"])
    files.get(src=f"FOLDER/{host.name}", dest=f"{host.name}.got{n}")
host.get_fact(File, path="FOLDER/source")
"""


def test_one_session_at_a_time_is_enough(two: Callable[[str], Two]) -> None:
    hosts = two("MaxSessions 1\n")
    hosts.write()
    (hosts.folder / "source").write_text("content")
    for _ in range(2):
        told, deployed = hosts.deploy(text=ONE_BY_ONE)
        assert (told["bad"].count("Error"), deployed) == (0, "bad,good"), told["bad"]
        for name in ("bad.put0", "bad.put1", "bad.got0", "bad.got1"):
            (hosts.folder / name).unlink()
    assert hosts.status() == {"bad": None, "good": None}


KEYS = {
    "missing": (lambda key: key.unlink(), ": no such private key file: correct `key` in ", "lab.yaml:4, or remove it"),
    "public": (
        lambda key: key.write_text(key.with_suffix(".pub").read_text()),
        "is a public key",
        "name the private key",
    ),
    "encrypted": (
        lambda key: subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(key)], check=True),
        "has a passphrase",
        "`ssh-add ",
    ),
    "garbled": (lambda key: key.write_text("hello\n"), "is not a private key", "ssh-add"),
    "a directory": (lambda key: (key.unlink(), key.mkdir()), "cannot be read: Is a directory", "correct `key`"),
}


@pytest.mark.parametrize("why", KEYS)
def test_a_key_that_cannot_be_used_is_named_and_the_other_host_goes_on(two: Callable[[str], Two], why: str) -> None:
    change, says, remedy = KEYS[why]
    hosts = two("")
    key = hosts.servers["bad"].key
    change(key)
    hosts.write()
    told, deployed = hosts.deploy()
    status = hosts.status()
    for said in (told["bad"], status["bad"] or ""):
        assert f"key {key}" in said and says in said and remedy in said, said
    assert (deployed, status["good"]) == ("good", None)


def converted(key: Path, kind: str) -> None:
    """Make a new key of this kind in PKCS8, or in OpenSSH's old format, the one that the host accepts."""
    made = {
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
    }[kind.partition(" ")[0]]()
    form = PrivateFormat.TraditionalOpenSSL if kind.endswith("PEM") else PrivateFormat.PKCS8
    key.write_bytes(made.private_bytes(Encoding.PEM, form, NoEncryption()))
    public = made.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (key.parent / "authorized_keys").write_bytes(public + b"\n")


@pytest.mark.parametrize("kind", ["rsa PKCS8", "ecdsa PKCS8", "ed25519 PKCS8", "rsa PEM"])
def test_keys_in_other_formats_work(two: Callable[[str], Two], kind: str) -> None:
    hosts = two("")
    key = hosts.servers["bad"].key
    converted(key, kind)
    key.with_suffix(".pub").unlink(missing_ok=True)
    hosts.write()
    assert hosts.deploy()[1] == "bad,good"
    assert hosts.status() == {"bad": None, "good": None}


def test_a_certificate_beside_the_key_is_offered(two: Callable[[str], Two], tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "ca")], check=True)
    hosts = two(f"AuthorizedKeysFile none\nTrustedUserCAKeys {tmp_path}/ca.pub\n")
    key = hosts.servers["bad"].key
    sign = ["ssh-keygen", "-q", "-s", str(tmp_path / "ca"), "-I", "ops", "-n", USER, f"{key}.pub"]
    subprocess.run(sign, check=True)
    hosts.write()
    assert hosts.status() == {"bad": None, "good": None}
    assert hosts.deploy()[1] == "bad,good"


RESOLVE = """
import socket
resolve = socket.getaddrinfo
def both(name, port, *more, **named):
    if name == "both.example.org":
        return [row for address in {!r} for row in resolve(address, port, *more, **named)]
    return resolve(name, port, *more, **named)
socket.getaddrinfo = both
"""


def test_an_address_where_nothing_answers_does_not_hide_the_other_one(two: Callable[[str], Two]) -> None:
    hosts = two("")
    server = hosts.servers["bad"]
    known = server.folder / "known_hosts"
    known.write_text(known.read_text().replace(OWN_ADDRESS, "both.example.org"))
    hosts.write(address="both.example.org")
    with black_hole(server.port) as dark:
        head = RESOLVE.format([dark, OWN_ADDRESS])
        told, deployed = hosts.deploy(head)
        assert deployed == "bad,good", told
        code = f"{head}\nfrom rigup.cli.main import main\nmain(['accept', 'bad', '-y'])"
        argv = [sys.executable, "-c", code]
        done = subprocess.run(argv, cwd=ROOT, env=hosts.environment(), capture_output=True, text=True, timeout=HANG_S)
        assert "is already known" in done.stdout, done.stderr


def test_of_several_addresses_each_failure_is_told() -> None:
    port, dark = free_port(), DARK_ADDRESS
    rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in (dark, OWN_ADDRESS)]
    with patch("socket.getaddrinfo", lambda *_: rows), pytest.raises(OSError) as caught:
        tcp.connect("both.example.org", port, HANG_S)
    assert caught.value.strerror == f"{dark}: Connection refused; {OWN_ADDRESS}: Connection refused"


def test_a_kernel_without_a_family_of_addresses_uses_the_others_and_says_so() -> None:
    # No kernel has this one.
    lacking = (45, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 22, 0, 0))
    with socket.create_server((OWN_ADDRESS, 0)) as server:
        rows = [lacking, (socket.AF_INET, socket.SOCK_STREAM, 6, "", server.getsockname())]
        with patch("socket.getaddrinfo", lambda *_: rows):
            tcp.connect("both.example.org", 22, HANG_S).close()
    with patch("socket.getaddrinfo", lambda *_: rows), pytest.raises(OSError) as caught:
        tcp.connect("both.example.org", 22, HANG_S)
    lacks = "2001:db8::1: Address family not supported by protocol"
    assert caught.value.strerror == f"{lacks}; {OWN_ADDRESS}: Connection refused"


def test_a_name_that_does_not_resolve_is_said_to_be_one(two: Callable[[str], Two]) -> None:
    hosts = two("")
    hosts.write(address="nowhere.invalid")
    told, deployed = hosts.deploy()
    assert f"no connection to {USER}@nowhere.invalid, port " in told["bad"]
    assert "the name does not resolve" in told["bad"] and "correct `address`" in told["bad"]
    assert deployed == "good"


UNREACHED = {
    "refused": (
        {"port": "FREE"},
        "Connection refused: start sshd on the host, or correct `port` in {lab}:6",
    ),
    "a name that does not resolve": (
        {"address": "nowhere.invalid"},
        "correct `address` in {lab}:3, or the name in ssh's configuration",
    ),
    "no such key": (
        {"key": "/nowhere/id", "address": "nowhere.invalid"},
        "key /nowhere/id: no such private key file: correct `key` in {lab}:4, or remove it to use ssh's usual keys",
    ),
}


@pytest.mark.parametrize("why", UNREACHED)
def test_what_is_wrong_with_a_connection_is_said_with_its_line(two: Callable[[str], Two], why: str) -> None:
    changes, says = UNREACHED[why]
    hosts = two("")
    lab = hosts.write(**{key: free_port() if value == "FREE" else value for key, value in changes.items()})
    told, deployed = hosts.deploy()
    status = hosts.status()
    for said in (told["bad"], status["bad"] or ""):
        assert says.format(lab=lab) in said, said
    assert (deployed, status["good"]) == ("good", None)


def test_a_host_that_does_not_answer_is_said_to_be_off_or_behind_a_firewall(two: Callable[[str], Two]) -> None:
    hosts, port = two(""), free_port()
    with black_hole(port) as dark:
        lab = hosts.write(address=dark, port=port)
        # It never answers, so no limit is too short.
        code = "from rigup.ssh import connect; connect.CONNECT_S = 0.01\n"
        code += "from rigup.cli.main import main; main(['status', 'bad', '--json'])"
        argv = [sys.executable, "-c", code]
        done = subprocess.run(argv, cwd=ROOT, env=hosts.environment(), capture_output=True, text=True, timeout=HANG_S)
    assert json.loads(done.stdout)["hosts"]["bad"]["error"] == (
        f"no connection to {USER}@{dark}, port {port}: no answer within 0 s: "
        f"see whether the host is on and no firewall is between, or correct `address` in {lab}:3"
    )


def test_data_that_the_connector_does_not_know_is_refused(two: Callable[[str], Two]) -> None:
    hosts = two("")
    hosts.write()
    told, deployed = hosts.deploy(more=["--data", "ssh_password=planted"])
    assert "ssh_password: not supported here" in told["bad"]
    assert deployed == ""
