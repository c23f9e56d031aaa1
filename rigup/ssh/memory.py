"""The commands that earlier runs needed of a host, so that the next run can ask for all of them at once.

A remembered command is executed as root. Deploys store in the working directory, and remember facts by name and
arguments only. Audits have no such names: they store in the user's own cache, with a seal that only this user can make.
A file that others can write, or whose seal is wrong, is ignored.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from rigup import atomic
from rigup.ssh.batch import Command
from rigup.text import from_json

FORGOTTEN_AFTER = 5
"""Consecutive runs that did not need a command, after which it is forgotten."""

LEFT_OUT_FOR = 5
"""Runs for which a command that was too slow is left out of the batch: the host may only have been busy."""


KEY_BYTES = 32


def memory_file(host: str, kind: str) -> Path:
    """Return where the commands of a host are stored: in RIGUP_CACHE, else for deploys in ``.rigup/facts``.

    For audits (`kind`) it is the user's cache, by working directory.
    """
    folder = Path(".rigup/facts")
    if kind:
        place = hashlib.sha256(os.fsencode(Path.cwd())).hexdigest()[:16]
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rigup" / place
    folder = Path(os.environ.get("RIGUP_CACHE") or folder)
    safe = re.sub(r"[^A-Za-z0-9._-]", lambda m: f"%{ord(m[0]):x}", host)
    return folder / f"{safe}{kind}.json"


def sealing_key() -> bytes:
    """Return the secret that seals commands, from the user's state directory; made at the first use.

    If it cannot be kept there safely, it is another one each time: then nothing is remembered.
    """
    path = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "rigup/memory.key"
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        with path.open("rb") as file:
            kept = file.read()
            if len(kept) == KEY_BYTES and _is_own(file, 0o077):
                return kept
    return secrets.token_bytes(KEY_BYTES)


def _is_own(file: IO[Any], forbidden: int) -> bool:
    """Return whether a file belongs to this user and gives others none of these permissions."""
    status = os.fstat(file.fileno())
    return status.st_uid == os.geteuid() and not status.st_mode & forbidden


class Memory:
    """The commands of earlier runs and of this one. Their sources are stored, never their output.

    It stays valid when a host is replaced under the same name: all commands are run again.
    """

    def __init__(self, path: Path, key: bytes = b"") -> None:
        self._path = path
        self._key = key
        self._text = ""
        self._unused: dict[Command, int] = {}
        self._left_out: dict[Command, int] = {}
        self._used: dict[Command, None] = {}
        self._sources: dict[Command, Any] = {}

    @classmethod
    def load(cls, path: Path, decode: Callable[[Any], str] = str, key: bytes = b"") -> Memory:
        """Read the memory in `path`. It is empty if there is no such file, it is damaged, or others can write it.

        `decode` returns the command of a source, as `note_use` was given it, or raises ValueError. With a `key`, a
        memory that was not sealed with it, for this file name, is empty too.
        """
        memory = cls(path, key)
        try:
            with path.open() as file:
                if not _is_own(file, 0o022):
                    return memory
                memory._text = file.read()
            stored = from_json(memory._text)
            if key and not hmac.compare_digest(str(stored["seal"]).encode(), memory._seal(stored["commands"])):
                return memory
            for entry in stored["commands"]:
                try:
                    text = decode(entry["source"])
                except ValueError:
                    continue
                command = Command(text, bool(entry["sudo"]), str(entry["shell"]))
                memory._sources[command] = entry["source"]
                memory._unused[command] = int(entry["unused"])
                if left_out := int(entry["left_out"]):
                    memory._left_out[command] = left_out
        except (OSError, ValueError, KeyError, TypeError):
            memory._unused.clear()
            memory._left_out.clear()
        return memory

    def expected(self) -> Sequence[Command]:
        """Return the commands that this run will probably need, in the order of the last run, without slow ones."""
        return [command for command in self._unused if command not in self._left_out]

    def note_use(self, command: Command, source: Any) -> None:
        """Record that this run needed the command, which `source` stands for."""
        self._used[command] = None
        self._sources[command] = source

    def note_slow(self, commands: Iterable[Command]) -> None:
        """Record commands that the next batches must leave out."""
        self._left_out.update(dict.fromkeys(commands, LEFT_OUT_FOR + 1))

    def save(self) -> None:
        """Write the file, readable by its owner only, unless this run needed no commands or nothing has changed."""
        if not self._used:
            return
        unused = dict.fromkeys(self._used, 0)
        for command, runs in self._unused.items():
            if command not in unused and runs + 1 < FORGOTTEN_AFTER:
                unused[command] = runs + 1
        entries = [
            {
                "source": self._sources[command],
                "sudo": command.sudo,
                "shell": command.shell,
                "unused": runs,
                "left_out": max(0, self._left_out.get(command, 0) - 1),
            }
            for command, runs in unused.items()
        ]
        seal = {"seal": self._seal(entries).decode()} if self._key else {}
        text = json.dumps({"commands": entries, **seal}, indent=0)
        if text != self._text:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            atomic.write(self._path, text, 0o600)

    def _seal(self, entries: Any) -> bytes:
        text = f"{self._path.name}\n{json.dumps(entries)}"
        return hmac.new(self._key, text.encode(), "sha256").hexdigest().encode()
