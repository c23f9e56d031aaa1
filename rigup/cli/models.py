"""`rigup models`: each host's checkpoints, their size and what uses them; removal on request."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Mapping

from pyinfra.api.exceptions import FactProcessError

from rigup.cli._confirm import agreed
from rigup.cli._hosts import add_host, add_inventory, find_host, on_each, read_inventory
from rigup.cli._output import print_json
from rigup.cli._parser import Commands, Parser, add_json
from rigup.cli._table import Table, show
from rigup.config.inventory import Host
from rigup.errors import RigupError
from rigup.facts.serving import incoming_path, shared_path, stamp_path
from rigup.facts.store import Stored, StoredModels
from rigup.paths import PLAN, fetch_request, fetch_unit
from rigup.ssh import client
from rigup.text import size

JSON = {
    "hosts": "by name: error (null if it was read), checkpoints (repo, revision, bytes, state: verified, unverified or "
    "arriving; verified_at, used_by, fetching, unclear)"
}


def register(commands: Commands) -> None:
    """Add `rigup models` and `rigup models rm`."""
    parser = commands.add_parser(
        "models",
        help="list each host's checkpoints, their size and what uses them",
        description="Lists the model store of every host. Only `rigup models rm` ever removes a checkpoint.",
        epilog="Exit codes: 0 success, 1 a host is unreachable, or the removal was refused.",
    )
    add_json(parser, JSON)
    add_inventory(parser)
    parser.set_defaults(run=_list)
    actions = parser.add_subparsers(metavar="ACTION", parser_class=Parser)
    remove = actions.add_parser(
        "rm",
        help="remove a checkpoint from a host",
        description="Removes a checkpoint from a host's store. Refuses if an endpoint uses it or may use it, or while "
        "it is being downloaded.",
    )
    add_host(remove)
    remove.add_argument("what", metavar="REPO[@COMMIT]", help="the commit may be shortened to 7 or more digits")
    remove.add_argument("-y", "--yes", action="store_true", help="do not ask")
    # With a default it would override an --inventory before `rm`.
    add_inventory(remove, default=argparse.SUPPRESS)
    remove.set_defaults(run=_remove)


def _stored(host: Host) -> list[Stored]:
    fact = StoredModels()
    result = client.run(host, str(fact.command(host.settings.model_store)))
    try:
        return fact.process(result.stdout.decode(errors="replace").splitlines())
    except FactProcessError as error:
        raise RigupError(f"{host.name}: {error}", "check what is in its model store") from error


def _list(options: argparse.Namespace) -> int:
    """List the checkpoints. Raises RigupError, after the list, for hosts that are unreachable."""
    hosts = read_inventory(options).hosts

    def one(host: Host) -> list[Stored] | RigupError:
        try:
            return _stored(host)
        except RigupError as error:
            return error

    found = on_each(hosts, one)
    listed = {name: stored for name, stored in found.items() if isinstance(stored, list)}
    if options.json:
        print_json({"hosts": {name: _data(stored) for name, stored in found.items()}})
    else:
        show(table(listed))
    errors = [error for error in found.values() if isinstance(error, RigupError)]
    if errors:
        raise RigupError("\n".join(map(str, errors)))
    return 0


def _data(found: list[Stored] | RigupError) -> dict[str, object]:
    if isinstance(found, RigupError):
        return {"error": str(found), "checkpoints": []}
    return {"error": None, "checkpoints": [each.to_json() for each in found]}


def table(stored: Mapping[str, list[Stored]]) -> Table:
    """Return one row for each checkpoint on each host."""
    made = Table("host", "checkpoint", "commit", "size", "state", "used by")
    for host, models in stored.items():
        for m in models:
            made.add_row(host, m.repo, m.revision[:12], size(m.bytes), m.state, ", ".join(m.used_by) or "nobody")
        if not models:
            made.add_row(host, "nothing")
    return made


def chosen(stored: Iterable[Stored], what: str, host: str) -> list[Stored]:
    """Return the entries that `REPO[@COMMIT]` names.

    Raises RigupError if there is none, if there are several commits, and for what may be in use.
    """
    repo, _, commit = what.partition("@")
    present = list(stored)
    found = [each for each in present if each.repo == repo and (len(commit) >= 7 or not commit)]
    found = [each for each in found if each.revision.startswith(commit)]
    if not found:
        names = ", ".join(sorted({f"{each.repo}@{each.revision[:12]}" for each in present})) or "nothing"
        raise RigupError(f"{host} has no {what} in its model store", f"it has {names}")
    if len({each.revision for each in found}) > 1:
        raise RigupError(f"{host} has {repo} at several commits", f"name one as {repo}@COMMIT")
    users = sorted({name for each in found for name in each.used_by})
    if users:
        raise RigupError(
            f"{what} on {host} is used by endpoint {', '.join(users)}", "give the endpoint another recipe and deploy"
        )
    for each in found:
        if each.fetching:
            raise RigupError(
                f"{what} is being downloaded on {host}",
                f"to stop the download, run `systemctl disable --now {fetch_unit(each.instance)}` on the host",
            )
        if each.unclear:
            raise RigupError(
                f"endpoint {', '.join(each.unclear)} runs on {host}, and neither {PLAN} nor its unit says what it uses",
                "deploy first, or stop it",
            )
    return found


def removal(store: str, stored: Stored) -> str:
    """Return the command that removes a checkpoint: first its stamps, then its download request, then its files."""
    place = f"{store}/{stored.repo}/{stored.revision}"
    stamps = [stamp_path(place), shared_path(place)]
    trees = [place, incoming_path(place), fetch_request(stored.instance)]
    steps = [
        ["systemctl", "disable", "--quiet", "--now", "--", fetch_unit(stored.instance)],
        ["rm", "-f", "--", *stamps],
        ["rm", "-rf", "--", *trees],
    ]
    stop, *rest = map(shlex.join, steps)
    return f"{stop} 2>/dev/null; {' && '.join(rest)}"


def _remove(options: argparse.Namespace) -> int:
    """Remove a checkpoint. Raises RigupError if it does not exist, may be in use, or cannot be removed."""
    host = find_host(read_inventory(options), options.host)
    found = chosen(_stored(host), options.what, host.name)
    total = sum(each.bytes for each in found)
    named = f"{found[0].repo} at {found[0].revision} ({size(total)}) from {host.name}"
    if not options.yes and not agreed(f"Remove {named}?"):
        print("Nothing was removed.")
        return 1
    result = client.run(host, removal(host.settings.model_store, found[0]))
    if result.code:
        raise RigupError(f"could not remove {named}: {result.stderr.decode(errors='replace').strip()}")
    print(f"Removed {named}.")
    return 0
