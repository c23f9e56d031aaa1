"""`rigup init`: make a project directory for hosts, after a look at them."""

from __future__ import annotations

import argparse
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rigup.catalog.loader import default_catalog
from rigup.cli._lab_yaml import Entry, LabYaml
from rigup.cli._new_project import create, require_room
from rigup.cli._parser import Commands
from rigup.cli._survey import Seen, look_at
from rigup.config.inventory import Inventory, load_inventory
from rigup.errors import InputError, RigupError

FORM = "NAME=[USER@]ADDRESS[:PORT]"
EXAMPLE = "for example rig1=ops@192.0.2.11"


def register(commands: Commands) -> None:
    """Add `rigup init`."""
    parser = commands.add_parser(
        "init",
        help="make a project directory for your hosts",
        description="Asks for hosts unless --host names them, looks at each over ssh and changes nothing there. Writes "
        "the inventory with a recipe that fits the cards, the files that pyinfra runs, and a git repository.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="the new directory; it may exist if it is empty")
    parser.add_argument("--host", action="append", metavar=FORM, help="a host, instead of questions; repeatable")
    parser.set_defaults(run=_init)


def _init(options: argparse.Namespace) -> int:
    """Run `rigup init`. Raises RigupError for a directory with content, and for hosts that cannot be right."""
    directory: Path = options.directory
    require_room(directory)
    entries = _named(options.host) if options.host else _asked()
    seen = look_at(_checked(entries).hosts.values())
    lab = LabYaml(default_catalog(), entries, seen)
    for name, found in seen.items():
        first, *more = lab.about(name, found)[0] if isinstance(found, Seen) else [f"not reached: {found}"]
        print("\n    ".join([f"{name}: {first}", *more]))
    print(f"recipe: {lab.best.recipe.id} ({lab.best.reason})" if lab.best else f"recipe: none chosen, {lab.why_none}")
    if problem := create(directory, lab.text()):
        print(problem)
    place = Path.cwd() if directory.resolve() == Path.cwd() else directory
    print(f"Wrote {directory}. Next: cd {shlex.quote(str(place))} && rigup plan")
    return 0


def _asked() -> dict[str, Entry]:
    """Ask for hosts until an empty line. Raises RigupError if there is none."""
    print(f"Your hosts, each as {FORM}, {EXAMPLE}. An empty line ends the list.")
    entries: dict[str, Entry] = {}
    while text := _answer("host: "):
        try:
            entries = _with(entries, text)
        except RigupError as error:
            print(error)
    if not entries:
        raise RigupError("no host was named", f"name each with --host {FORM}")
    return entries


def _answer(question: str) -> str:
    try:
        return input(question).strip()
    except EOFError:
        print()
        return ""


def _named(texts: Sequence[str]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for text in texts:
        entries = _with(entries, text)
    return entries


def _with(entries: Mapping[str, Entry], text: str) -> dict[str, Entry]:
    """Return the entries and the host that `text` names. Raises RigupError if it cannot be right."""
    name, equals, login = text.partition("=")
    user, at, place = login.rpartition("@")
    # An IPv6 address may stand alone; before a port it has brackets.
    match = re.fullmatch(r"\[(.+)\](?::(\d+))?|([^:\[]+)(?::(\d+))?|([^\[]*:[^\[]*:[^\[]*)", place, re.ASCII)
    if not name or not equals or match is None:
        raise RigupError(f"{text!r} is not a host", f"write {FORM}, {EXAMPLE}")
    if name in entries:
        raise RigupError(f"{name} is named twice", "give each host its own name")
    entry: dict[str, Any] = {"address": match[1] or match[3] or match[5]}
    entry |= {"user": user} if at else {}
    entry |= {"port": int(port)} if (port := match[2] or match[4]) else {}
    both = {**entries, name: entry}
    _checked(both)
    return both


def _checked(entries: Mapping[str, Entry]) -> Inventory:
    """Return the inventory with these hosts. Raises RigupError for the mistakes that any inventory may have."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "lab.yaml"
        path.write_text(yaml.safe_dump({"hosts": dict(entries)}))
        try:
            return load_inventory(path)
        except InputError as error:
            found = [": ".join(filter(None, (each.key, each.message, each.remedy))) for each in error.findings]
            raise RigupError("\n".join(found)) from None
