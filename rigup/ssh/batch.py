"""Many commands on a host in one round trip: what is sent, what comes back.

The program that runs on the host is ``batch.pl`` beside this file. It keeps stdout, stderr and exit code of every
command apart, byte for byte, and frames them by length, so that no output can be mistaken for a frame. The connector
(``rigup.ssh.connector``) and the audit's backend (``rigup.ssh.testinfra_backend``) share this.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from importlib.resources import files

import paramiko

LIMIT_S = 10
"""Seconds one command may take in a batch; a slower one is asked for by itself."""

SLOTS = 4
"""Commands that run at a time on the host, per identity."""

CAP_BYTES = 4 * 1024 * 1024
"""Output of one command beyond which it is left out of the batch."""

TOTAL_S = 60
"""Seconds after which a batch is taken as it is, however much of it has come back."""

_BROKEN = (OSError, EOFError, paramiko.SSHException)

# Reads the program from standard input: it may be longer than a command line can be.
_BOOT = "our ($boot, $program); $boot = $ARGV[1]; read(STDIN, $program, $ARGV[0]); eval $program; die $@ if $@"


@dataclass(frozen=True)
class Ask:
    """One command as it is to run: through ``shell -c``, as the login user or as root by sudo."""

    command: str
    sudo: bool = False
    shell: str = "sh"


@dataclass(frozen=True)
class Answer:
    """What a command left: exit code (128 + signal number where a signal ended it) and its two streams."""

    code: int
    stdout: bytes
    stderr: bytes


@dataclass
class Batch:
    """The answers that came back, by the command asked, and the commands that were too slow or too loud."""

    answers: dict[Ask, Answer] = field(default_factory=dict)
    refused: set[Ask] = field(default_factory=set)


def program() -> bytes:
    """The program that runs on the host."""
    return files("rigup.ssh").joinpath("batch.pl").read_bytes()


def request(asks: Sequence[Ask], mark: str, limit_s: int = LIMIT_S) -> tuple[str, bytes]:
    """The command line and the standard input that make a host answer all of `asks`.

    The n-th command is answered under the number n. `mark` is a random word that opens every frame.
    """
    source = program()
    parts = [source, f"{mark} {limit_s} {SLOTS} {CAP_BYTES}\n".encode()]
    for index, ask in enumerate(asks):
        shell, command = ask.shell.encode(), ask.command.encode()
        parts += [f"{index} {int(ask.sudo)} {len(shell)} {len(command)}\n".encode(), shell, command]
    return shlex.join(["perl", "-e", _BOOT, str(len(source)), _BOOT]), b"".join(parts)


def parse(data: bytes, asks: Sequence[Ask], mark: str) -> Batch:
    """Read what a host sent back, up to the first thing that is no complete frame.

    What stands before the first frame (a login shell that greets) is passed over.
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
        if at > len(data) or index >= len(asks):
            break
        if status in (b"slow", b"big"):
            batch.refused.add(asks[index])
        else:
            batch.answers[asks[index]] = Answer(int(status), data[end + 1 : out_end], data[out_end:at])
    return batch


def send(transport: paramiko.Transport, asks: Sequence[Ask], total_s: float = TOTAL_S) -> Callable[[], Batch]:
    """Have a host begin with all of `asks`, in one round trip. Returns what waits for the answers.

    Never raises for what a host does or lacks: a command without an answer (no perl, sudo wants a password, the
    connection broke, time was up) is missing from the result, and is to be asked for by itself.
    """
    if not asks:
        return Batch
    mark = secrets.token_hex(16)
    command, stdin = request(asks, mark)
    try:
        channel = transport.open_session(timeout=total_s)
    except _BROKEN:
        return Batch
    try:
        channel.settimeout(total_s)
        channel.exec_command(command)
        channel.sendall(stdin)
        channel.shutdown_write()
    except _BROKEN:
        channel.close()

    def answers() -> Batch:
        received = bytearray()
        with suppress(*_BROKEN), closing(channel):
            while chunk := channel.recv(1 << 20):
                received += chunk
        return parse(bytes(received), asks, mark)

    return answers


def run(transport: paramiko.Transport, asks: Sequence[Ask], total_s: float = TOTAL_S) -> Batch:
    """`send`, and wait for the answers."""
    return send(transport, asks, total_s)()


def text(stream: bytes) -> str | None:
    """The stream as text, or None where it is not UTF-8."""
    try:
        return stream.decode()
    except UnicodeDecodeError:
        return None
