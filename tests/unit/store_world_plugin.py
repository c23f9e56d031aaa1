"""A pytest plugin: the published checkpoint of `tests.unit.store_world`, and a hub that serves it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.hub.repository import Repository
from tests.unit.store_world import RunningHub, hub_of, publish


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return publish(tmp_path_factory.mktemp("published") / "model")


@pytest.fixture
def hub(repository: Repository, tmp_path: Path) -> Iterator[RunningHub]:
    with hub_of(repository, tmp_path / "hub") as hub:
        yield hub
