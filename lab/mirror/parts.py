"""Parts of stand-in packages: programs, units, maintainer scripts."""

from collections.abc import Sequence
from pathlib import Path

from lab.mirror.debfile import File

STANDINS = Path(__file__).parent.parent / "standins"


def text_of(name: str, **values: str) -> str:
    """Return a file of lab/standins with each @NAME@ filled in."""
    text = (STANDINS / name).read_text()
    for placeholder, value in values.items():
        text = text.replace(f"@{placeholder}@", value)
    return text


def standin(path: str, name: str, mode: int = 0o644, **values: str) -> File:
    """Return a file of lab/standins for a path in the package."""
    return File(path, text_of(name, **values).encode(), mode)


def program(path: str, name: str, **values: str) -> File:
    """Return an executable of lab/standins for a path in the package."""
    return standin(path, name, 0o755, **values)


def unit(name: str) -> File:
    """Return a systemd unit of lab/standins."""
    return standin(f"usr/lib/systemd/system/{name}", f"units/{name}")


def script(*fragments: str) -> str:
    """Return a maintainer script made of fragments."""
    return "\n".join(["#!/bin/sh", "set -e", "", *fragments])


def unit_scripts(units: Sequence[str], before: Sequence[str] = ()) -> dict[str, str]:
    """Return the maintainer scripts of a package with units; postinst runs `before` before it enables them."""
    names = " ".join(units)
    return {
        "postinst": script(*before, text_of("maintainer/units.postinst", UNITS=names)),
        "prerm": script(text_of("maintainer/units.prerm", UNITS=names)),
        "postrm": script(text_of("maintainer/units.postrm", UNITS=names)),
    }
