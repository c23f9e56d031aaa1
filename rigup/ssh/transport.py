"""What every ssh connection has in common: socket options, keepalive, and the errors of a broken connection."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable

import paramiko

KEEPALIVE_S = 15
"""Seconds between keepalive messages: below the idle limits of NAT gateways and firewalls, which start at 60 s."""

DEAD_AFTER_MS = 45_000
"""Milliseconds without an acknowledgement after which the kernel gives up a connection (its default is 15 minutes)."""

MAX_BYTES = 64 * 1024 * 1024
"""Bytes that a host may send on one stream of one command; the largest real answers have a few megabytes."""

BROKEN = (paramiko.SSHException, OSError, EOFError)
"""What paramiko raises if a connection cannot be made or breaks."""


class BadAnswer(Exception):
    """A host sent what no healthy host sends; the message goes after the host's name.

    Not one of BROKEN: connecting again does not help.
    """


def receive_all(
    channel: paramiko.Channel, receive: Callable[[int], bytes], into: bytearray, deadline: float, limit: int
) -> None:
    """Append one stream of a channel to `into`, until it ends.

    Raises BadAnswer above `limit` bytes, TimeoutError at the `deadline` (as `time.monotonic`), and BROKEN.
    """
    while True:
        if (left := deadline - time.monotonic()) <= 0:
            raise TimeoutError
        channel.settimeout(left)
        chunk = receive(1 << 20)
        if not chunk:
            return
        if len(into) + len(chunk) > limit:
            raise BadAnswer(f"it sent more than {limit} bytes")
        into += chunk


def reason(error: BaseException) -> str:
    """Return the error's message, or its type if it has none."""
    return str(error) or type(error).__name__


def tune(transport: paramiko.Transport) -> None:
    """Send at once (paramiko leaves Nagle's algorithm on: 40 ms per command), keep alive, detect a dead host."""
    transport.set_keepalive(KEEPALIVE_S)
    # A proxied connection has a channel or a local process, with no socket options.
    if isinstance(transport.sock, socket.socket):
        transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_MS)


def silence_paramiko() -> None:
    """Keep paramiko's own log off the terminal: it prints tracebacks while a host boots. Errors are raised anyway."""
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
