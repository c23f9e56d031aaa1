"""Host keys: the message for a changed one, and what `rigup accept` needs to accept it."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Sequence
from pathlib import Path

import paramiko
from paramiko.hostkeys import HostKeyEntry, HostKeys, InvalidHostKey

from rigup import atomic
from rigup.config.inventory import Host
from rigup.config.settings import Connection
from rigup.errors import RigupError
from rigup.ssh.transport import BROKEN, reason, silence_paramiko

__all__ = ["accept", "changed", "is_changed", "is_not_advice", "known_as", "known_file", "presented", "without"]

CONNECT_S = 15

# pyinfra's message for a changed host key, and its advice, which would accept the new key unseen.
_CHANGED = re.compile(r"Host key for .* does not match")
_ADVICE = re.compile(
    r"WARNING: REMOTE HOST IDENT|Someone could be eavesdropping|If this is expected, you|\s+ssh-keygen -R "
)


def changed(name: str) -> str:
    """Return the message for a host that presents another key than the known one."""
    return (
        "its host key has changed. If the host was reinstalled or replaced, run "
        f"`rigup accept {name}` and try again. If not, find out which machine answers at its address."
    )


def is_changed(error: Exception) -> bool:
    """Return whether pyinfra refused a connection because of a changed host key."""
    return bool(_CHANGED.search(str(error)))


def is_not_advice(record: logging.LogRecord) -> bool:
    """Return False for pyinfra's advice on a changed host key, to filter it out of a log."""
    return not _ADVICE.match(record.getMessage())


def known_file(login: Connection) -> Path:
    """Return the known_hosts file that a connection uses."""
    return Path(login.known_hosts or "~/.ssh/known_hosts").expanduser()


def known_as(login: Connection) -> str:
    """Return the host's name in known_hosts."""
    return login.address if login.port == 22 else f"[{login.address}]:{login.port}"


def without(lines: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """Remove `name`, hashed or not, from the lines of a known_hosts file.

    Returns the remaining lines, and the fingerprints of the removed keys.
    """
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
    """Return the key that the host presents now. Raises RigupError if it does not answer."""
    silence_paramiko()
    login = host.connection
    try:
        with socket.create_connection((login.address, login.port), timeout=CONNECT_S) as line:
            transport = paramiko.Transport(line)
            try:
                transport.start_client(timeout=CONNECT_S)
                return transport.get_remote_server_key()
            finally:
                transport.close()
    except BROKEN as error:
        raise RigupError(f"{host.name}: no ssh server answers at {known_as(login)}: {reason(error)}") from error


def accept(path: Path, others: Sequence[str], name: str, key: paramiko.PKey) -> None:
    """Write a known_hosts file with the lines `others` and the key of `name`. Raises RigupError."""
    lines = (*others, f"{name} {key.get_name()} {key.get_base64()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        atomic.write(path, "".join(f"{line}\n" for line in lines), mode)
    except OSError as error:
        raise RigupError(
            f"{path}: cannot be written: {error.strerror}; the key was not accepted", "fix that and run again"
        ) from error
