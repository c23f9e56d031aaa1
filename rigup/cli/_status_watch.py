"""Read hosts again and again, each over one connection and on its own: one that hangs delays no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

from rigup.cli._hosts import Target
from rigup.cli._status_data import HostStatus, Status, now, read, select
from rigup.cli._status_words import attention, balancer_line, endpoint_cells, gpu_cells, work_lines
from rigup.config.inventory import Host
from rigup.ssh.client import Client, Unreachable

LATE_S = 15.0
"""Seconds after which a host that has not answered is said to be silent."""


class Reader:
    """A host and its connection; a broken connection is replaced."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._client: Client | None = None

    def read(self) -> HostStatus:
        """Return the host's status, with the reason if it cannot be read."""
        try:
            self._client = self._client or Client(self.host)
            status = read(self._client, self.host)
            _prove(status)
            return status
        except Unreachable as error:
            self.close()
            return HostStatus(now(), error=error.why)
        except Exception as error:
            self.close()
            return HostStatus(now(), error=f"it answered something unexpected ({type(error).__name__}: {error})")

    def close(self) -> None:
        """End the connection."""
        if self._client:
            self._client.close()
        self._client = None


def _prove(status: HostStatus) -> None:
    """Raise an exception for a status that cannot be shown: a host may claim anything."""
    attention(Status(status.at, {"": status}))
    work_lines(status, status.at)
    if status.balancer:
        balancer_line(status.balancer)
    for endpoint in status.endpoints:
        endpoint_cells(endpoint, status.at)
    for gpu in status.gpus:
        gpu_cells(gpu, status)


class Watch:
    """All hosts of the targets, read in threads of their own."""

    def __init__(self, targets: Sequence[Target], interval_s: float) -> None:
        self.changed = threading.Event()
        self._targets, self._interval_s = targets, interval_s
        self._ended = threading.Event()
        self._last: dict[str, HostStatus | None] = {target.host.name: None for target in targets}
        self._asked_at: dict[str, float] = {}

    def start(self) -> None:
        """Start to read. The threads end with the process: Ctrl-C waits for no host."""
        for host in {target.host.name: target.host for target in self._targets}.values():
            threading.Thread(target=self._follow, args=(host,), daemon=True).start()

    def end(self) -> None:
        """Read no more."""
        self._ended.set()

    def _follow(self, host: Host) -> None:
        with closing(Reader(host)) as reader:
            while not self._ended.is_set():
                self._asked_at[host.name] = time.monotonic()
                self._last[host.name] = reader.read()
                self._asked_at.pop(host.name)
                self.changed.set()
                self._ended.wait(self._interval_s)

    @property
    def is_complete(self) -> bool:
        """Whether every host has been read once."""
        return None not in self._last.values()

    def status(self) -> Status:
        """Return what is known now; a host that is silent has a note."""
        found = {name: self._noted(name, last) for name, last in list(self._last.items())}
        return Status(now(), _selected(found, self._targets))

    def _noted(self, name: str, last: HostStatus | None) -> HostStatus:
        waited = time.monotonic() - self._asked_at.get(name, time.monotonic())
        if last is None:
            return HostStatus(now(), error=f"connecting, {waited:.0f} s")
        if last.error or waited < LATE_S:
            return last
        return replace(last, notes=(*last.notes, f"no answer for {waited:.0f} s; what follows is from before"))


@contextmanager
def watching(targets: Sequence[Target], interval_s: float) -> Iterator[Watch]:
    """Start a watch, and end it."""
    watch = Watch(targets, interval_s)
    watch.start()
    try:
        yield watch
    finally:
        watch.end()


def look(targets: Sequence[Target]) -> Status:
    """Read all hosts once, at the same time."""
    hosts = {target.host.name: target.host for target in targets}
    found: dict[str, HostStatus] = {}

    def once(host: Host) -> None:
        with closing(Reader(host)) as reader:
            found[host.name] = reader.read()

    # Not a pool: its threads would keep the process from ending with Ctrl-C.
    threads = [threading.Thread(target=once, args=(host,), daemon=True) for host in hosts.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Status(now(), _selected({name: found[name] for name in hosts}, targets))


def _selected(found: dict[str, HostStatus], targets: Sequence[Target]) -> dict[str, HostStatus]:
    named = {name: [target.endpoint for target in targets if target.host.name == name] for name in found}
    return {name: select(status, named[name]) for name, status in found.items()}
