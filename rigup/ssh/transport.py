"""What every ssh connection has in common: socket options, keepalive, and the errors of a broken connection."""

from __future__ import annotations

import logging
import socket

import paramiko

__all__ = ["BROKEN", "reason", "silence_paramiko", "tune"]

KEEPALIVE_S = 15
"""Seconds between keepalive messages: below the idle limits of NAT gateways and firewalls, which start at 60 s."""

DEAD_AFTER_MS = 45_000
"""Milliseconds without an acknowledgement after which the kernel gives up a connection (its default is 15 minutes)."""

BROKEN = (paramiko.SSHException, OSError, EOFError)
"""What paramiko raises if a connection cannot be made or breaks."""


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
