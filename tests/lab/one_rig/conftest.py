"""The host of `rig.py`, deployed once for all tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import machine, world
from tests.lab.one_rig.rig import NAME, OneRig
from tests.lab.rigs import Rigs


@pytest.fixture(scope="session")
def one_rig(services: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneRig]:
    """A separate host that was deployed once."""
    host = machine.start(NAME, release="trixie", login="ops")
    host.reset()
    machine.write_known_hosts()
    rigs = Rigs(
        tmp_path_factory.mktemp("one_rig"),
        {NAME: {**world.connection(host), "gpu_power": 500, "acs": False}},
        world.defaults(),
    )
    rigs.write()
    rig = OneRig(host, rigs)
    try:
        rig.deploy()
        yield rig
    finally:
        host.remove()
        machine.write_known_hosts()
