"""Whole runs against lab hosts of their own, beside whatever else the lab is used for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from lab import machine, world
from lab.registry import image, tree
from tests.lab.rigs import Rigs

# Not the hosts of `make lab`: tests break theirs.
SPECS = {
    "rig4": machine.Spec(release="trixie", login="ops"),
    "rig5": machine.Spec(release="bookworm", login="root"),
}
FIRST, SECOND = SPECS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the long repetitions too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soak: a long repetition, run by `make soak`")
    # Jobs in a shell's background ignore Ctrl-C, and so would all that is started here and told to stop by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--soak"):
        for item in items:
            if "soak" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="a long repetition: make soak"))


@pytest.fixture(scope="session")
def services() -> Iterator[None]:
    """The lab's mirror, hub and registry; those that ran before run on afterwards."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    with world.services():
        yield


@pytest.fixture(scope="session")
def vllm(services: None) -> None:
    """The lab's real vLLM, of which the registry's image is made, in `lab.registry.tree.place`."""
    with image.exclusive():
        tree.build()


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
