"""Fixtures and scheduling for tests that deploy to their own lab hosts."""

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
    "test_control_machine.py",
    "test_switch.py",
    "test_bad_days.py",
    "test_balancer.py",
    "test_store.py",
    "test_tour.py",
    "test_ubuntu.py",
    "test_used_hosts.py",
    "test_strangers.py",
    "test_fleet.py",
)
"""The directories and files that take more than a minute, longest first; all others run after them."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soak: a long repetition, run by `make soak`")
    # Background jobs of a shell ignore SIGINT, and so would all processes that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


class ByHost(LoadFileScheduling):
    """Assign the files of a directory to one process, since they share hosts; other files one by one."""

    def _split_scope(self, nodeid: str) -> str:
        file = PurePath(super()._split_scope(nodeid))
        return str(file if file.parent.name == "lab" else file.parent)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByHost:
    # xdist's own order, by number of tests, ends with a few long ones while other processes are idle.
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
    """The lab's mirror, hub and registry; those that ran before keep running."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    with world.services():
        yield


@pytest.fixture(scope="session")
def vllm(services: None) -> None:
    """The lab's real vLLM, which the registry's image contains, in `lab.registry.tree.place`."""
    with image.exclusive():
        tree.build()
