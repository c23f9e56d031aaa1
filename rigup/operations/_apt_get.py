"""Run apt-get: one transaction at a time, waiting for locks, and removing nothing that was not named.

Each transaction runs as the unit `rigup-apt.service`, so that neither a broken connection nor a killed deploy stops
dpkg halfway.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from pyinfra.api.command import QuoteString
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host

from rigup.facts.packages import AptVersions, parse_removals
from rigup.operations._host import Result, read_now, run
from rigup.operations._ledger import note, record
from rigup.operations._units import run_as_unit
from rigup.operations._wait import Clock, say, wait_until
from rigup.paths import APT_UNIT

LOCK_S = 600
LOCKED = re.compile(r"Could not get lock|Unable to lock directory")
# apt-listbugs ends a transaction that nobody confirms (its manual page, APT_LISTBUGS_FRONTEND).
ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "NEEDRESTART_MODE": "l",
    "APT_LISTBUGS_FRONTEND": "none",
    "APT_LISTCHANGES_FRONTEND": "none",
}
APT_GET = (
    "/usr/bin/apt-get",
    "--quiet=2",
    "--yes",
    "--option=Dpkg::Options::=--force-confdef",
    "--option=Dpkg::Options::=--force-confold",
    "--option=Dpkg::Use-Pty=0",
    f"--option=DPkg::Lock::Timeout={LOCK_S}",
)
# An upgrade has the present version in square brackets after the name.
ADDITION = re.compile(r"^Inst (\S+) \((?!\[)")
# A rebuild does not remove these: one may be the running kernel.
KERNEL = re.compile(r"linux-(image|modules)-")
# What apt and mirrors print if the package lists are older than the archive, or older than the key of the source,
# because a source without a key was replaced.
OUTDATED = re.compile(
    r"404\s+Not Found|Unable to fetch some archives|File has unexpected size|Hash Sum mismatch|unauthenticated packages"
)


def parse_additions(lines: Iterable[str]) -> list[str]:
    """Return the packages that `apt-get --simulate` would newly install, without upgrades."""
    return sorted({match[1].split(":")[0] for line in lines if (match := ADDITION.match(line))})


def listed(packages: Mapping[str, str | None]) -> str:
    """Return packages and their versions as one line for a message."""
    return ", ".join(name if version is None else f"{name} {version}" for name, version in sorted(packages.items()))


def run_in_unit(host: Host, argv: Sequence[str], what: str, timeout: float) -> None:
    """Run a command of apt or dpkg in `rigup-apt.service`. Raises OperationError."""
    run_as_unit(host, APT_UNIT, argv, what=what, limit_s=timeout, env=ENVIRONMENT)


def run_apt_get(host: Host, arguments: Sequence[str], what: str, timeout: float) -> None:
    """Run a transaction; if the archive has changed since the lists were fetched, update them and run it again."""
    argv = [*APT_GET, *arguments]
    try:
        run_in_unit(host, argv, what, timeout)
    except OperationError as error:
        if not OUTDATED.search(str(error)):
            raise
        say(host, "apt's package lists are older than the archive: updating them")
        _update(host, timeout)
        run_in_unit(host, argv, what, timeout)


def simulate(host: Host, arguments: Sequence[str]) -> Result:
    """Return the result of `apt-get --simulate`. Raises OperationError if apt refuses."""
    argv = (*APT_GET, "--simulate", *arguments)
    result = run(host, *(QuoteString(argument) for argument in argv))
    if not result.ok:
        lines = [line for line in (*result.errors, *result.lines) if line.strip()]
        message = "\n".join(f"    {line}" for line in lines[-20:])
        raise OperationError(f"{host.name}: apt cannot do that:\n{message}")
    return result


def try_transaction(host: Host, arguments: Sequence[str], may_remove: Collection[str]) -> None:
    """Simulate a transaction and record in the ledger what it will add and remove.

    Raises OperationError if apt refuses, or would remove a package that is not in `may_remove`.
    """
    lines = simulate(host, arguments).lines
    removals = parse_removals(lines)
    if unexpected := [package for package in removals if package not in may_remove]:
        raise OperationError(
            f"{host.name}: `apt-get {' '.join(arguments)}` would remove {', '.join(unexpected)}; nothing was changed. "
            "Remove them yourself if they are not needed, and run again."
        )
    additions = [name for name in parse_additions(lines) if not KERNEL.match(name)]
    for kind, names in (("packages", additions), ("removed", removals)):
        if names:
            record(host, note(kind, names))


def unavailable(packages: Mapping[str, str | None], offered: Mapping[str, Sequence[str]]) -> list[str]:
    """Return which `packages` apt's lists do not offer, as `name` or `name=version`."""
    return [
        package if version is None else f"{package}={version}"
        for package, version in packages.items()
        if not offered.get(package) or (version is not None and version not in offered[package])
    ]


def update_for(
    host: Host, packages: Mapping[str, str | None], timeout: float, optional: Collection[str] = ()
) -> list[str]:
    """Update apt's lists if they do not offer all `packages`.

    Returns those of `optional` that they still do not offer. Raises OperationError for any other such package.
    """
    if not _unavailable_now(host, packages):
        return []
    cause = ""
    try:
        _update(host, timeout)
    except OperationError as error:
        cause = f" Updating the package lists failed as well:\n{error}"
    still = _unavailable_now(host, packages)
    if required := [name for name in still if name not in optional]:
        raise OperationError(
            f"{host.name}: no apt source offers {', '.join(required)}. Check `apt policy`, the sources in "
            f"/etc/apt/sources.list.d, and whether the mirror still has the versions of the lock.{cause}"
        )
    return still


def _unavailable_now(host: Host, packages: Mapping[str, str | None]) -> list[str]:
    return unavailable(packages, read_now(host, AptVersions, sorted(packages)))


def _update(host: Host, timeout: float) -> None:
    """Update apt's lists; apt waits for dpkg's lock on its own, but not for the lock of the lists."""
    clock, locked = Clock(LOCK_S), list[OperationError]()

    def poll() -> bool | None:
        try:
            run_in_unit(host, [*APT_GET, "update"], "updating apt's package lists", timeout)
        except OperationError as error:
            if not LOCKED.search(str(error)):
                raise
            if not locked:
                say(host, "apt's package lists are locked by another program, as after a boot: waiting")
            locked[:] = [error]
            return None
        return True

    if not wait_until(host, clock, poll, lambda: f"apt's package lists are still locked: {clock}"):
        raise locked[0]
