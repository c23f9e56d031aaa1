"""What a rebuild keeps because it belongs to others."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.host import Host

from rigup.operations._host import check
from rigup.paths import SAVED


@dataclass
class Kept:
    """What stays on one host: packages that others need, what Docker holds, and `notes` for the end of the run."""

    packages: set[str] = field(default_factory=set)
    docker: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def save(host: Host, path: str, kept: Kept) -> None:
    """Copy a file that was changed by hand to SAVED, before it is removed."""
    saved = f"{SAVED}{path}"
    kept.notes.append(f"{path} as it was changed by hand: saved as {saved}")
    check(
        host,
        StringCommand("( umask 077 && mkdir -p --", QuoteString(posixpath.dirname(saved)), ") && cp -a --"),
        StringCommand(QuoteString(path), QuoteString(saved)),
        failing=f"could not save {path} of {host.name}",
    )


def some(words: Sequence[str], limit: int = 12) -> str:
    """Join words for a message, with a count of those beyond the limit."""
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more
