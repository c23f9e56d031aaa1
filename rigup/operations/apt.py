"""apt transactions that end as planned: one at a time, at exact versions, and nothing removed that nobody named.

Each runs as the unit `rigup-apt.service`, so that neither a broken connection nor a killed deploy leaves dpkg half way.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import nullcontext

from pyinfra.api.command import FunctionCommand, QuoteString, StringCommand
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.operations import apt as pyinfra_apt

from rigup.facts.packages import (
    AptVersions,
    BrokenPackages,
    InstalledVersions,
    parse_apt_versions,
    parse_broken_packages,
    parse_installed_versions,
)
from rigup.operations._host import Answer, Clock, check, pause, run, say, work
from rigup.operations._ledger import note, note_file
from rigup.operations._units import run_as_unit, wait_for_leftover
from rigup.operations.systemd import serving_again

__all__ = ["absent", "install", "keyring", "parse_additions", "parse_removals", "repair"]

Commands = Generator[FunctionCommand, None, None]

UNIT = "rigup-apt.service"
LOCK_S = 600
LOCK_PAUSE_S = 5.0
LOCKED = re.compile(r"Could not get lock|Unable to lock directory")
ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "l", "LC_ALL": "C.UTF-8"}
APT_GET = (
    "/usr/bin/apt-get",
    "--quiet=2",
    "--yes",
    "--option=Dpkg::Options::=--force-confdef",
    "--option=Dpkg::Options::=--force-confold",
    "--option=Dpkg::Use-Pty=0",
    f"--option=DPkg::Lock::Timeout={LOCK_S}",
)
REMOVAL = re.compile(r"^(?:Remv|Purg) (\S+)")
# An upgrade has the present version in square brackets after the name.
ADDITION = re.compile(r"^Inst (\S+) \((?!\[)")
# Not taken back by a rebuild: it may be the kernel that runs.
KERNEL = re.compile(r"linux-(image|modules)-")
# apt's and the mirrors' ways of saying that the lists are older than the archive; or than the source's key, where a
# source of others had none and made way.
OUTDATED = re.compile(
    r"404\s+Not Found|Unable to fetch some archives|File has unexpected size|Hash Sum mismatch|unauthenticated packages"
)


def parse_removals(lines: Collection[str]) -> list[str]:
    """The packages that `apt-get --simulate` says it would remove."""
    return sorted({match[1].split(":")[0] for line in lines if (match := REMOVAL.match(line))})


def parse_additions(lines: Iterable[str]) -> list[str]:
    """The packages that `apt-get --simulate` says it would install anew; upgrades are none."""
    return sorted({match[1].split(":")[0] for line in lines if (match := ADDITION.match(line))})


def missing(wanted: Mapping[str, str | None], installed: Mapping[str, str]) -> dict[str, str | None]:
    """Those of `wanted` that are not installed, or in another version than the one asked for."""
    return {
        package: version
        for package, version in wanted.items()
        if package not in installed or (version is not None and installed[package] != version)
    }


def unavailable(wanted: Mapping[str, str | None], offered: Mapping[str, Sequence[str]]) -> list[str]:
    """What of `wanted` apt's lists do not offer, as people write it: `name` or `name=version`."""
    return [
        package if version is None else f"{package}={version}"
        for package, version in wanted.items()
        if not offered.get(package) or (version is not None and version not in offered[package])
    ]


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
    """Have `packages` installed, in one transaction; one that would remove what nobody named is refused.

    + packages: `{name: version}`, up or down to that version; None for whatever is there or is apt's choice
    + instead_of: packages that these replace: where they are installed, they go in the same transaction
    + or_else: for packages that sources may have dropped, those that come, at apt's choice, where they have
    + recommends: whether recommended packages come too
    + timeout: seconds until it must be done
    + max_unavailable: for packages whose upgrade interrupts serving, on how many hosts of a run that may be; 0 for
    others
    + ready_timeout: seconds until what served must serve again

    apt's lists are updated where they do not offer what is asked for, or where the archive has moved on.
    """
    installed: dict[str, str] = host.get_fact(InstalledVersions, names=sorted({*packages, *instead_of}))
    if not missing(packages, installed) and not installed.keys() & {*instead_of}:
        host.noop(f"installed: {', '.join(sorted(packages))}")
        return

    def transact(host: Host) -> None:
        wait_for_leftover(host, UNIT, "apt", timeout)
        there = _installed(host, {*packages, *instead_of})
        todo, going = missing(packages, there), sorted(there.keys() & {*instead_of})
        if not todo and not going:
            return
        wanted = dict(packages)
        for name in _update_for(host, todo, timeout, (or_else or {}).keys()):
            substitutes = (or_else or {})[name]
            say(host, f"no apt source offers {name} any more: {', '.join(substitutes)} comes in its place")
            del wanted[name]
            wanted |= dict.fromkeys(substitutes)
        arguments = ["install", f"--option=APT::Install-Recommends={str(recommends).lower()}"]
        # A named version is wanted also where a newer one came by hand.
        arguments += ["--allow-downgrades"] * any(wanted.values())
        # All of them are named, not only the missing ones: apt may not trade one for another.
        arguments += [name if version is None else f"{name}={version}" for name, version in sorted(wanted.items())]
        arguments += [f"{name}-" for name in going]
        _refuse_removals(host, arguments, going)
        what = f"apt installs {_listed(missing(wanted, there) or wanted)}"
        what += f" and removes {', '.join(going)}" if going else ""
        with serving_again(host, max_unavailable, ready_timeout) if max_unavailable else nullcontext():
            _apt_get(host, arguments, what, timeout)
        if left := missing(wanted, _installed(host, wanted)):
            raise OperationError(
                f"{host.name}: apt says it is done, but dpkg does not have {_listed(left)}. See `apt policy`: "
                "a hold or a preference may stand in the way."
            )

    yield work(transact, "apt install")


@operation()
def absent(packages: Collection[str], may_remove: Collection[str] = (), timeout: float = 1200) -> Commands:
    """Have none of `packages` installed; their configuration stays.

    + may_remove: further packages that may go with them; a transaction that would remove others is refused
    """
    present: dict[str, str] = host.get_fact(InstalledVersions, names=sorted(packages))
    if not present:
        host.noop(f"not installed: {', '.join(sorted(packages))}")
        return

    def transact(host: Host) -> None:
        wait_for_leftover(host, UNIT, "apt", timeout)
        there = sorted(_installed(host, packages))
        if not there:
            return
        arguments = ["remove", *there]
        _refuse_removals(host, arguments, {*packages, *may_remove})
        _apt_get(host, arguments, f"apt removes {', '.join(there)}", timeout)

    yield work(transact, "apt remove")


@operation()
def repair(timeout: float = 3600) -> Commands:
    """Finish what an interrupted dpkg has begun; nothing to do on a host where all packages are whole.

    A package that cannot be configured yet (a driver module without kernel headers) is named and left to the steps that
    bring what it lacks.
    """
    if not host.get_fact(BrokenPackages):
        host.noop("all packages are whole")
        return

    def mend(host: Host) -> None:
        wait_for_leftover(host, UNIT, "apt", timeout)
        argv = ["/usr/bin/dpkg", "--configure", "--pending", "--force-confdef", "--force-confold"]
        for attempt in (argv, [*APT_GET, "--fix-broken", "install"]):
            if not _broken(host):
                return
            try:
                run_as_unit(host, UNIT, attempt, what="mending dpkg", limit_s=timeout, env=ENVIRONMENT)
            except OperationError as error:
                say(host, str(error).splitlines()[0])
        if left := _broken(host):
            say(host, f"still not whole, for later steps to finish: {', '.join(left)}")

    yield work(mend, "dpkg --configure")


def purge(host: Host, packages: Collection[str], timeout: float) -> None:
    """Purge those of `packages` that are there."""
    if going := sorted(_present(host, packages)):
        _apt_get(host, ["purge", *going], f"apt purges {len(going)} packages", timeout)


def needed_by_others(host: Host, packages: Collection[str], timeout: float) -> set[str]:
    """Those of `packages` that must stay because packages of others need them."""
    wait_for_leftover(host, UNIT, "apt", timeout)
    going, staying = set(_present(host, packages)), set[str]()
    while going:
        others = [name for name in parse_removals(simulate(host, ["purge", *sorted(going)]).lines) if name not in going]
        if not others:
            break
        needed = with_what_they_need(host, going, others)
        if not needed:
            raise OperationError(f"{host.name}: purging would remove {', '.join(others)} too; nothing was purged")
        staying |= needed
        going -= needed
    return staying


def with_what_they_need(host: Host, ours: Collection[str], names: Sequence[str]) -> set[str]:
    """Those of `ours` among `names` and all that they depend on."""
    command = "apt-cache depends --recurse --installed --no-suggests --no-conflicts --no-breaks --no-replaces"
    answer = run(host, f"{command} --no-enhances --", *(QuoteString(name) for name in names))
    mentioned = {line.split()[-1].strip("<>").split(":")[0] for line in answer.lines if line.strip()}
    return {*names, *mentioned} & set(ours)


def _present(host: Host, packages: Collection[str]) -> list[str]:
    """Those of `packages` of which dpkg has anything, be it configuration."""
    form = "'${db:Status-Status} ${Package}\\n'"
    names = (QuoteString(name) for name in sorted(packages))
    lines = run(host, "dpkg-query -W -f", form, *names, "2>/dev/null").lines
    return [line.split()[1] for line in lines if line and not line.startswith("not-installed")]


@operation()
def keyring(package: str, src: str, brings: str) -> Generator[StringCommand, None, None]:
    """Have the package in the file `src` on the host: pyinfra's `apt.deb`, and the ledger's lines where it is new.

    + brings: a file of the package that is written anew later, and goes with it
    """
    commands = list(pyinfra_apt.deb._inner(src=src))
    if commands and not host.get_fact(InstalledVersions, names=[package]):
        yield StringCommand(note("packages", [package]), "&&", note_file(brings, ""))
    yield from commands


def _installed(host: Host, packages: Collection[str]) -> dict[str, str]:
    return parse_installed_versions(list(run(host, InstalledVersions().command(sorted(packages))).lines))


def _broken(host: Host) -> list[str]:
    trouble = parse_broken_packages(list(run(host, BrokenPackages().command()).lines))
    return sorted([*trouble.packages, *trouble.journal])


def _update_for(
    host: Host, wanted: Mapping[str, str | None], timeout: float, may_lack: Collection[str] = ()
) -> list[str]:
    """Update apt's lists where they lack something of `wanted`; raises where it is not there then either.

    Returns what is lacking of `may_lack`.
    """
    if not _lacking(host, wanted):
        return []
    complaint = ""
    try:
        _update(host, timeout)
    except OperationError as error:
        complaint = f" The update of its lists failed as well:\n{error}"
    still = _lacking(host, wanted)
    if lacking := [name for name in still if name not in may_lack]:
        raise OperationError(
            f"{host.name}: no apt source offers {', '.join(lacking)}. See `apt policy`, the sources in "
            f"/etc/apt/sources.list.d, and whether the versions in the lock are still on the mirror.{complaint}"
        )
    return still


def _update(host: Host, timeout: float) -> None:
    """Fetch apt's lists, once whoever else does that has finished: apt waits for dpkg's lock, but not for this one."""
    clock = Clock(LOCK_S)
    while True:
        try:
            run_as_unit(
                host, UNIT, [*APT_GET, "update"], what="apt updates its lists", limit_s=timeout, env=ENVIRONMENT
            )
            return
        except OperationError as error:
            if not LOCKED.search(str(error)) or clock.is_up:
                raise
            say(host, f"apt's lists are locked by another program, as after a boot: waiting, {clock}")
            pause(LOCK_PAUSE_S)


def _lacking(host: Host, wanted: Mapping[str, str | None]) -> list[str]:
    offered = parse_apt_versions(list(run(host, AptVersions().command(sorted(wanted))).lines))
    return unavailable(wanted, offered)


def _refuse_removals(host: Host, arguments: Sequence[str], may_remove: Collection[str]) -> None:
    """Try a transaction out, write down what it adds; raises where apt cannot, or would remove what nobody named."""
    answer = simulate(host, arguments)
    if unexpected := [package for package in parse_removals(answer.lines) if package not in may_remove]:
        raise OperationError(
            f"{host.name}: `apt-get {' '.join(arguments)}` would remove {', '.join(unexpected)}; nothing was done. "
            "Remove them by hand if they are not needed, and run again."
        )
    additions = [name for name in parse_additions(answer.lines) if not KERNEL.match(name)]
    for kind, names in (("packages", additions), ("removed", parse_removals(answer.lines))):
        if names:
            check(host, note(kind, names), failing=f"could not write the ledger of {host.name}")


def simulate(host: Host, arguments: Sequence[str]) -> Answer:
    """What `apt-get --simulate` says. Raises OperationError where apt cannot do it."""
    argv = (*APT_GET, "--simulate", *arguments)
    answer = run(host, "LC_ALL=C.UTF-8", *(QuoteString(argument) for argument in argv))
    if not answer.ok:
        raise OperationError(f"{host.name}: apt cannot do that:\n{_apt_says(answer)}")
    return answer


def _apt_says(answer: Answer) -> str:
    said = [line for line in (*answer.errors, *answer.lines) if line.strip()]
    return "\n".join(f"    {line}" for line in said[-20:])


def _apt_get(host: Host, arguments: Sequence[str], what: str, timeout: float) -> None:
    """Run a transaction; where the archive has moved on since the lists were fetched, update them and try once more."""
    argv = [*APT_GET, *arguments]
    try:
        run_as_unit(host, UNIT, argv, what=what, limit_s=timeout, env=ENVIRONMENT)
    except OperationError as error:
        if not OUTDATED.search(str(error)):
            raise
        say(host, "apt's lists are not those of the archive as it is now: they are fetched again")
        _update(host, timeout)
        run_as_unit(host, UNIT, argv, what=what, limit_s=timeout, env=ENVIRONMENT)


def _listed(packages: Mapping[str, str | None]) -> str:
    return ", ".join(name if version is None else f"{name} {version}" for name, version in sorted(packages.items()))
