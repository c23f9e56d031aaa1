"""Host keys: what to say where a host has another one than before, and `rigup accept`, which takes the new one."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import paramiko
from paramiko.hostkeys import HostKeyEntry, HostKeys, InvalidHostKey

from rigup import atomic
from rigup.asking import agreed
from rigup.errors import RigupError
from rigup.inventory import Host, find_inventory, load_inventory
from rigup.settings import Connection
from rigup.wire import silence_paramiko

__all__ = ["accept", "add_arguments", "changed", "command", "known_as", "known_file", "without"]

CONNECT_S = 15


def changed(name: str) -> str:
    """What to tell where the host `name` has another key than the one that is known."""
    return (
        f"it answers with another host key than the one known. If it was installed anew or replaced: "
        f"`rigup accept {name}`, and run again. If not, something else answers in its place: find out what."
    )


def known_file(way: Connection) -> Path:
    """The known_hosts file that a connection goes by."""
    return Path(way.known_hosts or "~/.ssh/known_hosts").expanduser()


def known_as(way: Connection) -> str:
    """The host's name in known_hosts."""
    return way.address if way.port == 22 else f"[{way.address}]:{way.port}"


def without(lines: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """The lines of a known_hosts file less what they say of `name`, hashed or not; and the keys that it had."""
    kept, keys = list[str](), list[str]()
    matches = HostKeys()._hostname_matches  # type: ignore[attr-defined]
    for line in lines:
        try:
            entry = HostKeyEntry.from_line(line)
        except InvalidHostKey:
            entry = None
        if entry is None or not entry.hostnames or entry.key is None or not matches(name, entry):
            kept.append(line)
            continue
        keys.append(entry.key.fingerprint)
        others = [each for each in entry.hostnames if each != name and not each.startswith("|1|")]
        if others:
            kept.append(" ".join([",".join(others), *line.split()[1:]]))
    return kept, keys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("host", metavar="HOST", help="a host of the inventory")
    parser.add_argument("-y", "--yes", action="store_true", help="without asking")
    parser.add_argument("--inventory", type=Path, metavar="FILE", help="the inventory file; by default the deploy's")


def command(options: argparse.Namespace) -> int:
    """Run `rigup accept`; returns its exit code. Raises RigupError where the host does not answer."""
    host = load_inventory(options.inventory or find_inventory(Path.cwd() / "inventory")).host(options.host)
    way, key = host.connection, presented(host)
    path = known_file(way)
    lines = path.read_text().splitlines() if path.exists() else []
    kept, before = without(lines, known_as(way))
    if before == [key.fingerprint]:
        print(f"{host.name}: {key.fingerprint} is known already")
        return 0
    print(f"{host.name} ({known_as(way)})")
    print(f"  known:    {', '.join(before) or 'nothing'}")
    print(f"  it shows: {key.fingerprint}")
    print("On its console, `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` must print the same.")
    if not options.yes and not agreed(f"Accept this key for {host.name}?"):
        print("Nothing was changed.", file=sys.stderr)
        return 1
    accept(path, kept, known_as(way), key)
    print(f"Accepted, in {path}. `pyinfra inventory/lab.py deploy.py --limit {host.name}` brings it into service.")
    return 0


def presented(host: Host) -> paramiko.PKey:
    """The key that the host shows now. Raises RigupError where it does not answer."""
    silence_paramiko()
    way = host.connection
    try:
        with socket.create_connection((way.address, way.port), timeout=CONNECT_S) as line:
            transport = paramiko.Transport(line)
            try:
                transport.start_client(timeout=CONNECT_S)
                return transport.get_remote_server_key()
            finally:
                transport.close()
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise RigupError(
            f"{host.name}: nothing speaks ssh at {known_as(way)}: {error or type(error).__name__}"
        ) from error


def accept(path: Path, others: Sequence[str], name: str, key: paramiko.PKey) -> None:
    """Write the known_hosts file: what it says of `others`, and the key of `name`. Raises RigupError."""
    lines = (*others, f"{name} {key.get_name()} {key.get_base64()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        atomic.write(path, "".join(f"{line}\n" for line in lines), mode)
    except OSError as error:
        raise RigupError(
            f"{path}: cannot be written: {error.strerror}. The key was not accepted: mend that, and run again"
        ) from error
