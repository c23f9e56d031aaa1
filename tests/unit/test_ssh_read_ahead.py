"""Results that were read ahead are stale some time after they were asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from rigup.ssh.batch import Command, Result
from rigup.ssh.read_ahead import ReadAhead


def test_results_are_stale_once_so_many_seconds_have_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    now = [100.0]
    monkeypatch.setattr("rigup.ssh.read_ahead.time.monotonic", lambda: now[0])
    ahead = ReadAhead("rig1")
    assert not ahead.is_older_than(50)
    ahead.keep(Command("true"), Result(0, b"", b""))
    # It was not sent ahead, which is as if it had been at the beginning of time.
    for seconds, stale in ((99, True), (100, False), (101, False)):
        assert ahead.is_older_than(seconds) is stale
    ahead.clear()
    assert not ahead.is_older_than(50)
