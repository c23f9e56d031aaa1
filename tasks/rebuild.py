"""The way back: a host that was deployed becomes what it was before, and its model store stays."""

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
from rigup.operations import apt, drain, teardown
from rigup.plan.model import PLAN, kept_plan
from tasks.context import Refused

__all__ = ["rebuild"]

REMOVE_STORE = "remove_store"


@deploy("rebuild")
def rebuild() -> None:
    """In an order that can be cut short anywhere: what serves, what it runs on, the files, and the ledger last."""
    data: dict[str, Any] = host.data.dict()  # type: ignore[no-untyped-call]
    with_store = _yes_or_no(data.pop(REMOVE_STORE, "no"))
    settings = Settings.from_data(data, host.name)
    _one_by_one(settings.max_unavailable)
    book: Ledger = host.get_fact(HostLedger)
    remains: RemainsValue = host.get_fact(Remains, **remains_of(book))
    if not book.files and not remains.words():
        print(f"\n{host.name}: bare already, as far as rigup can tell", file=sys.stderr)
        return
    print(_told(host.name, book, remains, with_store), file=sys.stderr)
    plan = kept_plan(host.get_fact(FileText, path=PLAN))
    kept = teardown.Kept()

    teardown.confirmed(name="Ask for the host's name")
    drain.drained(
        name="Wait for running requests",
        endpoints={entry["name"]: _metrics(entry) for entry in plan.get("endpoints", [])},
        limit=settings.drain_timeout,
    )
    mounts = [unit for unit in book.units if unit.endswith(".mount")]
    teardown.stopped(name="Stop what serves and what downloads", book=book, mounts=mounts)
    apt.repair(name="Finish what an interrupted dpkg left behind")
    teardown.docker_emptied(name="Remove the images", book=book, kept=kept)
    teardown.keys_removed(name="Take our keys out of files of others", book=book, kept=kept)
    teardown.packages_purged(name="Purge the packages", book=book, kept=kept)
    teardown.users_removed(name="Remove the users", book=book, kept=kept)
    if with_store:
        teardown.store_removed(name="Remove the checkpoints", book=book, mounts=mounts)
    # Until here it was needed: what lies on it was to be removed, or become root's.
    teardown.unmounted(name="Unmount the store's disk", mounts=mounts)
    teardown.files_restored(name="Remove the files", book=book, kept=kept)
    teardown.rebooted(
        name="Reboot if our driver or arguments are in effect",
        book=book,
        kernel_args=plan.get("settings", {}).get("kernel_args", []),
        allowed=settings.reboot == "when-needed",
        timeout=settings.reboot_timeout,
        kept=kept,
    )
    teardown.rooms_removed(name="Remove our directories", book=book)
    teardown.closed(name="Prove that nothing is left", book=book, kept=kept)


def _yes_or_no(value: object) -> bool:
    """What a person may write for it, as for a setting. Raises Refused for what is neither."""
    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError as error:
        raise Refused(
            f"--data {REMOVE_STORE}={value} is neither yes nor no; nothing was changed. "
            f"Write {REMOVE_STORE}=yes to remove the checkpoints too, or leave it out to keep them"
        ) from error


def _one_by_one(max_unavailable: int) -> None:
    """Raises Refused where the run would take more hosts out of service than may be at a time."""
    hosts = sorted(each.name for each in state.inventory.get_active_hosts())
    if len(hosts) > max_unavailable:
        raise Refused(
            f"{', '.join(hosts)} would not serve until the next deploy, and max_unavailable is {max_unavailable}: "
            f"begin with `--limit {hosts[0]}` and deploy it, or take all with `--data max_unavailable={len(hosts)}`; "
            "nothing was changed"
        )


def _metrics(endpoint: dict[str, Any]) -> str:
    address = endpoint["address"]
    return f"http://{f'[{address}]' if ':' in address else address}:{endpoint['port']}/metrics"


def _told(name: str, book: Ledger, remains: RemainsValue, with_store: bool) -> str:
    """What will go, all of it, for the person who decides."""
    store = "with the checkpoints" if with_store else f"the checkpoints stay (--data {REMOVE_STORE}=yes removes them)"
    lines = [f"\n{name} goes back to bare; {store}:"]
    things = {
        "stop": book.units,
        "remove the images": book.images,
        "take our keys out of": [f"{path} ({', '.join(values)})" for path, values in book.keys.items()],
        "purge the packages": remains.packages,
        "remove the files": [path for path in remains.paths if path not in book.keys],
        "remove the users": remains.users,
        "remove the checkpoints": book.checkpoints if with_store else (),
    }
    for what, names in things.items():
        if names:
            lines.append(f"  {what}: {', '.join(names)}")
    return "\n".join(lines) + "\n"
