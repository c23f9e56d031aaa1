"""What unit tests share: operations that run on this machine write their ledger elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from rigup import ledger


@pytest.fixture(autouse=True)
def room(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for the ledger, in place of the one that hosts have."""
    room = tmp_path_factory.mktemp("room") / "ledger's"
    monkeypatch.setattr(ledger, "ROOM", str(room))
    monkeypatch.setattr(ledger, "LEDGER", f"{room}/ledger")
    monkeypatch.setattr(ledger, "BEFORE", f"{room}/before")
    return room
