"""TCP connections to names with several addresses, and byte streams through a proxy command."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any, cast

ATTEMPT_DELAY_S = 0.25
"""Seconds after which the next address is tried while the others have not answered (RFC 8305, section 5)."""


def connect(name: str, port: int, limit_s: float, family: int = socket.AF_UNSPEC) -> socket.socket:
    """Connect to the address of `name` that answers first; a family without a route delays only a little (RFC 8305).

    Raises OSError: `socket.gaierror` for a name without an address, TimeoutError after `limit_s` seconds.
    """
    waiting = _interleaved(socket.getaddrinfo(name, port, family, socket.SOCK_STREAM))
    deadline = time.monotonic() + limit_s
    failed: dict[str, OSError] = {}
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or selector.get_map():
                if waiting:
                    kind, address = waiting.pop(0)
                    try:
                        line = socket.socket(kind, socket.SOCK_STREAM)
                    except OSError as error:
                        # A kernel without IPv6.
                        failed[address[0]] = error
                        continue
                    line.setblocking(False)
                    selector.register(line, selectors.EVENT_WRITE, address[0])
                    code = line.connect_ex(address)
                    if code not in (0, errno.EINPROGRESS):
                        failed[_closed(selector, line)] = OSError(code, os.strerror(code))
                        continue
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"no answer within {limit_s:.0f} s")
                for key, _ in selector.select(min(left, ATTEMPT_DELAY_S) if waiting else left):
                    line = cast(socket.socket, key.fileobj)
                    if code := line.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        failed[_closed(selector, line)] = OSError(code, os.strerror(code))
                        continue
                    selector.unregister(line)
                    line.settimeout(None)
                    return line
        finally:
            for key in list(selector.get_map().values()):
                cast(socket.socket, key.fileobj).close()
    first, *others = failed.values()
    if not others:
        raise first
    # The first one decides what kind of error it is: that of the preferred address.
    raise OSError(first.errno, "; ".join(f"{address}: {error.strerror}" for address, error in failed.items()))


def _closed(selector: selectors.BaseSelector, line: socket.socket) -> str:
    """Give up a connection and return its address."""
    address: str = selector.unregister(line).data
    line.close()
    return address


def _interleaved(found: Sequence[tuple[int, int, int, str, Any]]) -> list[tuple[int, Any]]:
    """Return family and address of each, alternating between the families, the preferred one first."""
    places = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    first = [place for place in places if place[0] == places[0][0]]
    others = [place for place in places if place[0] != places[0][0]]
    return [place for place in chain.from_iterable(zip_longest(first, others)) if place is not None]


class Proxy:
    """A command that connects its standard streams to a host, such as `ssh -W`; `line` is the other end of these."""

    def __init__(self, command: Sequence[str]) -> None:
        self.line, theirs = socket.socketpair()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            # gevent's sockets do not block, and not every program expects that of its streams.
            os.set_blocking(theirs.fileno(), True)
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=self._errors
            )

    def complaint(self) -> str:
        """Return what the command has printed to standard error."""
        return os.pread(self._errors.fileno(), 4096, 0).decode(errors="replace").strip()

    def end(self) -> None:
        """End the command. Not with SIGHUP, as ssh does: below nohup it would be ignored."""
        self.line.close()
        self._errors.close()
        if self._process.poll() is None:
            self._process.terminate()
