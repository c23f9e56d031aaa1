"""Host keys: an unknown one is pinned at first use, a changed one is refused until `rigup accept` accepts it."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

import paramiko
from paramiko.hostkeys import HostKeyEntry, HostKeys, InvalidHostKey

from rigup import atomic
from rigup.config.inventory import Host
from rigup.config.settings import Connection
from rigup.errors import RigupError
from rigup.ssh.transport import BROKEN, reason, silence_paramiko

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


def load(paths: Iterable[str | Path]) -> HostKeys:
    """Read known_hosts files. A file that does not exist has no keys, and a line that cannot be read has none."""
    keys = HostKeys()
    for path in map(Path, paths):
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        for entry in filter(None, map(_entry, lines)):
            for name in entry.hostnames or ():
                if entry.key is not None:
                    keys.add(name, entry.key.get_name(), entry.key)
    return keys


def _entry(line: str) -> HostKeyEntry | None:
    try:
        return HostKeyEntry.from_line(line)
    except (InvalidHostKey, paramiko.SSHException, ValueError):
        return None


def pin(keys: HostKeys, path: str | Path, name: str, key: paramiko.PKey) -> None:
    """Add the key of a host that was unknown to `keys` and to the known_hosts file, which may not exist yet.

    Raises SSHException if the file cannot be written: without it, the next run would accept another key.
    """
    try:
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "rb+", buffering=0) as file:
            # Commands connect to many hosts at once.
            fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file.fileno()).st_size
            is_cut_off = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
            line = f"{name} {key.get_name()} {key.get_base64()}\n"
            file.write(("\n" if is_cut_off else "").encode() + line.encode())
    except OSError as error:
        raise paramiko.SSHException(f"{path} cannot be written ({error.strerror}), so its key is not pinned") from error
    keys.add(name, key.get_name(), key)


def without(lines: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """Remove `name`, hashed or not, from the lines of a known_hosts file.

    Returns the remaining lines, and the fingerprints of the removed keys.
    """
    kept, keys = list[str](), list[str]()
    matches = HostKeys()._hostname_matches  # type: ignore[attr-defined]
    for line in lines:
        entry = _entry(line)
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
