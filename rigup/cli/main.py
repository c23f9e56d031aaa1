"""The `rigup` command: all but deploying, which is pyinfra's business."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from rigup.catalog.loader import Catalog, default_catalog
from rigup.cli import accept, audit, models, recipes, report, status
from rigup.cli import key as keys
from rigup.cli import plan as planning
from rigup.config.inventory import Inventory, find_inventory, load_inventory
from rigup.config.settings import settings_table
from rigup.diagnosis.explain import explain
from rigup.distros.table import DISTROS
from rigup.errors import RigupError
from rigup.lock import lockfile as locks
from rigup.lock import resolve
from rigup.lock.lockfile import Lock

__all__ = ["main"]

EXIT_CODES = (
    "Exit codes: 0 done, 1 failed (wrong use included); 2 from `plan`: changes are pending, from `audit`: something is "
    "not as planned, from `report`: that run did not go well, from `status`: something does not serve, from `update "
    "--check`: the lock would move."
)


class Parser(argparse.ArgumentParser):
    """One that says in its help what its exit codes mean; most commands have these two."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"epilog": "Exit codes: 0 done, 1 failed.", **arguments})

    def error(self, message: str) -> NoReturn:
        """Wrong use exits with 1: here 2 says that changes are pending."""
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        options = parser().parse_args(arguments)
        return int(options.run(options))
    except RigupError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `rigup recipes | head`
        sys.stderr.close()
        return 1


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="rigup", description="From bare GPU machines to a served model.", epilog=EXIT_CODES)
    top.add_argument("--version", action="version", version=f"rigup {version('rigup')}")
    commands = top.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    plan = commands.add_parser(
        "plan",
        help="what a deploy would change, on which host, in which step",
        description="Looks at the hosts and changes nothing. Files are shown as diffs, secret ones never.",
        epilog="Exit codes: 0 nothing to do, 2 changes pending, 1 failed.",
    )
    planning.add_arguments(plan)
    plan.set_defaults(run=planning.command)

    looked = commands.add_parser(
        "audit",
        help="what the hosts are, against what their plan says",
        description="Looks at the hosts and changes nothing: every promise of the deploy is a check.",
        epilog="Exit codes: 0 all is as planned, 2 something is not, 1 something could not be looked at.",
    )
    audit.add_arguments(looked)
    looked.set_defaults(run=audit.command)

    accepted = commands.add_parser(
        "accept",
        help="take the new host key of a host that was installed anew or replaced",
        description="Shows the key that was known and the one that the host shows now, and asks.",
        epilog="Exit codes: 0 accepted, or known already; 1 not.",
    )
    accept.add_arguments(accepted)
    accepted.set_defaults(run=accept.command)

    told = commands.add_parser(
        "report",
        help="what the last deploy did, or an earlier one",
        description="Says what a run changed, what failed in it, and what took how long.",
        epilog="Exit codes: 0 that run went well, 2 it did not, 1 there is no such run.",
    )
    report.add_arguments(told)
    told.set_defaults(run=report.command)

    settings = commands.add_parser("settings", help="all settings with their defaults, as a Markdown table")
    settings.set_defaults(run=_settings)

    recipes.add_commands(commands)

    models.add_commands(commands)

    shown = commands.add_parser(
        "status",
        help="what serves on which host, since when, and what is being fetched",
        description="Looks at the hosts and changes nothing.",
        epilog="Exit codes: 0 all endpoints serve, 2 some do not, 1 a host could not be asked.",
    )
    status.add_arguments(shown)
    shown.set_defaults(run=status.command)

    diagnose = commands.add_parser(
        "diagnose",
        help="what an engine's log says of its failure",
        description="Looks for known failures in a log: `ssh HOST journalctl -u llm@main | rigup diagnose`.",
        epilog="Exit codes: 0 a known cause was found, 1 none was.",
    )
    diagnose.add_argument("log", nargs="?", type=Path, metavar="FILE", help="the log; without it standard input")
    diagnose.set_defaults(run=_diagnose)

    key = commands.add_parser(
        "key",
        help="the API key of an endpoint that is reachable from beyond its host",
        description="Reads the key from its host and prints it; it stands nowhere else.",
    )
    keys.add_arguments(key)
    key.set_defaults(run=keys.command)

    lock = commands.add_parser(
        "lock",
        help="resolve what the inventory names loosely, and write it beside the inventory",
        description="Resolves what the lock does not hold yet; what it holds stays. "
        "A deploy does the same, and knows the hosts' distributions.",
    )
    lock.set_defaults(run=_lock)

    update = commands.add_parser(
        "update",
        help="move the lock, and show what changes",
        description="Resolves entries of the lock anew. The next deploy brings the hosts there.",
        epilog="Exit codes: 0 done (with --check: nothing would move), 2 with --check: something would, 1 failed.",
    )
    update.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        help=f"{', '.join(locks.KINDS)}, or an entry's name: `docker`, `driver-595`, an image, a checkpoint, "
        "`agents-4gpu`; without any, everything",
    )
    update.add_argument("--check", action="store_true", help="show what would change, and exit with 2 where it would")
    update.set_defaults(run=_update)

    for command in (lock, update):
        command.add_argument(
            "--inventory", type=Path, metavar="FILE", help="the inventory file; by default the deploy's"
        )
        command.add_argument(
            "--distro",
            action="append",
            choices=sorted(DISTROS),
            help="resolve packages for this distribution too; by default for those that the lock holds already",
        )
    return top


def _settings(options: argparse.Namespace) -> int:
    print(settings_table(), end="")
    return 0


def _diagnose(options: argparse.Namespace) -> int:
    try:
        log = options.log.read_bytes() if options.log else sys.stdin.buffer.read()
    except OSError as error:
        raise RigupError(f"{options.log}: {error.strerror}") from error
    told = explain(log.decode(errors="replace").splitlines())
    print("\n".join(told or ["No known failure in this log."]))
    return 0 if told else 1


def _lock(options: argparse.Namespace) -> int:
    inventory, catalog, known = _read(options)
    wants, distros = _wants(options, inventory, known)
    filled = resolve.ensure(inventory.lock, wants, catalog)
    moved = _moved(known, filled)
    print("\n".join(moved) if moved else f"{inventory.lock} is complete: {len(filled.flat())} entries")
    if not distros:
        print("Packages are resolved by the first deploy, which knows the distributions; or name one with --distro.")
    return 0


def _update(options: argparse.Namespace) -> int:
    inventory, catalog, known = _read(options)
    wants, _ = _wants(options, inventory, known)
    filled = resolve.resolve(wants, catalog, known.without(options.what))
    moved = _moved(known, filled)
    print("\n".join(moved) if moved else "Nothing moved: the lock holds what there is today.")
    if options.check:
        return 2 if moved else 0
    locks.write(inventory.lock, filled)
    return 0


def _read(options: argparse.Namespace) -> tuple[Inventory, Catalog, Lock]:
    path = options.inventory or find_inventory(Path.cwd() / "inventory")
    inventory = load_inventory(path)
    return inventory, default_catalog(), locks.read(inventory.lock)


def _wants(options: argparse.Namespace, inventory: Inventory, known: Lock) -> tuple[list[resolve.Want], list[str]]:
    distros = sorted({*known.packages, *(options.distro or ())})
    settings = [host.settings for host in inventory.hosts.values()]
    return [resolve.Want(each, distro) for each in settings for distro in distros or [None]], distros


def _moved(before: Lock, after: Lock) -> list[str]:
    """One line for each entry that is new, gone or another."""
    old, new = before.flat(), after.flat()
    lines = []
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            lines.append(f"{name}: {old.get(name, '(new)')} -> {new.get(name, '(no longer wanted)')}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
