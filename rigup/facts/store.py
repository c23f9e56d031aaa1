"""The model store of a host: how far its downloads are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.facts._reading import reading
from rigup.facts.serving import read_object

__all__ = ["FetchProgress"]


class FetchProgress(FactBase[Mapping[str, Any]]):
    """What the download of `instance` (`CheckpointPlan.instance`) last said of itself; empty before its first word.

    `rigup.progress.progress_line` makes a line of it.
    """

    @staticmethod
    def default() -> Mapping[str, Any]:
        return {}

    def command(self, instance: str) -> StringCommand:
        return StringCommand("cat --", QuoteString(f"/run/rigup-fetch/{instance}/progress.json"), "2>/dev/null || true")

    @reading
    def process(self, output: list[str]) -> Mapping[str, Any]:
        return read_object("\n".join(output))
