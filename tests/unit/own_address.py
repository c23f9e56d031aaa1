"""An address of loopback that no other process uses: a port that is free there stays free until we listen on it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# 127.64.0.0/10 has room for every process id (at most 2^22). What connects to it comes from 127.0.0.1.
OWN_ADDRESS = f"127.{64 + (os.getpid() >> 16)}.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
DARK_ADDRESS = f"127.{128 + (os.getpid() >> 16)}.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"


def free_port() -> int:
    """A port of OWN_ADDRESS for a program that cannot choose one itself."""
    with socket.create_server((OWN_ADDRESS, 0)) as probe:
        return int(probe.getsockname()[1])


def is_open(port: int) -> bool:
    """Whether somebody listens on this port of OWN_ADDRESS."""
    with socket.socket() as probe:
        return probe.connect_ex((OWN_ADDRESS, port)) == 0


@contextmanager
def black_hole(port: int) -> Iterator[str]:
    """An address at which nothing answers: its queue of connections is full, so that the kernel drops new ones."""
    with ExitStack() as stack:
        stack.enter_context(socket.create_server((DARK_ADDRESS, port), backlog=0))
        for _ in range(4):
            line = stack.enter_context(socket.socket())
            line.setblocking(False)
            line.connect_ex((DARK_ADDRESS, port))
        yield DARK_ADDRESS
