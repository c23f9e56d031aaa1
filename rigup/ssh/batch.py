"""Many commands on a host in one round trip: what is sent and what comes back.

The program that runs on the host is ``batch.pl`` next to this file. It keeps stdout, stderr and exit code of every
command apart, byte for byte, and frames them by length, so that no output can be mistaken for a frame.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from importlib.resources import files

import paramiko

from rigup.ssh.transport import BROKEN

__all__ = ["Batch", "Command", "Result", "parse", "program", "request", "run", "send"]

LIMIT_S = 10
"""Seconds that one command may take in a batch; a slower one is run on its own."""

SLOTS = 4
"""Commands that run at a time on the host, per user."""

CAP_BYTES = 4 * 1024 * 1024
"""Output of one command above which it is left out of the batch."""

TOTAL_S = 60
"""Seconds without data after which a batch ends, with the results that have arrived."""

# Reads the program from standard input: it may be longer than a command line can be.
_BOOT = "our ($boot, $program); $boot = $ARGV[1]; read(STDIN, $program, $ARGV[0]); eval $program; die $@ if $@"


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
    """Return the command line and the standard input that make a host run all of `commands`.

    The result of the n-th command has the number n. `mark` is a random word that opens every frame.
    """
    source = program()
    parts = [source, f"{mark} {limit_s} {SLOTS} {CAP_BYTES}\n".encode()]
    for index, command in enumerate(commands):
        shell, text = command.shell.encode(), command.command.encode()
        parts += [f"{index} {int(command.sudo)} {len(shell)} {len(text)}\n".encode(), shell, text]
    return shlex.join(["perl", "-e", _BOOT, str(len(source)), _BOOT]), b"".join(parts)


def parse(data: bytes, commands: Sequence[Command], mark: str) -> Batch:
    """Read what a host sent, up to the first incomplete frame.

    Anything before the first frame (a login shell's greeting) is skipped.
    """
    batch = Batch()
    opening = f"{mark} ".encode()
    at = data.find(opening)
    while at >= 0 and data.startswith(opening, at):
        end = data.find(b"\n", at)
        fields = data[at:end].split(b" ") if end > 0 else []
        if len(fields) != 5:
            break
        index, status, out_length, err_length = int(fields[1]), fields[2], int(fields[3]), int(fields[4])
        out_end = end + 1 + out_length
        at = out_end + err_length
        if at > len(data) or index >= len(commands):
            break
        if status in (b"slow", b"big"):
            batch.refused.add(commands[index])
        else:
            batch.results[commands[index]] = Result(int(status), data[end + 1 : out_end], data[out_end:at])
    return batch


def send(transport: paramiko.Transport, commands: Sequence[Command], total_s: float = TOTAL_S) -> Callable[[], Batch]:
    """Send all of `commands` in one round trip. Returns a function that waits for the results.

    Never raises for what a host does or lacks: a command without a result (no perl, sudo asks for a password, the
    connection broke, the time was up) is missing from the batch, and must be run on its own.
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
        channel.exec_command(line)
        channel.sendall(stdin)
        channel.shutdown_write()
    except BROKEN:
        channel.close()

    def receive() -> Batch:
        received = bytearray()
        with suppress(*BROKEN), closing(channel):
            while chunk := channel.recv(1 << 20):
                received += chunk
        return parse(bytes(received), commands, mark)

    return receive


def run(transport: paramiko.Transport, commands: Sequence[Command], total_s: float = TOTAL_S) -> Batch:
    """Send all of `commands` in one round trip and wait for the results."""
    return send(transport, commands, total_s)()
