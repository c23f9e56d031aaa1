"""Packages at exact versions, installed in transactions that remove nothing that was not named."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext

from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.facts.packages import BrokenPackages, InstalledVersions
from rigup.operations._apt_get import APT_GET, listed, run_apt_get, run_in_unit, try_transaction, update_for
from rigup.operations._host import Commands, read_now, work
from rigup.operations._units import wait_for_leftover
from rigup.operations._wait import say
from rigup.operations.systemd import serving_again
from rigup.paths import APT_UNIT


def missing(packages: Mapping[str, str | None], installed: Mapping[str, str]) -> dict[str, str | None]:
    """Return which `packages` are not installed, or not at the required version."""
    return {
        package: version
        for package, version in packages.items()
        if package not in installed or (version is not None and installed[package] != version)
    }


@operation()
def install(
    packages: Mapping[str, str | None],
    instead_of: Collection[str] = (),
    or_else: Mapping[str, Collection[str]] | None = None,
    recommends: bool = False,
    timeout: float = 3600,
    max_unavailable: int = 0,
    ready_timeout: float = 2700,
) -> Commands:
    """Install `packages` in one transaction; one that would remove a package that was not named is refused.

    + packages: `{name: version}`, upgraded or downgraded to that version; None for any installed version, or apt's
    choice
    + instead_of: packages to remove in the same transaction, if they are installed
    + or_else: for packages that the sources may no longer offer, those to install instead, at apt's choice
    + recommends: whether to install recommended packages too
    + timeout: seconds until it must be done
    + max_unavailable: for packages whose upgrade interrupts serving, on how many hosts of a run at a time; else 0
    + ready_timeout: seconds until everything that served must serve again

    apt's lists are updated if they do not offer the packages, or are older than the archive.
    """
    installed: dict[str, str] = host.get_fact(InstalledVersions, names=sorted({*packages, *instead_of}))
    if not missing(packages, installed) and not installed.keys() & {*instead_of}:
        host.noop(f"installed: {', '.join(sorted(packages))}")
        return

    def transact(host: Host) -> None:
        wait_for_leftover(host, APT_UNIT, "apt", timeout)
        present = read_now(host, InstalledVersions, sorted({*packages, *instead_of}))
        todo, leaving = missing(packages, present), sorted(present.keys() & {*instead_of})
        if not todo and not leaving:
            return
        required = dict(packages)
        for name in update_for(host, todo, timeout, (or_else or {}).keys()):
            substitutes = (or_else or {})[name]
            say(host, f"no apt source offers {name} any more: installing {', '.join(substitutes)} instead")
            del required[name]
            required |= dict.fromkeys(substitutes)
        arguments = ["install", f"--option=APT::Install-Recommends={str(recommends).lower()}"]
        # A named version also replaces a newer one that was installed by hand.
        arguments += ["--allow-downgrades"] * any(required.values())
        # All are named, not only the missing ones: apt must not trade one for another. Except where any version will
        # do: apt upgrades what is named, even to an update that Ubuntu is still phasing in. Headers must be upgraded
        # with the kernel that is installed instead.
        named = {name: version for name, version in required.items() if version or name in todo or required != packages}
        arguments += [name if version is None else f"{name}={version}" for name, version in sorted(named.items())]
        arguments += [f"{name}-" for name in leaving]
        try_transaction(host, arguments, leaving)
        what = f"installing {listed(missing(required, present) or required)}"
        what += f" and removing {', '.join(leaving)}" if leaving else ""
        with serving_again(host, max_unavailable, ready_timeout) if max_unavailable else nullcontext():
            run_apt_get(host, arguments, what, timeout)
        if left := missing(required, read_now(host, InstalledVersions, sorted(required))):
            raise OperationError(
                f"{host.name}: apt succeeded, but dpkg does not have {listed(left)}. Check `apt policy` for a hold or "
                "a preference."
            )

    yield work(transact, "apt install")


@operation()
def repair(timeout: float = 3600) -> Commands:
    """Finish what an interrupted dpkg left.

    A package that cannot be configured yet (a driver module without kernel headers) is reported and left to the steps
    that install what it lacks.
    """
    if not host.get_fact(BrokenPackages):
        host.noop("all packages are fully installed")
        return

    def finish(host: Host) -> None:
        wait_for_leftover(host, APT_UNIT, "apt", timeout)
        argv = ["/usr/bin/dpkg", "--configure", "--pending", "--force-confdef", "--force-confold"]
        for attempt in (argv, [*APT_GET, "--fix-broken", "install"]):
            if not _broken(host):
                return
            try:
                run_in_unit(host, attempt, "repairing dpkg", timeout)
            except OperationError as error:
                say(host, str(error).splitlines()[0])
        if left := _broken(host):
            say(host, f"not fully installed yet, left to later steps: {', '.join(left)}")

    yield work(finish, "dpkg --configure")


def _broken(host: Host) -> list[str]:
    trouble = read_now(host, BrokenPackages)
    return sorted([*trouble.packages, *trouble.journal])
