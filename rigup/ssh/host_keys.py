"""Host keys: an unknown one is pinned at first use, a changed one is refused until `rigup accept` accepts it."""

from __future__ import annotations

import base64
import fcntl
import os
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import paramiko
from paramiko.hostkeys import HostKeyEntry, HostKeys
from paramiko.pkey import UnknownKeyType

from rigup import atomic, commands
from rigup.errors import RigupError
from rigup.ssh.login import Login
from rigup.ssh.transport import NoConnection

_RSA = ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa")
_MARKERS = ("@revoked", "@cert-authority")

_reported = set[tuple[Path, str]]()


class KnownHosts(HostKeys):
    """The keys in known_hosts files, by name: hashed names and patterns too, as sshd(8) describes them."""

    def __init__(self) -> None:
        super().__init__()
        self.revoked = list[paramiko.PKey]()

    def _hostname_matches(self, hostname: str, entry: HostKeyEntry) -> bool:
        names = entry.hostnames or []
        lower = hostname.lower()
        if any(name.startswith("!") and fnmatchcase(lower, _pattern(name[1:])) for name in names):
            return False
        return any(_is_hash_of(name, hostname) or fnmatchcase(lower, _pattern(name)) for name in names)

    def of(self, name: str) -> list[paramiko.PKey]:
        """Return all keys of a host."""
        entries: list[HostKeyEntry] = self._entries  # type: ignore[attr-defined]
        return [entry.key for entry in entries if entry.key is not None and self._hostname_matches(name, entry)]

    def types(self, name: str) -> tuple[str, ...]:
        """Return the algorithms of a host's keys."""
        found = (key.get_name() for key in self.of(name))
        return tuple(kind for key_type in found for kind in (_RSA if key_type == "ssh-rsa" else (key_type,)))


def _pattern(name: str) -> str:
    """Return a pattern of ssh, in which only * and ? are special, for fnmatch."""
    return name.lower().replace("[", "[[]")


def _is_hash_of(hashed: str, name: str) -> bool:
    return hashed.startswith("|1|") and HostKeys.hash_host(name, hashed) == hashed


def changed(name: str) -> NoConnection:
    """Return the error for a host that presents another key than the known one."""
    return NoConnection(
        "its host key has changed",
        f"if the host was reinstalled or replaced, run `{commands.rigup('accept', name)}` and try again. If not, find "
        "out which machine answers at its address",
    )


def check(login: Login, known: KnownHosts, key: paramiko.PKey) -> None:
    """Accept the known key of a host, and pin the key of an unknown one. Raises NoConnection for any other key."""
    keys = known.of(login.known_as)
    if key in known.revoked:
        raise NoConnection("its host key is revoked", f"see @revoked in {login.known_hosts[0]}")
    if key in keys:
        return
    if keys:
        raise changed(login.name)
    if login.is_strict:
        raise NoConnection(
            "its host key is not known, and ssh's configuration has StrictHostKeyChecking",
            f"run `{commands.rigup('accept', login.name)}`",
        )
    pin(known, login.known_hosts[0], login.known_as, key)


def load(paths: Iterable[str | Path], say: Callable[[str], None] = lambda _: None) -> KnownHosts:
    """Read known_hosts files. One that does not exist has no keys. Calls `say` with each line that cannot be read."""
    keys = KnownHosts()
    for path in map(Path, paths):
        try:
            lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        except OSError as error:
            raise NoConnection(f"{path} cannot be read: {error.strerror}", "correct its owner and mode") from error
        for number, line in enumerate(lines, 1):
            try:
                marker, entry = _parsed(line)
            except ValueError:
                # Once, not once per host.
                if (path, line) not in _reported:
                    _reported.add((path, line))
                    say(f"{path}, line {number}: cannot be read and is skipped: remove or correct it")
                continue
            if marker == "@revoked" and entry is not None and entry.key is not None:
                keys.revoked.append(entry.key)
            elif not marker and entry is not None:
                keys._entries.append(entry)  # type: ignore[attr-defined]
    return keys


@cache
def _parsed(line: str) -> tuple[str, HostKeyEntry | None]:
    """Return a line's marker, if it has one, and its names and key.

    There is none in an empty line, a comment, and a line with a kind of key that paramiko lacks. Raises ValueError for
    a line that cannot be read.
    """
    fields = line.split()
    if not fields or fields[0].startswith("#"):
        return "", None
    marker = fields.pop(0) if fields[0] in _MARKERS else ""
    if len(fields) < 3:
        raise ValueError(line)
    names, kind, text = fields[:3]
    blob = base64.b64decode(text, validate=True)
    try:
        key = paramiko.PKey.from_type_string(kind, blob)
        for name in names.split(","):
            if name.startswith("|"):
                HostKeys.hash_host("", name)
        # A key that was cut off is read as another one.
        if key.asbytes() != blob:
            raise ValueError(line)
    except UnknownKeyType:
        return marker, None
    except Exception as error:
        # What paramiko and its libraries raise for a damaged key has no common class.
        raise ValueError(line) from error
    return marker, HostKeyEntry(names.split(","), key)


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
    for line in lines:
        try:
            marker, entry = _parsed(line)
        except ValueError:
            marker, entry = "", None
        names = entry.hostnames or [] if entry is not None and not marker else []
        mine = [each for each in names if each == name or _is_hash_of(each, name)]
        if not mine or entry is None or entry.key is None:
            kept.append(line)
            continue
        keys.append(entry.key.fingerprint)
        others = [each for each in names if each not in mine]
        if others:
            kept.append(" ".join([",".join(others), *line.split()[1:]]))
    return kept, keys


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
