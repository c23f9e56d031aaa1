"""A checkpoint on the host's disk: its download goes on by itself, and is waited for only where it is needed.

The unit `model-fetch@ID.service` runs `fetch.py` with the request in `/etc/rigup/models/ID.json`. It survives the
deploy, the connection and a reboot, and is switched off once the checkpoint is verified.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pyinfra.api.command import FunctionCommand, QuoteString, StringCommand
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.facts.files import FileInfo, FileState
from rigup.facts.serving import ModelStamp, ModelStampValue, parse_model_stamp
from rigup.facts.store import FetchProgress
from rigup.facts.units import UnitState, UnitStateValue
from rigup.operations._host import Clock, check, duration, run, say, work
from rigup.operations._ledger import note
from rigup.operations._units import failure, show_patiently
from rigup.operations.files import place
from rigup.plan.model import CheckpointPlan, fetch_unit
from rigup.plan.peers import Peer
from rigup.text import progress_line, size

__all__ = ["Sources", "fetch", "request", "wait"]

Commands = Generator[FunctionCommand, None, None]

VENV = "/usr/local/lib/rigup/venv"
USER = "rigup-fetch"


def request_of(checkpoint: CheckpointPlan) -> str:
    return f"/etc/rigup/models/{checkpoint.instance}.json"


@dataclass(frozen=True)
class Sources:
    """Where a host's files come from, nearest first: a directory on it, its peers, then hubs in this order.

    `name` is the host's own in the inventory. `token` is the file that its unit takes the hub's token from, if any.
    """

    hubs: tuple[str, ...]
    name: str = ""
    peers: tuple[Peer, ...] = ()
    directory: str | None = None
    token: str | None = None


def request(checkpoint: CheckpointPlan, sources: Sources, venv: str = VENV) -> str:
    """What `fetch.py` is asked for, as JSON."""
    told = {
        "repo": checkpoint.repo,
        "revision": checkpoint.revision,
        "dest": checkpoint.path,
        "sources": checkpoint.places_in(sources.directory) if sources.directory else (),
        "name": sources.name,
        "peers": [asdict(peer) for peer in sources.peers],
        "hubs": sources.hubs,
        # Not read there: a download that began with a token is begun anew without it.
        "token": sources.token is not None,
        "venv": venv,
        "files": checkpoint.listing,
    }
    return json.dumps(told, indent=2) + "\n"


@operation()
def fetch(checkpoint: CheckpointPlan, sources: Sources, venv: str = VENV) -> Commands:
    """Have the download of a checkpoint under way, unless it is there and verified; does not wait for it.

    + sources: where its files come from
    + venv: the virtual environment with the hub's client
    """
    repo = checkpoint.repo
    stamp: ModelStampValue = host.get_fact(ModelStamp, path=checkpoint.path)
    if is_done(stamp, checkpoint):
        host.noop(f"{repo} is complete and verified")
        return
    content = request(checkpoint, sources, venv).encode()
    path, unit = request_of(checkpoint), fetch_unit(checkpoint.instance)
    there: FileState | None = host.get_fact(FileInfo, path=path)
    inputs = [path, sources.token] if sources.token else [path]
    state: UnitStateValue = host.get_fact(UnitState, unit=unit, inputs=inputs)
    asked = there is not None and there.sha256 == hashlib.sha256(content).hexdigest()
    if asked and state.runs and not state.newer_inputs and state.enabled == "enabled":
        host.noop(f"{repo} is being fetched by {unit}")
        return

    def begin(host: Host) -> None:
        parent, name = QuoteString(posixpath.dirname(checkpoint.path)), QuoteString(unit)
        check(
            host,
            note("checkpoints", [checkpoint.path]),
            StringCommand("&& ( umask 022 && mkdir -p", parent, ") &&"),
            # After a rebuild what the store has is root's: the downloader may have to mend it.
            StringCommand("find", parent, f"! -user {USER} -exec chown -h {USER}: {{}} +"),
            failing=f"could not make the store's directory for {repo} on {host.name}",
        )
        if not asked:
            place(host, path, content, mode="644", user="root", group="root")
        # It may have used up its starts, or run for an earlier request.
        order = "start" if asked and state.runs and not state.newer_inputs else "restart"
        check(
            host,
            StringCommand("systemctl daemon-reload && systemctl enable --quiet --", name),
            StringCommand("&& { systemctl reset-failed --", name, "2>/dev/null;"),
            StringCommand(f"systemctl {order} --no-block --", name, "; }"),
            failing=f"could not start {unit} on {host.name}",
        )
        say(host, f"{repo} is being fetched by {unit}; the deploy goes on meanwhile")

    yield work(begin, f"start {unit}")


@operation()
def wait(checkpoint: CheckpointPlan, timeout: float = 86400) -> Commands:
    """Wait until the checkpoint is there and verified, then switch its download unit off.

    + timeout: seconds until it must be complete

    Fails with the unit's last lines when the download gives up.
    """
    stamp: ModelStampValue = host.get_fact(ModelStamp, path=checkpoint.path)
    state: UnitStateValue = host.get_fact(UnitState, unit=fetch_unit(checkpoint.instance))
    if is_done(stamp, checkpoint) and not state.runs and state.enabled != "enabled":
        host.noop(f"{checkpoint.repo} is complete and verified")
        return

    def attend(host: Host) -> None:
        unit = fetch_unit(checkpoint.instance)
        _wait_for_stamp(host, checkpoint, timeout)
        off = f"could not switch {unit} off on {host.name}"
        check(host, "systemctl disable --quiet --", QuoteString(unit), failing=off)

    yield work(attend, f"wait for {checkpoint.repo}")


def is_done(stamp: ModelStampValue, checkpoint: CheckpointPlan) -> bool:
    """Whether what the stamp tells of is this checkpoint, whole and verified."""
    return stamp.complete and (stamp.repo, stamp.revision) == (checkpoint.repo, checkpoint.revision)


def _wait_for_stamp(host: Host, checkpoint: CheckpointPlan, timeout: float) -> None:
    repo, unit, clock = checkpoint.repo, fetch_unit(checkpoint.instance), Clock(timeout)
    while True:
        # The unit's state is read first: a unit that had ended by then has written its stamp by now.
        state = show_patiently(host, unit, clock)
        stamp = parse_model_stamp(list(run(host, ModelStamp().command(checkpoint.path)).lines))
        if is_done(stamp, checkpoint) and not state.runs:
            say(host, f"{repo} is complete and verified: {size(stamp.bytes)} in {stamp.files} files")
            return
        # A start that waits its turn, for the network or the store's disk, is not a unit that gave up.
        if not state.runs and not state.is_waiting_to_retry and not state.job:
            raise failure(host, unit, state, f"{repo} could not be fetched")
        if clock.is_up:
            raise failure(host, unit, state, f"{repo} was not complete within {duration(timeout)}")
        if clock.is_due():
            say(host, progress_line(repo, _progress(host, checkpoint)))
        clock.nap()


def _progress(host: Host, checkpoint: CheckpointPlan) -> Mapping[str, Any]:
    """What `fetch.py` last said of itself; empty before its first word."""
    fact = FetchProgress()
    return fact.process(list(run(host, fact.command(checkpoint.instance)).lines))
