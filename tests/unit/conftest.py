"""What unit tests share: operations that run on this machine write their ledger elsewhere; NVIDIA's repositories."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings

from lab.mirror import aptrepo, keys, nvidia
from lab.mirror.distributions import DISTRIBUTIONS
from lab.mirror.keys import Key
from rigup import paths
from rigup.operations import docker
from tests.unit.private_apt import CUDA, DISTRIBUTION, DKMS

# The same examples every time, however slow the machine is: no test fails by chance.
settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The environment of one test: a command changes it for what it starts. No test uses the user's secrets."""
    with patch.dict(os.environ, XDG_STATE_HOME=str(tmp_path_factory.getbasetemp() / "state")):
        yield


@pytest.fixture(autouse=True)
def room(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for the ledger, in place of the one that hosts have."""
    room = tmp_path_factory.mktemp("room") / "ledger's"
    monkeypatch.setattr(paths, "STATE", str(room))
    monkeypatch.setattr(paths, "LEDGER", f"{room}/ledger")
    monkeypatch.setattr(paths, "BEFORE", f"{room}/before")
    return room


@pytest.fixture
def daemon_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Docker here has its configuration; stand-ins say that it is valid, and that Docker runs with it."""
    programs = tmp_path / "programs"
    programs.mkdir()
    up = "LoadState=loaded\nActiveState=active\nSubState=running\nJob=0"
    for name, body in {"dockerd": "exit 0", "systemctl": f"[ $1 = show ] && echo '{up}' || exit 0"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    path = tmp_path / "docker/daemon.json"
    monkeypatch.setattr(docker, "DAEMON_JSON", str(path))
    return path


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return keys.ensure("one", "one <one@rigup.invalid>", tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def cuda(tmp_path_factory: pytest.TempPathFactory, key: Key) -> Path:
    """The CUDA repositories of all distributions, each with what it needs of the distribution."""
    root = tmp_path_factory.mktemp("cuda")
    for distro in DISTRIBUTIONS:
        aptrepo.write_flat(root / distro.id, [*nvidia.packages(distro, key, DKMS), *DISTRIBUTION], CUDA, key)
    return root
