"""Many commands on a host in one round trip: what is sent and what comes back.

The program that runs on the host is ``batch.pl`` next to this file. It keeps stdout, stderr and exit code of every
command apart, byte for byte, and frames them by length, so that no output can be mistaken for a frame.
"""

from __future__ import annotations

import re
import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from importlib.resources import files

import paramiko

from rigup.ssh import environment
from rigup.ssh.transport import BROKEN, MAX_BYTES, BadAnswer, receive_all

LIMIT_S = 10
"""Seconds that one command may take in a batch; a slower one is run on its own."""

SLOTS = 4
"""Commands that run at a time on the host, per user."""

CAP_BYTES = 4 * 1024 * 1024
"""Output of one command above which it is left out of the batch."""

TOTAL_S = 60
"""Seconds to wait for a batch; then it ends with the results that have arrived."""

# batch.pl notices too much output after at most one more read of each stream.
_MAX_STREAM = CAP_BYTES + 2 * 65536
_HEADER = re.compile(rb"(\d{1,6}) (\d{1,3}|slow|big) (\d{1,8}) (\d{1,8})\n")
_MAX_HEADER = 64

# Reads the program from standard input: it may be longer than a command line can be.
_BOOT = "our ($length, $boot, @clean) = @ARGV; read(STDIN, our $program, $length); eval $program; die $@ if $@"


@dataclass(frozen=True)
class Command:
    """One command for ``SHELL -c``, run as the login user, or as root through sudo."""

    command: str
    sudo: bool = False
    shell: str = "sh"


@dataclass(frozen=True)
class Result:
    """A command's exit code (128 + signal number if a signal ended it) and its two streams."""

    code: int
    stdout: bytes
    stderr: bytes


@dataclass
class Batch:
    """The results that arrived, by command, and the commands that were too slow or printed too much."""

    results: dict[Command, Result] = field(default_factory=dict)
    refused: set[Command] = field(default_factory=set)


def program() -> bytes:
    """Return the program that runs on the host."""
    return files("rigup.ssh").joinpath("batch.pl").read_bytes()


def request(commands: Sequence[Command], mark: str, limit_s: int) -> tuple[str, bytes]:
    """Return the command and the standard input that make a host run all of `commands`, in the environment it has.

    The result of the n-th command has the number n. `mark` is a random word that opens every frame.
    """
    source = program()
    parts = [source, f"{mark} {limit_s} {SLOTS} {CAP_BYTES}\n".encode()]
    for index, command in enumerate(commands):
        shell, text = command.shell.encode(), command.command.encode()
        parts += [f"{index} {int(command.sudo)} {len(shell)} {len(text)}\n".encode(), shell, text]
    return shlex.join(["perl", "-e", _BOOT, str(len(source)), _BOOT, *environment.CLEAN]), b"".join(parts)


def parse(data: bytes, commands: Sequence[Command], mark: str) -> Batch:
    """Read what a host sent, up to the first incomplete frame.

    Anything before the first frame (a login shell's greeting) is skipped. Raises BadAnswer for a frame that `batch.pl`
    does not send: malformed, too long, or for a command that was not sent or already has its result.
    """
    batch = Batch()
    opening = f"{mark} ".encode()
    at = data.find(opening)
    while 0 <= at < len(data):
        rest = data[at : at + len(opening) + _MAX_HEADER]
        header = _HEADER.match(rest, len(opening)) if rest.startswith(opening) else None
        if header is None:
            if b"\n" not in rest and at + len(rest) == len(data) and opening.startswith(rest[: len(opening)]):
                break
            raise BadAnswer("it answered a batch of commands with a malformed frame")
        index, status, out_length, err_length = int(header[1]), header[2], int(header[3]), int(header[4])
        if index >= len(commands) or commands[index] in batch.results or commands[index] in batch.refused:
            raise BadAnswer("it answered a command that was not sent, or answered one twice")
        if out_length + err_length > _MAX_STREAM:
            raise BadAnswer(f"it answered a command with more than {CAP_BYTES} bytes")
        start = at + header.end()
        at = start + out_length + err_length
        if at > len(data):
            break
        if status in (b"slow", b"big"):
            batch.refused.add(commands[index])
        else:
            batch.results[commands[index]] = Result(
                int(status), data[start : start + out_length], data[start + out_length : at]
            )
    return batch


def send(transport: paramiko.Transport, commands: Sequence[Command], total_s: float = TOTAL_S) -> Callable[[], Batch]:
    """Send all of `commands` in one round trip. Returns a function that waits for the results.

    A command without a result (no perl, sudo asks for a password, the connection broke, the time was up) is missing
    from the batch, and must be run on its own. The function raises BadAnswer for an answer that no `batch.pl` sends.
    """
    if not commands:
        return Batch
    mark = secrets.token_hex(16)
    line, stdin = request(commands, mark, LIMIT_S)
    try:
        channel = transport.open_session(timeout=total_s)
    except BROKEN:
        return Batch
    try:
        channel.settimeout(total_s)
        channel.exec_command(environment.login_line(line, mark))
        channel.sendall(stdin)
        channel.shutdown_write()
    except BROKEN:
        channel.close()

    def receive() -> Batch:
        received = bytearray()
        with closing(channel), suppress(*BROKEN):
            receive_all(channel, channel.recv, received, time.monotonic() + total_s, MAX_BYTES)
        return parse(bytes(received), commands, mark)

    return receive


def run(transport: paramiko.Transport, commands: Sequence[Command], total_s: float = TOTAL_S) -> Batch:
    """Send all of `commands` in one round trip and wait for the results."""
    return send(transport, commands, total_s)()
