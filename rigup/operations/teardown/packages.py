"""Purge the packages that deploys have installed, and remove their users."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Sequence, Set

from pyinfra.api.command import QuoteString
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.facts.packages import Conffiles, parse_removals
from rigup.ledger import ACCOUNTS, LEFTOVERS, Ledger
from rigup.operations._apt_get import run_apt_get, simulate
from rigup.operations._host import Commands, check, read_now, run, work
from rigup.operations._units import wait_for_leftover
from rigup.operations.teardown.kept import Kept, save, some
from rigup.paths import APT_UNIT


@operation()
def packages_purged(ledger: Ledger, kept: Kept, timeout: float = 3600) -> Commands:
    """Purge the packages that deploys have installed, except those that packages of others need."""
    if not ledger.packages:
        host.noop("no deploy has installed packages")
        return

    def purge(host: Host) -> None:
        ours = set(ledger.packages)
        if kept.docker:
            # Others have containers here, so Docker must stay as it is.
            kept.packages |= _with_dependencies(host, ours, [*filter(_is_docker, ours)])
        kept.packages |= _needed_by_others(host, ours - kept.packages, timeout)
        leaving = ours - kept.packages
        _save_edited(host, ledger, leaving, kept)
        if present := sorted(_present(host, leaving)):
            run_apt_get(host, ["purge", *present], f"purging {len(present)} packages", timeout)
        for package in leaving & LEFTOVERS.keys():
            run(host, "rm -rf --", QuoteString(LEFTOVERS[package]))
        if kept.packages:
            kept.notes.append(f"packages that others need: {some(sorted(kept.packages))}")

    yield work(purge, "purge packages")


def _needed_by_others(host: Host, packages: Collection[str], timeout: float) -> set[str]:
    """Return those of `packages` that must stay because packages of others need them."""
    wait_for_leftover(host, APT_UNIT, "apt", timeout)
    leaving, staying = set(_present(host, packages)), set[str]()
    while leaving:
        removals = parse_removals(simulate(host, ["purge", *sorted(leaving)]).lines)
        others = [name for name in removals if name not in leaving]
        if not others:
            break
        needed = _with_dependencies(host, leaving, others)
        if not needed:
            raise OperationError(f"{host.name}: purging would remove {', '.join(others)} too; nothing was purged")
        staying |= needed
        leaving -= needed
    return staying


def _with_dependencies(host: Host, ours: Collection[str], names: Sequence[str]) -> set[str]:
    """Return those of `ours` that are among `names` or their dependencies."""
    command = "apt-cache depends --recurse --installed --no-suggests --no-conflicts --no-breaks --no-replaces"
    result = run(host, f"{command} --no-enhances --", *(QuoteString(name) for name in names))
    mentioned = {line.split()[-1].strip("<>").split(":")[0] for line in result.lines if line.strip()}
    return {*names, *mentioned} & set(ours)


def _present(host: Host, packages: Collection[str]) -> list[str]:
    """Return those of `packages` that dpkg knows, even if only their configuration is left."""
    form = "'${db:Status-Status} ${Package}\\n'"
    names = (QuoteString(name) for name in sorted(packages))
    lines = run(host, "dpkg-query -W -f", form, *names, "2>/dev/null").lines
    return [line.split()[1] for line in lines if line and not line.startswith("not-installed")]


def _save_edited(host: Host, ledger: Ledger, packages: Set[str], kept: Kept) -> None:
    """Save the configuration files of these packages that were edited: a purge removes them."""
    edited = read_now(host, Conffiles, sorted(packages))
    for path in sorted(edited - ledger.files.keys() - ledger.keys.keys()):
        save(host, path, kept)


def _is_docker(package: str) -> bool:
    return package.startswith(("docker-", "containerd"))


@operation()
def users_removed(ledger: Ledger, kept: Kept) -> Commands:
    """Remove the users and groups that deploys have created; their files in the store become root's."""
    if not ledger.users and not ledger.packages:
        host.noop("no deploy has created users")
        return

    def remove(host: Host) -> None:
        stores = [QuoteString(path) for path in sorted({posixpath.dirname(path) for path in ledger.checkpoints})]
        for user in ledger.users:
            name = QuoteString(user)
            if not run(host, "getent passwd", name).ok:
                continue
            if stores:
                run(host, "find", *stores, "-user", name, "-execdir chown -h root:root {} +")
            check(host, "userdel --", name, failing=f"could not remove the user {user} of {host.name}")
        for package, (kind, account) in ACCOUNTS.items():
            if package in ledger.packages and package not in kept.packages and not ledger.removed:
                _remove_account(host, kind, account, kept)

    yield work(remove, "remove users")


def _remove_account(host: Host, kind: str, account: str, kept: Kept) -> None:
    database = "passwd" if kind == "user" else "group"
    found = run(host, "getent", database, QuoteString(account))
    if not found.ok:
        return
    if kind == "group" and (members := found.lines[0].split(":")[-1]):
        kept.notes.append(f"the group {account}, which has members: {members}")
        return
    check(host, f"{kind}del --", QuoteString(account), failing=f"could not remove the {kind} {account} of {host.name}")
