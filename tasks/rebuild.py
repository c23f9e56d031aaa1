"""The rebuild: reset a host to what it was before the first deploy, except for its model store."""

from __future__ import annotations

import sys
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pyinfra.api.deploy import deploy
from pyinfra.context import host, state

from rigup.config.settings import Settings
from rigup.facts.files import FileText
from rigup.facts.ledger import HostLedger, Remains, RemainsValue, remains_of
from rigup.ledger import Ledger
from rigup.operations import apt, drain, run_lock
from rigup.operations.teardown import docker, files, finish, packages, units
from rigup.operations.teardown.kept import Kept
from rigup.paths import PLAN
from rigup.plan.model import kept_plan
from rigup.text import printable
from tasks.context import Refused

REMOVE_STORE = "remove_store"


@deploy("rebuild")
def rebuild() -> None:
    """Remove endpoints, what they run on, files, and the ledger last, so that it can be interrupted anywhere."""
    data: dict[str, Any] = host.data.dict()  # type: ignore[no-untyped-call]
    with_store = _yes_or_no(data.pop(REMOVE_STORE, "no"))
    settings = Settings.from_data(data, host.name)
    _check_max_unavailable(settings.max_unavailable)
    ledger: Ledger = host.get_fact(HostLedger)
    remains: RemainsValue = host.get_fact(Remains, **remains_of(ledger))
    if not ledger.files and not ledger.unreadable and not remains.words():
        print(printable(f"\n{host.name} is already bare: rigup finds nothing of its own"), file=sys.stderr)
        return
    print(printable(_overview(host.name, ledger, remains, with_store)), file=sys.stderr)
    plan = kept_plan(host.get_fact(FileText, path=PLAN))
    kept = Kept()

    finish.confirmed(name="Confirm the rebuild", ledger=ledger)
    run_lock.held(name="Lock the host for this run", wait=settings.lock == "wait")
    drain.drained(
        name="Wait for running requests",
        endpoints={entry["name"]: _metrics(entry) for entry in plan.get("endpoints", [])},
        limit=settings.drain_timeout,
    )
    mounts = [unit for unit in ledger.units if unit.endswith(".mount")]
    units.stopped(name="Stop endpoints and downloads", ledger=ledger, mounts=mounts)
    apt.repair(name="Repair interrupted package installations")
    docker.docker_emptied(name="Remove the images", ledger=ledger, kept=kept)
    files.keys_removed(name="Remove our keys from files of others", ledger=ledger, kept=kept)
    packages.packages_purged(name="Purge the packages", ledger=ledger, kept=kept)
    packages.users_removed(name="Remove the users", ledger=ledger, kept=kept)
    if with_store:
        files.store_removed(name="Remove the checkpoints", ledger=ledger, mounts=mounts)
    # Not earlier: the steps above remove files on it, or give them to root.
    units.unmounted(name="Unmount the store's disk", mounts=mounts)
    files.files_restored(name="Remove the files", ledger=ledger, kept=kept)
    units.rebooted(
        name="Reboot if our driver or kernel arguments are in effect",
        ledger=ledger,
        kernel_args=plan.get("settings", {}).get("kernel_args", []),
        allowed=settings.reboot == "when-needed",
        timeout=settings.reboot_timeout,
        kept=kept,
    )
    finish.directories_removed(name="Remove our directories", ledger=ledger)
    finish.verified_bare(name="Verify that nothing is left", ledger=ledger, kept=kept)


def _yes_or_no(value: object) -> bool:
    """Read yes or no in any form that settings accept. Raises Refused for anything else."""
    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError as error:
        raise Refused(
            f"--data {REMOVE_STORE}={value} is neither yes nor no; nothing was changed. "
            f"Write {REMOVE_STORE}=yes to remove the checkpoints too, or leave it out to keep them"
        ) from error


def _check_max_unavailable(max_unavailable: int) -> None:
    """Raise Refused if the run would take more hosts out of service than may be unavailable at a time."""
    hosts = sorted(each.name for each in state.inventory.get_active_hosts())
    if len(hosts) > max_unavailable:
        raise Refused(
            f"{', '.join(hosts)} would not serve until the next deploy, and max_unavailable is {max_unavailable}: "
            f"rebuild and deploy {hosts[0]} first, or all with `--data max_unavailable={len(hosts)}`; "
            "nothing was changed"
        )


def _metrics(endpoint: dict[str, Any]) -> str:
    address = endpoint["address"]
    return f"http://{f'[{address}]' if ':' in address else address}:{endpoint['port']}/metrics"


def _overview(name: str, ledger: Ledger, remains: RemainsValue, with_store: bool) -> str:
    """Return a list of everything that will be removed, for the person who decides."""
    store = "with the checkpoints" if with_store else f"the checkpoints stay (--data {REMOVE_STORE}=yes removes them)"
    lines = [f"\n{name} will be reset to bare; {store}:"]
    things = {
        "stop": ledger.units,
        "remove the images": ledger.images,
        "remove our keys from": [f"{path} ({', '.join(values)})" for path, values in ledger.keys.items()],
        "purge the packages": remains.packages,
        "remove the files": [path for path in remains.paths if path not in ledger.keys],
        "remove the users": remains.users,
        "remove the checkpoints": ledger.checkpoints if with_store else (),
        "damaged lines of the ledger": ledger.unreadable,
    }
    for what, names in things.items():
        if names:
            lines.append(f"  {what}: {', '.join(names)}")
    return "\n".join(lines) + "\n"
