"""What every ssh connection has in common: socket options, keepalive, and the errors of a broken connection."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable

import paramiko

from rigup.errors import RigupError
from rigup.text import printable

CONNECT_S = 15
"""Seconds that a host may take for each part of a connection: to answer, to identify itself, to authenticate."""

KEEPALIVE_S = 15
"""Seconds between keepalive messages: below the idle limits of NAT gateways and firewalls, which start at 60 s."""

DEAD_AFTER_MS = 45_000
"""Milliseconds without an acknowledgement after which the kernel gives up a connection (its default is 15 minutes)."""

MAX_BYTES = 64 * 1024 * 1024
"""Bytes that a host may send on one stream of one command; the largest real answers have a few megabytes."""

BROKEN = (paramiko.SSHException, OSError, EOFError)
"""What paramiko raises if a connection cannot be made or breaks."""


class NoConnection(RigupError):
    """A host does not accept a connection or commands; the message leaves out the host's name."""


class TooManySessions(paramiko.ChannelException):
    """The host's sshd refuses a session on an open connection."""

    def __str__(self) -> str:
        return "sshd refuses another session: set `MaxSessions 10` in /etc/ssh/sshd_config on the host, and reload it"


class Transport(paramiko.Transport):
    """paramiko's transport, which also keeps why the host ended the connection, and waits for a free session.

    `make_room` is called if sshd refuses a session: it ends those that nothing needs. `hang_up` is called after the
    connection was closed.
    """

    farewell = ""
    make_room: Callable[[], None] = staticmethod(lambda: None)
    hang_up: Callable[[], None] = staticmethod(lambda: None)

    def close(self) -> None:
        """Close the connection."""
        super().close()
        self.hang_up()

    def open_session(
        self, window_size: int | None = None, max_packet_size: int | None = None, timeout: float | None = None
    ) -> paramiko.Channel:
        """Open a session. Raises TooManySessions if sshd still refuses it after CONNECT_S seconds, and BROKEN."""
        deadline = time.monotonic() + CONNECT_S
        while True:
            try:
                return super().open_session(window_size, max_packet_size, timeout)
            except paramiko.ChannelException as error:
                if time.monotonic() > deadline:
                    raise TooManySessions(error.code, error.text) from error
            # sshd counts a session until its process has ended, a little longer than its channel is open.
            self.make_room()
            time.sleep(0.05)

    def _parse_disconnect(self, m: paramiko.Message) -> None:
        m.get_int()
        self.farewell = m.get_text()


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
    if isinstance(error, EOFError):
        return str(error) or "the host closed the connection"
    return (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__


def words(text: str) -> str:
    """Return what a host said as one line to print, without blank lines, at most 400 characters."""
    return printable(" ".join(text.split()))[:400]


def tune(transport: paramiko.Transport) -> None:
    """Send at once (paramiko leaves Nagle's algorithm on: 40 ms per command), keep alive, detect a dead host."""
    transport.set_keepalive(KEEPALIVE_S)
    # A proxy's socket has no such options.
    if isinstance(transport.sock, socket.socket) and transport.sock.family != socket.AF_UNIX:
        transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_MS)


def silence_paramiko() -> None:
    """Keep paramiko's own log off the terminal: it prints tracebacks while a host boots. Errors are raised anyway."""
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
