"""Whole runs against lab hosts of their own, beside whatever else the lab is used for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import PurePath

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from lab import world
from lab.registry import image, tree

LONGEST = (
    "one_rig",
    "test_rebuild.py",
    "two_rigs",
    "test_switch.py",
    "test_bad_days.py",
    "test_store.py",
    "test_tour.py",
    "test_fleet.py",
)
"""The directories and files that take more than a minute, the longest first; all others come after them."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the long repetitions too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soak: a long repetition, run by `make soak`")
    # Jobs in a shell's background ignore Ctrl-C, and so would all that is started here and told to stop by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


class ByHost(LoadFileScheduling):
    """Gives the files of a directory to one process, since they share their hosts; other files one by one."""

    def _split_scope(self, nodeid: str) -> str:
        file = PurePath(super()._split_scope(nodeid))
        return str(file if file.parent.name == "lab" else file.parent)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByHost:
    # xdist's own order, by number of tests, ends with a few long ones, and with processes that have nothing to do.
    config.option.loadscopereorder = False
    return ByHost(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def turn(item: pytest.Item) -> int:
        return next((turn for turn, name in enumerate(LONGEST) if name in item.path.parts), len(LONGEST))

    items.sort(key=turn)
    if not config.getoption("--soak"):
        for item in items:
            if item.get_closest_marker("soak"):
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
