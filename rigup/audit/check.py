"""The decorator that every check of the audit has, and what it records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

YOU = "you"
"""In place of a step, if only a person can repair what a check finds."""


@dataclass(frozen=True)
class About:
    """What is known about a check before it runs.

    `severity` is critical (the host does not serve, or will not after the next boot), major or minor. `settings` are
    the keys of the inventory that decide what is expected. `root` means that only root can read it, `deep` that it
    takes long. `repair` are the steps of the deploy that repair a finding, or YOU if no step does; empty for the
    step that the check's file is named after.
    """

    severity: Literal["critical", "major", "minor"]
    settings: tuple[str, ...]
    root: bool
    deep: bool
    repair: tuple[str, ...]


Check = TypeVar("Check", bound=Callable[..., None])


def check(
    severity: Literal["critical", "major", "minor"],
    *settings: str,
    root: bool = False,
    deep: bool = False,
    repair: tuple[str, ...] = (),
) -> Callable[[Check], Check]:
    """Mark a function as a check of the audit; see `About`. Its docstring's first line says why it matters."""

    def mark(function: Check) -> Check:
        function.about = About(severity, settings, root, deep, repair)  # type: ignore[attr-defined]
        return function

    return mark
