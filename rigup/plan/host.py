"""Make the plan of a host, with the published files of its checkpoints read from the hub or from the local cache."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rigup.catalog.apply_patches import reads
from rigup.catalog.loader import Catalog
from rigup.config.settings import Settings
from rigup.lock.http import Unresolved
from rigup.lock.hub import published_file
from rigup.lock.lockfile import Lock
from rigup.lock.resolve import ResolveError
from rigup.plan.build import Published, build
from rigup.plan.model import Plan
from rigup.plan.select import Selection, select

CACHE = Path(".rigup/hub")
"""Where files from the hub are kept, below the working directory."""


def plan_host(host: str, settings: Settings, catalog: Catalog, lock: Lock, cache: Path = CACHE) -> Plan:
    """Return the plan of a host whose needs the lock has all entries for.

    Raises ResolveError for published files that cannot be read, and RigupError as `select` and `build` do.
    """
    selections = select(settings, catalog, lock)
    return build(host, settings, catalog, selections, _published(selections, settings.hub_endpoint, cache))


def _published(selections: Iterable[Selection], endpoint: str, cache: Path) -> Published:
    """Read the published files that the selected patches change."""
    found: dict[str, dict[str, str]] = {}
    errors: list[Unresolved] = []
    for each in selections:
        for name in reads(each.patches):
            files = found.setdefault(each.source, {})
            try:
                content = published_file(endpoint, each.checkpoint.repo, each.commit, name, cache)
            except Unresolved as error:
                errors.append(error)
                continue
            if content is not None:
                files[name] = content.decode("utf-8", errors="replace")
    if errors:
        raise ResolveError.of(errors)
    return found
