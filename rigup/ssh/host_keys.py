"""Host keys: what to say where a host has another one than before, and `rigup accept`, which takes the new one."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

import paramiko
from paramiko.hostkeys import HostKeyEntry, HostKeys, InvalidHostKey

from rigup import atomic
from rigup.config.inventory import Host
from rigup.config.settings import Connection
from rigup.errors import RigupError
from rigup.ssh.transport import silence_paramiko

__all__ = [
    "accept",
    "changed",
    "known_as",
    "known_file",
    "without",
]

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
