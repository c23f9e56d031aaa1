"""What unit tests share: operations that run on this machine write their ledger elsewhere; NVIDIA's repositories."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.mirror import aptrepo, keys, nvidia
from lab.mirror.keys import Key
from rigup import ledger
from tests.unit.private_apt import CUDA, DISTRIBUTION, DKMS


@pytest.fixture(autouse=True)
def room(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for the ledger, in place of the one that hosts have."""
    room = tmp_path_factory.mktemp("room") / "ledger's"
    monkeypatch.setattr(ledger, "ROOM", str(room))
    monkeypatch.setattr(ledger, "LEDGER", f"{room}/ledger")
    monkeypatch.setattr(ledger, "BEFORE", f"{room}/before")
    return room


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return keys.ensure("one", "one <one@rigup.invalid>", tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def cuda(tmp_path_factory: pytest.TempPathFactory, key: Key) -> Path:
    """The CUDA repositories of all distributions, each with what it needs of the distribution."""
    root = tmp_path_factory.mktemp("cuda")
    for distro in nvidia.BRANCHES:
        aptrepo.write_flat(root / distro, [*nvidia.packages(distro, key, DKMS), *DISTRIBUTION], CUDA, key)
    return root
