"""The real systemd passes the arguments of a rendered unit unchanged, whatever they contain."""

import random
import secrets
import shlex
import subprocess
from collections.abc import Iterator

import pytest

from rigup.config.inventory import Host, load_inventory
from rigup.render.systemd import systemd_command
from rigup.ssh.login import login_of, uses_sudo
from tests.lab.rigs import Rigs
from tests.unit.test_render_systemd import HOSTILE

# A bare host has no Python; the shell's own printf writes its arguments as they are.
DUMP = 'printf \'%s\\0\' "$@" >"$0.argv"\n'


class Machine:
    """A lab host over plain ssh, as root, with a directory and a unit of its own."""

    def __init__(self, host: Host):
        self.host = host
        self.directory = f"/run/rigup-quoting-{secrets.token_hex(4)}"
        self.unit = f"{self.directory.rsplit('/', 1)[1]}.service"

    def run(self, *words: str, stdin: str = "") -> bytes:
        command = shlex.join((*(("sudo", "-n") if uses_sudo(self.host) else ()), *words))
        program, *way = login_of(self.host).command
        options = ["-F", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "IdentitiesOnly=yes"]
        ran = subprocess.run(
            [program, *options, *way, command],
            input=stdin.encode(),
            capture_output=True,
            timeout=300,
            check=False,
        )
        assert ran.returncode == 0, f"{command}: {ran.stderr.decode()}"
        return ran.stdout

    def write(self, path: str, text: str) -> None:
        self.run("sh", "-c", 'cat >"$0"', path, stdin=text)

    def received(self, arguments: list[str]) -> list[str]:
        """What a program started by systemd gets for these arguments."""
        script = f"{self.directory}/dump"
        command = systemd_command(["/bin/sh", script, *arguments])
        self.write(f"/run/systemd/system/{self.unit}", f"[Service]\nType=oneshot\nExecStart={command}\n")
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "start", self.unit)
        return self.run("cat", f"{script}.argv").decode().split("\0")[:-1]


@pytest.fixture(scope="module")
def machines(rigs: Rigs) -> Iterator[list[Machine]]:
    """Debian 12 and 13 bring different versions of systemd."""
    machines = [Machine(host) for host in load_inventory(rigs.inventory).hosts.values()]
    for machine in machines:
        machine.run("mkdir", machine.directory)
        machine.write(f"{machine.directory}/dump", DUMP)
    yield machines
    for machine in machines:
        machine.run("rm", "-rf", "--", machine.directory, f"/run/systemd/system/{machine.unit}")
        machine.run("systemctl", "daemon-reload")


def test_hostile_arguments_arrive_unchanged(machines: list[Machine]) -> None:
    for machine in machines:
        assert machine.received(HOSTILE) == HOSTILE


def test_random_arguments_arrive_unchanged(machines: list[Machine]) -> None:
    source = random.Random(7)
    alphabet = " \t\n\r\"'\\$%{};#=@:+!-~*ax0é模\x01\x7f"
    arguments = ["".join(source.choices(alphabet, k=source.randrange(12))) for _ in range(2000)]
    for machine in machines:
        assert machine.received(arguments) == arguments
