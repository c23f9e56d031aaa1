"""The first and the last step of a rebuild: the confirmation, and the check that nothing is left."""

from __future__ import annotations

from gevent.lock import RLock
from pyinfra.api.command import QuoteString
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host, state

from rigup.facts.ledger import SEARCHED, STAGED, Remains, Sums, links_of, remains_of
from rigup.ledger import EMPTIED, OWN_DIRECTORIES, Ledger
from rigup.operations._host import Commands, check, read_now, refusal, run, work
from rigup.operations._wait import say
from rigup.operations.teardown.kept import Kept, some
from rigup.paths import BEFORE, LEDGER, STATE

_asking = RLock()


@operation()
def confirmed(ledger: Ledger) -> Commands:
    """Refuse a ledger that has unreadable lines. Ask for the host's name, unless the run was started with `-y`."""
    if ledger.unreadable:
        yield refusal(
            f"{LEDGER} on {host.name} is damaged; nothing was changed. What these lines recorded would stay on the "
            f"host unnoticed: {some(ledger.unreadable)}. Remove that by hand, remove the lines, and run again."
        )
        return
    if not state.check_for_changes:
        host.noop("started with -y")
        return

    def ask(host: Host) -> None:
        with _asking:
            try:
                answer = input(f"\n    {host.name} will be reset to bare. Type its name to continue: ")
            except EOFError:
                answer = ""
        if answer.strip() != host.name:
            raise OperationError(f"{host.name} was not changed: its name was not typed (-y skips the question)")

    yield work(ask, "ask")


@operation()
def directories_removed(ledger: Ledger) -> Commands:
    """Remove the directories that belong to rigup, and files that were only half written; the ledger stays."""

    def remove(host: Host) -> None:
        directories = [QuoteString(path) for path in OWN_DIRECTORIES if path != STATE]
        failing = f"could not remove our directories on {host.name}"
        check(host, "rm -rf --", *directories, *links_of(ledger), failing=failing)
        run(host, "find", *SEARCHED, f"-xdev -maxdepth 5 -name '{STAGED}' -prune -exec rm -rf -- {{}} +")
        for directory in EMPTIED:
            run(host, "rmdir --", QuoteString(directory), "2>/dev/null")

    yield work(remove, "remove directories")


@operation()
def verified_bare(ledger: Ledger, kept: Kept) -> Commands:
    """Fail if anything that a deploy has added is left; otherwise report what was kept, and remove the ledger."""

    def verify(host: Host) -> None:
        remains = read_now(host, Remains, **remains_of(ledger))
        sums = read_now(host, Sums, sorted(ledger.files))
        # A file of others that was restored is theirs again.
        restored = {path for path in ledger.files if sums.get(path) == sums.get(f"{BEFORE}{path}")}
        expected = {f"package {name}" for name in kept.packages} | {STATE} | restored
        if left := [word for word in remains.words() if word not in expected]:
            raise OperationError(f"{host.name} is not bare yet: {some(left)}. Find out why, and run again.")
        say(host, f"nothing is left of {_counted(ledger)}")
        for note in [*kept.notes, *(f"{path}, which no deploy has created" for path in remains.named)]:
            say(host, f"kept: {note}")
        if ledger.removed:
            say(host, f"not restored: {some(sorted(ledger.removed))}, which packages of the deploy replaced")
        check(host, "rm -rf --", QuoteString(STATE), failing=f"could not remove {STATE} on {host.name}")

    yield work(verify, "verify")


def _counted(ledger: Ledger) -> str:
    counts = {"packages": ledger.packages, "files": ledger.files, "users": ledger.users, "images": ledger.images}
    return ", ".join(f"{len(things)} {kind}" for kind, things in counts.items()) + " and our directories"
