"""ssh's own configuration supplies what the inventory leaves out, for every command. Against real ssh and sshd."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from loopback_sshd import PYINFRA, ROOT, Sshd, running_sshd

from rigup.config.inventory import load_inventory
from rigup.ssh.login import login_of, pyinfra_hosts, uses_sudo
from tests.unit.own_address import OWN_ADDRESS
from tests.unit.waiting import HANG_S, until

PUBLIC = {"endpoints": {"main": {"listen": "192.0.2.7", "allowed_networks": ["192.0.2.0/24"]}}}

COMMANDS = {
    "deploy": [str(PYINFRA), "inventory/lab.py", "fact", "server.Kernel", "-y"],
    **{
        name: [sys.executable, "-m", "rigup.cli", *words]
        for name, words in {
            "plan": ["plan"],
            "status": ["status"],
            "key": ["key", "box"],
            "audit": ["audit"],
            "models": ["models"],
            "accept": ["accept", "box", "-y"],
        }.items()
    },
}


class Machine:
    """A control machine: its home, and an inventory with the host `box` as it is written."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir()
        self.environment = {**os.environ, "HOME": str(home), "RIGUP_CACHE": str(home / "facts"), "COLUMNS": "400"}
        self.environment.pop("SSH_AUTH_SOCK", None)
        self.write(address="gpubox")

    def write(self, **box: object) -> Path:
        path = self.home / "lab.yaml"
        path.write_text(yaml.safe_dump({"hosts": {"box": {**PUBLIC, **box}}}))
        self.environment["RIGUP_INVENTORY"] = str(path)
        return path

    def configure(self, text: str) -> None:
        """Write ssh's configuration."""
        (self.home / ".ssh").mkdir(mode=0o700, exist_ok=True)
        (self.home / ".ssh/config").write_text(text)

    def run(self, command: str) -> tuple[int, str]:
        """Run a command; return its exit code, and what it said in one line."""
        argv = COMMANDS[command]
        done = subprocess.run(
            argv, cwd=ROOT, env=self.environment, input="\n", capture_output=True, text=True, timeout=HANG_S
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "home")


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with running_sshd(tmp_path) as server:
        yield server


def block(sshd: Sshd, *more: str) -> str:
    """Return ssh's configuration for `gpubox`."""
    lines = (
        f"HostName {OWN_ADDRESS}",
        f"Port {sshd.port}",
        f"User {getpass.getuser()}",
        f"IdentityFile {sshd.key}",
        *more,
    )
    return "Host gpubox\n" + "".join(f"  {line}\n" for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_uses_name_port_and_user_of_sshs_configuration(machine: Machine, command: str) -> None:
    machine.configure(f"Host gpubox\n  HostName {OWN_ADDRESS}\n  Port 1\n  User ops\n")
    code, said = machine.run(command)
    assert code == 1
    assert f"no connection to ops@{OWN_ADDRESS}, port 1: Connection refused" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_uses_key_and_known_hosts_of_sshs_configuration(
    machine: Machine, sshd: Sshd, command: str
) -> None:
    known = machine.home / "known"
    machine.configure(block(sshd, f"UserKnownHostsFile {known}", "HostKeyAlias the-box"))
    machine.write(address="gpubox", sudo=False)
    _, said = machine.run(command)
    assert "no connection" not in said and "authentication" not in said, said
    assert known.read_text().split() == ["the-box", *(sshd.folder / "host_key.pub").read_text().split()[:2]]
    assert not (machine.home / ".ssh/known_hosts").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_machine_without_ssh_directory_gets_one(machine: Machine, sshd: Sshd, command: str) -> None:
    machine.write(address=OWN_ADDRESS, port=sshd.port, user=getpass.getuser(), key=str(sshd.key))
    _, said = machine.run(command)
    assert "no connection" not in said and "authentication" not in said, said
    known = machine.home / ".ssh/known_hosts"
    assert known.read_text().startswith(f"[{OWN_ADDRESS}]:{sshd.port} ssh-ed25519 ")
    assert (known.parent.stat().st_mode & 0o777, known.stat().st_mode & 0o777) == (0o700, 0o600)


PROXIES = {
    "ProxyCommand ssh -W %h:%p jump": ("/bin/sh", "-c", "exec ssh -W 192.0.2.7:22 jump"),
    "ProxyCommand nc %h %p": ("/bin/sh", "-c", "exec nc 192.0.2.7 22"),
    "ProxyCommand none": (),
    "ProxyJump none": (),
    "ProxyJump jump": ("ssh", "-o", "BatchMode=yes", "-W", "[192.0.2.7]:22", "--", "ssh://jump"),
    "ProxyJump one,ops@two:2222": (
        *("ssh", "-o", "BatchMode=yes", "-J", "one"),
        *("-W", "[192.0.2.7]:22", "--", "ssh://ops@two:2222"),
    ),
}


def test_proxies_are_those_of_sshs_configuration(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(machine.home))
    # What ssh says of a name is asked for once.
    names = {setting: f"proxied{number}" for number, setting in enumerate(PROXIES)}
    blocks = (f"Host {name}\n  HostName 192.0.2.7\n  {setting}\n" for setting, name in names.items())
    machine.configure("".join(blocks))
    path = machine.home / "proxied.yaml"
    path.write_text("hosts:\n" + "".join(f"  {name}: {{address: {name}}}\n" for name in names.values()))
    inventory = load_inventory(path)
    assert {setting: login_of(inventory.host(name)).proxy for setting, name in names.items()} == PROXIES


def test_what_is_written_in_the_inventory_comes_first_and_the_defaults_come_last(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(machine.home))
    machine.configure("Host gpu*\n  Port 2222\n  User ops\nHost other\n  IdentityFile %d/%r@%n\n")
    text = """
hosts:
  a: {address: gpubox}
  b: {address: gpubox, port: 22, user: root}
  c: {address: other}
  d: {address: gpubox2, user: root, sudo: true}
"""
    path = machine.home / "four.yaml"
    path.write_text(text)
    inventory = load_inventory(path)
    hosts = inventory.hosts.values()
    assert [(login_of(host).user, login_of(host).port, uses_sudo(host)) for host in hosts] == [
        ("ops", 2222, True),
        ("root", 22, False),
        ("root", 22, False),
        ("root", 2222, True),
    ]
    assert login_of(inventory.host("a")).proxy == ()
    assert login_of(inventory.host("c")).keys == (machine.home / "root@other",)
    assert login_of(inventory.host("b")).command == ("ssh", "-p", "22", "root@gpubox")
    stock = dict(pyinfra_hosts(inventory, "ssh"))["a"]
    assert (stock["ssh_hostname"], stock["ssh_port"], stock["ssh_user"], stock["_sudo"]) == (
        "gpubox",
        2222,
        "ops",
        True,
    )
    assert "ssh_port" not in dict(pyinfra_hosts(inventory, "rig"))["@rig/a"]


def test_a_mistake_in_sshs_configuration_is_shown(machine: Machine) -> None:
    machine.configure("Host gpubox\n  Prot 2222\n")
    code, said = machine.run("status")
    assert code == 1
    assert "config: line 2: Bad configuration option: prot" in said, said


@pytest.fixture
def ssh_program(machine: Machine) -> Callable[[str], Path]:
    """Put a program `ssh` into PATH that logs what it is asked for, and reads the given configuration by default."""

    def make(config: str) -> Path:
        programs, log = machine.home / "programs", machine.home / "asked"
        programs.mkdir()
        (machine.home / "own-config").write_text(config)
        real = shutil.which("ssh")
        (programs / "ssh").write_text(f'#!/bin/sh\necho "$@" >>{log}\nexec {real} -F {machine.home}/own-config "$@"\n')
        (programs / "ssh").chmod(0o755)
        machine.environment["PATH"] = f"{programs}:{machine.environment['PATH']}"
        return log

    return make


@pytest.mark.parametrize("command", ["status", "deploy", "accept"])
def test_a_jump_host_is_used(machine: Machine, sshd: Sshd, ssh_program: Callable[[str], Path], command: str) -> None:
    known = f"UserKnownHostsFile {sshd.folder}/known_hosts"
    asked = ssh_program(block(sshd, known).replace("gpubox", "jump"))
    machine.configure(block(sshd, known, "ProxyJump jump"))
    machine.write(address="gpubox", sudo=False)
    code, said = machine.run(command)
    assert "no connection" not in said, said
    assert code == (2 if command == "status" else 0), said
    assert f"-W [{OWN_ADDRESS}]:{sshd.port} -- ssh://jump" in asked.read_text()


@pytest.mark.parametrize("command", ["status", "deploy"])
def test_what_a_jump_host_says_is_shown(
    machine: Machine, sshd: Sshd, ssh_program: Callable[[str], Path], command: str
) -> None:
    ssh_program("")
    machine.configure(block(sshd, "ProxyJump 127.0.0.1:1"))
    code, said = machine.run(command)
    assert code == 1
    assert "connect to host 127.0.0.1 port 1: Connection refused" in said, said


def test_a_proxy_command_is_used(machine: Machine, sshd: Sshd) -> None:
    relay = machine.home / "relay.py"
    relay.write_text(
        "import os, socket, sys, threading\n"
        f"open({str(machine.home / 'relayed')!r}, 'w').write(f'{{os.getpid()}} {{sys.argv[3]}}')\n"
        "line = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def up():\n"
        "    while chunk := os.read(0, 65536):\n        line.sendall(chunk)\n"
        "threading.Thread(target=up, daemon=True).start()\n"
        "while chunk := line.recv(65536):\n    os.write(1, chunk)\n"
    )
    known = f"UserKnownHostsFile {sshd.folder}/known_hosts"
    machine.configure(block(sshd, known, f"ProxyCommand {sys.executable} {relay} %h %p %r").replace("Port", "port"))
    machine.write(address="gpubox", sudo=False)
    code, said = machine.run("status")
    assert (code, "no connection" in said) == (2, False), said
    pid, user = (machine.home / "relayed").read_text().split()
    assert user == getpass.getuser()
    # It does not end by itself.
    until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes())


@pytest.fixture
def agent(machine: Machine, sshd: Sshd) -> Iterator[Path]:
    """The socket of an ssh agent that has the key of the login, which is in no file here."""
    # A socket's path must be short.
    folder = TemporaryDirectory(prefix="agent-")
    path = Path(folder.name) / "socket"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        until(path.exists, lambda: process.poll() is None)
        subprocess.run(["ssh-add", "-q", str(sshd.key)], env={**os.environ, "SSH_AUTH_SOCK": str(path)}, check=True)
        sshd.key.rename(machine.home / "moved")
        yield path
    finally:
        process.terminate()
        process.wait()
        folder.cleanup()


@pytest.mark.parametrize("command", ["status", "deploy"])
@pytest.mark.parametrize("how", ["agent in the configuration", "agent in the environment", "key in the inventory"])
def test_keys_of_the_agent_are_used(machine: Machine, sshd: Sshd, agent: Path, command: str, how: str) -> None:
    more = [f"UserKnownHostsFile {sshd.folder}/known_hosts"]
    if how == "agent in the configuration":
        # The file with the public key says which one of the agent's.
        more += [f"IdentityAgent {agent}", "IdentitiesOnly yes"]
    else:
        machine.environment["SSH_AUTH_SOCK"] = str(agent)
    machine.configure(block(sshd, *more).replace("user_key", "user_key.pub"))
    key = {"key": f"{sshd.key}.pub"} if how == "key in the inventory" else {}
    machine.write(address="gpubox", sudo=False, **key)
    code, said = machine.run(command)
    assert "authentication" not in said, said
    assert code == (2 if command == "status" else 0), said
