"""Two bare hosts that the tests of this directory share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import machine, world
from tests.lab.rigs import Rigs

# Not the hosts of `make lab`: tests break theirs.
SPECS = {
    "rig4": machine.Spec(release="trixie", login="ops"),
    "rig5": machine.Spec(release="bookworm", login="root"),
}
FIRST, SECOND = SPECS


@pytest.fixture(scope="session")
def rigs(services: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rigs]:
    """Two bare hosts: Debian 13 with a sudo login, and Debian 12 with a root login."""
    hosts = {name: machine.get(name) for name in SPECS}
    for name, host in hosts.items():
        host.create(SPECS[name])
    machine.write_known_hosts()
    directory = tmp_path_factory.mktemp("rigs")
    rigs = Rigs(directory, {name: world.connection(host) for name, host in hosts.items()}, world.defaults())
    rigs.write()
    yield rigs
    for host in hosts.values():
        host.remove()
    machine.write_known_hosts()
