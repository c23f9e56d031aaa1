"""The power limits of a host's GPUs, as the inventory has them. Pure."""

from __future__ import annotations

from collections.abc import Mapping


def wanted(limits: Mapping[str, int], index: int, uuid: str) -> int | None:
    """Return the limit of a GPU in watts, by UUID, by index, or for `all`; None if there is none."""
    return limits.get(uuid, limits.get(str(index), limits.get("all")))
