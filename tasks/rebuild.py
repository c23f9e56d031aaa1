"""The way back: a host that was deployed becomes what it was before, and its model store stays."""

from __future__ import annotations

import sys
from typing import Any

from pyinfra import host
from pyinfra.api.deploy import deploy

from rigup.facts.files import FileText
from rigup.facts.ledger import HostLedger, Remains, RemainsValue, remains_of
from rigup.ledger import Ledger
from rigup.operations import apt, undo
from rigup.plan import PLAN, kept_plan
from rigup.settings import Settings

__all__ = ["rebuild"]

REMOVE_STORE = "remove_store"


@deploy("rebuild")
def rebuild() -> None:
    """In an order that can be cut short anywhere: what serves, what it runs on, the files, and the ledger last."""
    data: dict[str, Any] = host.data.dict()
    with_store = str(data.pop(REMOVE_STORE, "no")).lower() in ("yes", "true", "1")
    settings = Settings.from_data(data, host.name)
    book: Ledger = host.get_fact(HostLedger)
    remains: RemainsValue = host.get_fact(Remains, **remains_of(book))
    if not book.files and not remains.words():
        print(f"\n{host.name}: bare already, as far as rigup can tell", file=sys.stderr)
        return
    print(_told(host.name, book, remains, with_store), file=sys.stderr)
    plan = kept_plan(host.get_fact(FileText, path=PLAN))
    kept = undo.Kept()

    undo.confirmed(name="Ask for the host's name")
    undo.drained(
        name="Wait for running requests",
        endpoints={entry["name"]: _metrics(entry) for entry in plan.get("endpoints", [])},
        limit=settings.drain_timeout,
    )
    undo.stopped(name="Stop what serves and what downloads", units=book.units)
    apt.repair(name="Finish what an interrupted dpkg left behind")
    undo.docker_emptied(name="Remove the images", book=book, kept=kept)
    undo.keys_removed(name="Take our keys out of files of others", book=book, kept=kept)
    undo.packages_purged(name="Purge the packages", book=book, kept=kept)
    undo.files_restored(name="Remove the files", book=book, kept=kept)
    undo.users_removed(name="Remove the users", book=book, kept=kept)
    if with_store:
        undo.store_removed(name="Remove the checkpoints", book=book)
    undo.rebooted(
        name="Reboot if our driver or arguments are in effect",
        book=book,
        kernel_args=plan.get("settings", {}).get("kernel_args", []),
        allowed=settings.reboot == "when-needed",
        timeout=settings.reboot_timeout,
        kept=kept,
    )
    undo.rooms_removed(name="Remove our directories")
    undo.closed(name="Prove that nothing is left", book=book, kept=kept)


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
