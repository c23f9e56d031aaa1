"""`rigup models`: which checkpoints lie on which host, how large they are and who uses them; removal on request."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import paramiko

from rigup.cli._confirm import agreed
from rigup.config.inventory import Host, find_inventory, load_inventory
from rigup.errors import RigupError
from rigup.facts.serving import incoming_path, shared_path, stamp_path
from rigup.facts.store import Stored, StoredModels
from rigup.plan.model import PLAN, fetch_unit
from rigup.ssh.batch import Answer, Ask
from rigup.ssh.client import Unreachable, connect, execute
from rigup.text import size

__all__ = ["add_commands", "chosen", "removal", "table"]


def add_commands(commands: Any) -> None:
    models = commands.add_parser(
        "models",
        help="which checkpoints lie on which host, their size, and who uses them",
        description="Looks at every host's model store. `rigup models rm` removes from it; nothing else ever does.",
        epilog="Exit codes: 0 done, 1 a host could not be asked, or refused.",
    )
    models.add_argument("--json", action="store_true", help="print what was found as JSON")
    actions = models.add_subparsers(metavar="ACTION", parser_class=type(models))
    remove = actions.add_parser(
        "rm",
        help="remove a checkpoint from a host",
        description="Removes a checkpoint from a host's store. Refuses one that an endpoint uses or may use, and one "
        "that is being fetched.",
    )
    remove.add_argument("host", metavar="HOST")
    remove.add_argument("what", metavar="REPO[@COMMIT]", help="the commit may be shortened to 7 digits or more")
    remove.add_argument("-y", "--yes", action="store_true", help="do not ask")
    told = "the inventory file; by default the deploy's"
    models.add_argument("--inventory", type=Path, metavar="FILE", help=told)
    # A default here would undo what stands before `rm`.
    remove.add_argument("--inventory", type=Path, metavar="FILE", default=argparse.SUPPRESS, help=told)
    models.set_defaults(run=_list)
    remove.set_defaults(run=_remove)


def _hosts(options: argparse.Namespace) -> dict[str, Host]:
    return dict(load_inventory(options.inventory or find_inventory(Path.cwd() / "inventory")).hosts)


def _ask(host: Host, command: str) -> Answer:
    """What a host answers, as root. Raises Unreachable."""
    with closing(connect(host)) as client:
        transport = client.get_transport()
        try:
            if transport is None:
                raise EOFError("the connection is gone")
            return execute(transport, Ask(command, host.sudo))
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise Unreachable(host, f"the connection broke: {error or type(error).__name__}") from error


def _stored(host: Host) -> list[Stored]:
    fact = StoredModels()
    answer = _ask(host, str(fact.command(host.settings.model_store)))
    return fact.process(answer.stdout.decode(errors="replace").splitlines())


def _list(options: argparse.Namespace) -> int:
    hosts = _hosts(options)

    def one(host: Host) -> list[Stored] | RigupError:
        try:
            return _stored(host)
        except RigupError as error:
            return error

    with ThreadPoolExecutor(min(32, len(hosts))) as pool:
        found = dict(zip(hosts, pool.map(one, hosts.values()), strict=True))
    listed = {name: stored for name, stored in found.items() if isinstance(stored, list)}
    if options.json:
        print(json.dumps({name: [each.to_json() for each in stored] for name, stored in listed.items()}, indent=2))
    else:
        print("\n".join(table(listed)))
    errors = [error for error in found.values() if isinstance(error, RigupError)]
    if errors:
        raise RigupError("\n".join(map(str, errors)))
    return 0


def table(stored: dict[str, list[Stored]]) -> list[str]:
    """One line for each checkpoint on each host."""
    rows = [("HOST", "CHECKPOINT", "COMMIT", "SIZE", "STATE", "USED BY")]
    for host, models in stored.items():
        rows += [
            (host, m.repo, m.revision[:12], size(m.bytes), m.state, ", ".join(m.used_by) or "nobody") for m in models
        ]
        rows += [] if models else [(host, "nothing", "", "", "", "")]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def chosen(stored: Iterable[Stored], what: str, host: str) -> list[Stored]:
    """The entries that `REPO[@COMMIT]` means. Raises RigupError for none, several commits, and what may be in use."""
    repo, _, commit = what.partition("@")
    there = list(stored)
    found = [each for each in there if each.repo == repo and (len(commit) >= 7 or not commit)]
    found = [each for each in found if each.revision.startswith(commit)]
    if not found:
        names = ", ".join(sorted({f"{each.repo}@{each.revision[:12]}" for each in there})) or "nothing"
        raise RigupError(f"{host} has no {what} in its store: there is {names}")
    if len({each.revision for each in found}) > 1:
        raise RigupError(f"{host} has {repo} at several commits: name one as {repo}@COMMIT")
    users = sorted({name for each in found for name in each.used_by})
    if users:
        raise RigupError(
            f"{what} on {host} is used by endpoint {', '.join(users)}: give it another recipe first, and deploy"
        )
    for each in found:
        if each.fetching:
            raise RigupError(
                f"{what} is being fetched on {host}: "
                f"`systemctl disable --now {fetch_unit(each.instance)}` there ends that"
            )
        if each.riddles:
            raise RigupError(
                f"endpoint {', '.join(each.riddles)} runs on {host}, and neither {PLAN} nor its unit says what it "
                "uses: deploy first, or stop it"
            )
    return found


def removal(store: str, stored: Stored) -> str:
    """The command that removes a checkpoint: first what promises it, then what asks for it, then its files."""
    place = f"{store}/{stored.repo}/{stored.revision}"
    promises = [stamp_path(place), shared_path(place)]
    trees = [place, incoming_path(place), f"/etc/rigup/models/{stored.instance}.json"]
    steps = [
        ["systemctl", "disable", "--quiet", "--now", "--", fetch_unit(stored.instance)],
        ["rm", "-f", "--", *promises],
        ["rm", "-rf", "--", *trees],
    ]
    stop, *rest = map(shlex.join, steps)
    return f"{stop} 2>/dev/null; {' && '.join(rest)}"


def _remove(options: argparse.Namespace) -> int:
    hosts = _hosts(options)
    if options.host not in hosts:
        raise RigupError(f"no host is named {options.host!r}: there are {', '.join(hosts)}")
    host = hosts[options.host]
    found = chosen(_stored(host), options.what, host.name)
    total = sum(each.bytes for each in found)
    named = f"{found[0].repo} at {found[0].revision} ({size(total)}) from {host.name}"
    if not options.yes and not agreed(f"Remove {named}?"):
        print("nothing was removed")
        return 1
    answer = _ask(host, removal(host.settings.model_store, found[0]))
    if answer.code:
        raise RigupError(f"could not remove {named}: {answer.stderr.decode(errors='replace').strip()}")
    print(f"removed {named}")
    return 0
