"""`rigup connect`: the configuration of a client for an endpoint, printed or written into the client's own file."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from rigup import atomic
from rigup.catalog.loader import default_catalog
from rigup.cli._catalog import show_problems
from rigup.cli._hosts import add_host, add_inventory, find_endpoint, read_inventory
from rigup.cli._parser import Commands
from rigup.cli.key import read_key
from rigup.config.inventory import Host
from rigup.errors import InputError, RigupError
from rigup.lock import lockfile
from rigup.plan.build import make_plan
from rigup.render.clients.connection import Connection, connection
from rigup.render.clients.formats import CLIENTS, Client, Configuration, Place, text_of
from rigup.render.clients.merge import json_merged, yaml_merged
from rigup.render.clients.traps import traps_of
from rigup.ssh.login import login_of

BACKUP = ".backup"
"""The suffix of what a client's file was before the last change."""


def register(commands: Commands) -> None:
    """Add `rigup connect`."""
    parser = commands.add_parser(
        "connect",
        help="print the configuration of a client for an endpoint, or write it into the client's file",
        description="Prints the configuration on standard output, and on standard error what the endpoint offers and "
        "the known traps. Connects to the host only for --with-key.",
        epilog="Exit codes: 0 success, 1 the client's file cannot be changed, or the key cannot be read.",
    )
    add_host(parser, endpoints=True, help="the endpoint; its name may be left out where the host has only one")
    parser.add_argument("--to", dest="client", required=True, choices=CLIENTS, help="the client")
    parser.add_argument("--with-key", action="store_true", help="include the endpoint's key (default: where to put it)")
    parser.add_argument(
        "--write", action="store_true", help="merge it into the client's own file, with a backup next to the file"
    )
    add_inventory(parser)
    parser.set_defaults(run=_connect)


def _connect(options: argparse.Namespace) -> int:
    """Run `rigup connect`. Raises RigupError if the endpoint has no plan or no key, or the file cannot be changed."""
    inventory, client = read_inventory(options), CLIENTS[options.client]
    host, name = find_endpoint(inventory, options.host)
    if options.write and client.place is None:
        raise RigupError(f"{client.title} has no file to write", client.without_file)
    if options.with_key and not client.takes_key:
        raise RigupError(
            f"the key would be on {client.title}'s command line, which other users can read",
            "leave --with-key out: the printed commands read it by themselves",
        )
    catalog = default_catalog()
    show_problems(catalog)
    endpoint = make_plan(host.name, host.settings, catalog, lockfile.read(inventory.lock), None).endpoint(name)
    recipe = catalog.recipe(endpoint.recipe)
    found = connection(host.name, endpoint, recipe, catalog.model_of(recipe))
    key = read_key(host, name) if options.with_key else None
    configuration = client.configure(found, key)
    if options.write and client.place is not None:
        _write(client, client.place, configuration, secret=key is not None)
    else:
        print(text_of(client, configuration), end="")
        if key is not None:
            _tell(["It contains the key: keep it where only you can read it."])
    _tell(about(host, found, client, configuration))
    _tell(f"trap: {trap.text} [{trap.source}]" for trap in traps_of(options.client, found))
    return 0


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def about(host: Host, found: Connection, client: Client, configuration: Configuration) -> list[str]:
    """Return lines that say what the endpoint offers, and how to use the configuration."""
    thinking = json.dumps({found.thinking: False})
    context = f"{found.context} tokens" if found.context else "not known"
    rows = {
        "address": found.url,
        "model": found.model,
        "context": context if found.is_set else f"{context}; the recipe does not set it, and /v1/models shows it",
        "longest answer": f"{found.output} tokens" if found.output else "",
        "streaming": "yes",
        "tool calls": found.tool_calls or "no",
        "reasoning": f"in {found.reasoning}; off with chat_template_kwargs {thinking}" if found.reasoning else "no",
        "images": "yes" if found.images else "no",
    }
    if found.forward:
        program, *rest = login_of(host).command
        rows["tunnel"] = shlex.join([program, "-N", "-L", found.forward, *rest])
    lines = [f"{found.name} for {client.title}:"]
    lines += [f"  {name + ':':<16}{value}" for name, value in rows.items() if value]
    return [*lines, *(f"  {hint}" for hint in configuration.hints)]


def _write(client: Client, place: Place, configuration: Configuration, secret: bool) -> None:
    """Merge the configuration into the client's file, if it is not in it already. Raises RigupError.

    Nobody else may read a file with a key, nor the backup, which may have one as well.
    """
    path = _path(place)
    try:
        before = path.read_text(encoding="utf-8") if path.exists() else None
        mode = stat.S_IMODE(path.stat().st_mode) if before is not None else 0o600
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise RigupError(f"{path} cannot be read: {reason}", "fix it or move it away") from error
    after = text_of(client, configuration) if before is None else _merged(client, place, path, before, configuration)
    if secret:
        mode &= 0o600
    if before == after and mode == stat.S_IMODE(path.stat().st_mode):
        print(f"{path} has it already.")
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if before not in (None, after):
            atomic.write(path.with_name(path.name + BACKUP), before or "", 0o600)
        atomic.write(path, after, mode)
    except OSError as error:
        raise RigupError(f"{path} cannot be written: {error.strerror}", "check its directory") from error
    print(f"Wrote {path}." if before is None else f"Changed {path}; what it was is in {path.name}{BACKUP}.")


def _merged(client: Client, place: Place, path: Path, before: str, configuration: Configuration) -> str:
    """Return the text of the file with the configuration in it. Raises InputError, after printing the configuration."""
    merge = yaml_merged if place.form == "yaml" else json_merged
    try:
        return merge(path, before, configuration)
    except InputError:
        print(text_of(client, configuration), end="")
        raise


def _path(place: Place) -> Path:
    """Return the path of the client's file: the real one, if it is a link to another directory."""
    home = os.environ.get(place.variable)
    path = (Path(home) if home else Path.home() / place.home) / place.name
    instead = path.with_name(place.instead) if place.instead else path
    return (instead if instead.exists() and not path.exists() else path).resolve()
