"""A real sshd on 127.0.0.1 with its own keys, and pyinfra run against it."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.unit import warm_pyinfra
from tests.unit.own_address import OWN_ADDRESS, free_port, is_open
from tests.unit.waiting import HANG_S, until

ROOT = Path(__file__).resolve().parents[2]
PYINFRA = Path(sys.executable).with_name("pyinfra")
# Facts are read ahead, however slow this machine is.
PATIENT = f"from rigup.ssh import batch, connector\nbatch.LIMIT_S = connector.STALE_AFTER_S = {HANG_S}\n"


def children(pid: int) -> list[int]:
    """Return the running children of `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except (OSError, ValueError):
            continue
    return found


@dataclass
class Sshd:
    """A running sshd, and the folder with its files."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> Path:
        return self.folder / "user_key"

    @property
    def forever(self) -> str:
        """A command that ends with this sshd and not before."""
        return f"tail -f --pid={self.process.pid} /dev/null"

    def cut(self) -> None:
        """End every session as a broken connection does, without notice."""
        for child in children(self.process.pid):
            for grandchild in children(child):
                os.kill(grandchild, signal.SIGKILL)
            os.kill(child, signal.SIGKILL)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Run another one in its place, after it has ended."""
        with (self.folder / "sshd.log").open("ab") as log:
            argv = [str(self.process.args[0]), "-D", "-e", "-f", str(self.folder / "sshd_config")]  # type: ignore[index]
            process = subprocess.Popen(argv, stdout=log, stderr=log)
        try:
            yield
        finally:
            for each in [*children(process.pid), process.pid]:
                os.kill(each, signal.SIGTERM)
            process.wait()

    def inventory(self, connector: str = "rig", name: str = "box", **data: object) -> Path:
        """Write an inventory with this host, reached through `connector`."""
        target = f"@rig/{name}" if connector == "rig" else name
        values = {
            "ssh_hostname": OWN_ADDRESS,
            "ssh_port": self.port,
            "ssh_user": getpass.getuser(),
            "ssh_key": str(self.key),
            "ssh_known_hosts_file": str(self.folder / "known_hosts"),
            **data,
        }
        path = self.folder / f"inventory_{connector}.py"
        path.write_text(f"{PATIENT}hosts = [({target!r}, {values!r})]\n")
        return path

    def lab(self, **changes: object) -> str:
        """Return the project's inventory file, with this host and `changes` in the YAML file that it reads."""
        host = {
            "address": OWN_ADDRESS,
            "port": self.port,
            "user": getpass.getuser(),
            "key": str(self.key),
            "known_hosts": str(self.folder / "known_hosts"),
            "sudo": False,
            **changes,
        }
        path = self.folder / "lab.yaml"
        path.write_text(yaml.safe_dump({"hosts": {"box": host}}))
        self.environment["RIGUP_INVENTORY"] = str(path)
        return str(ROOT / "inventory/lab.py")

    def pyinfra(self, *arguments: str, stdin: str = "\n", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run pyinfra in this folder, which also caches its facts."""
        return warm_pyinfra.run(arguments, self.folder, self.shell_environment(**environment), stdin, timeout_s=HANG_S)

    def shell_environment(self, **environment: str) -> dict[str, str]:
        return {
            **os.environ,
            "RIGUP_CACHE": str(self.folder / "facts"),
            "RIGUP_STATS": "1",
            "PYINFRA_PROGRESS": "off",
            "SSHD_PID": str(self.process.pid),
            **self.environment,
            **environment,
        }


def programs_first(folder: Path) -> str:
    """Return sshd's configuration of a host that finds the programs in `folder` before its own."""
    return f'ForceCommand exec sh -c "$(printf %s "$SSH_ORIGINAL_COMMAND" | sed "s|PATH=|PATH={folder}:|g")"\n'


@contextmanager
def running_sshd(folder: Path, more: str = "", variables: str = "") -> Iterator[Sshd]:
    """Start an sshd that accepts only this test's key, and stop it by its process id.

    `more` is configuration, which counts first; `variables` are what a login has in its environment, as `NAME=VALUE` in
    quotes.
    """
    program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if program is None:
        pytest.skip("no sshd here (apt-get install openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    port = free_port()
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress {OWN_ADDRESS}\nPort {port}\nHostKey {folder}/host_key\nPidFile none\n{more}"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        f"PermitRootLogin prohibit-password\nSetEnv HOME={folder} {variables}\n"
        f"Subsystem sftp internal-sftp\nPrintMotd no\nMaxSessions 50\n"
    )
    (folder / "known_hosts").write_text(f"[{OWN_ADDRESS}]:{port} {(folder / 'host_key.pub').read_text()}")
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", str(config)], stdout=log, stderr=log)
    try:
        until(lambda: is_open(port), lambda: process.poll() is None)
        yield Sshd(folder, port, process)
    finally:
        sessions = children(process.pid)
        process.terminate()
        process.wait()
        for session in sessions:
            try:
                os.kill(session, signal.SIGTERM)
            except ProcessLookupError:
                continue
