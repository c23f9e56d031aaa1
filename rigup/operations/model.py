"""Start the downloads of checkpoints, and wait for them only where they are needed.

The unit `model-fetch@ID.service` runs `rigup-host fetch` with its request in `/etc/rigup/models`. It does not depend on
the deploy or its connection, continues after a reboot, and is disabled once the checkpoint is verified.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from dataclasses import asdict, dataclass

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.facts.files import FileInfo, FileState
from rigup.facts.serving import ModelStamp, ModelStampValue
from rigup.facts.store import FetchProgress
from rigup.facts.units import UnitState, UnitStateValue
from rigup.operations._host import Commands, check, read_now, work
from rigup.operations._ledger import note
from rigup.operations._units import failure, wait_while
from rigup.operations._wait import Clock, say
from rigup.operations.files import place
from rigup.paths import FETCH_VENV, fetch_request, fetch_unit
from rigup.plan.model import CheckpointPlan
from rigup.plan.peers import Peer
from rigup.text import duration, progress_line, size

USER = "rigup-fetch"


@dataclass(frozen=True)
class Sources:
    """Where a host downloads from, in this order: a directory on it, its peers, then the hubs.

    `name` is the host's name in the inventory. `token` is the file with the hub token, if there is one.
    """

    hubs: tuple[str, ...]
    name: str = ""
    peers: tuple[Peer, ...] = ()
    directory: str | None = None
    token: str | None = None


def request(checkpoint: CheckpointPlan, sources: Sources, venv: str = FETCH_VENV) -> str:
    """Return the request for the downloader, as JSON."""
    fields = {
        "repo": checkpoint.repo,
        "revision": checkpoint.revision,
        "dest": checkpoint.path,
        "sources": checkpoint.places_in(sources.directory) if sources.directory else (),
        "name": sources.name,
        "peers": [asdict(peer) for peer in sources.peers],
        "hubs": sources.hubs,
        # The downloader does not read it, but a download that started with a token is restarted without it.
        "token": sources.token is not None,
        "venv": venv,
        "files": checkpoint.listing,
    }
    return json.dumps(fields, indent=2) + "\n"


@operation()
def fetch(checkpoint: CheckpointPlan, sources: Sources, venv: str = FETCH_VENV) -> Commands:
    """Start the download of a checkpoint unless it is complete and verified; does not wait for it.

    + sources: where to download from
    + venv: the virtual environment with the hub client
    """
    repo = checkpoint.repo
    stamp: ModelStampValue = host.get_fact(ModelStamp, path=checkpoint.path)
    if is_done(stamp, checkpoint):
        host.noop(f"{repo} is complete and verified")
        return
    content = request(checkpoint, sources, venv).encode()
    path, unit = fetch_request(checkpoint.instance), fetch_unit(checkpoint.instance)
    there: FileState | None = host.get_fact(FileInfo, path=path)
    inputs = [path, sources.token] if sources.token else [path]
    state: UnitStateValue = host.get_fact(UnitState, unit=unit, inputs=inputs)
    asked = there is not None and there.sha256 == hashlib.sha256(content).hexdigest()
    if asked and state.runs and not state.newer_inputs and state.enabled == "enabled":
        host.noop(f"{unit} is downloading {repo}")
        return

    def begin(host: Host) -> None:
        parent, name = QuoteString(posixpath.dirname(checkpoint.path)), QuoteString(unit)
        check(
            host,
            note("checkpoints", [checkpoint.path]),
            StringCommand("&& ( umask 022 && mkdir -p", parent, ") &&"),
            # After a rebuild the store belongs to root: the downloader may have to repair it.
            StringCommand("find", parent, f"! -user {USER} -execdir chown -h {USER}: {{}} +"),
            failing=f"could not create the directory for {repo} on {host.name}",
        )
        if not asked:
            place(host, path, content, mode="644", user="root", group="root")
        # It may have reached its start limit, or be running for an earlier request.
        order = "start" if asked and state.runs and not state.newer_inputs else "restart"
        check(
            host,
            StringCommand("systemctl daemon-reload && systemctl enable --quiet --", name),
            StringCommand("&& { systemctl reset-failed --", name, "2>/dev/null;"),
            StringCommand(f"systemctl {order} --no-block --", name, "; }"),
            failing=f"could not start {unit} on {host.name}",
        )
        say(host, f"{unit} is downloading {repo} while the deploy continues")

    yield work(begin, f"start {unit}")


@operation()
def wait(checkpoint: CheckpointPlan, timeout: float = 86400) -> Commands:
    """Wait until the checkpoint is complete and verified, then disable its download unit.

    + timeout: seconds until it must be complete

    Fails with the unit's last lines if the download gives up.
    """
    stamp: ModelStampValue = host.get_fact(ModelStamp, path=checkpoint.path)
    state: UnitStateValue = host.get_fact(UnitState, unit=fetch_unit(checkpoint.instance))
    if is_done(stamp, checkpoint) and not state.runs and state.enabled != "enabled":
        host.noop(f"{checkpoint.repo} is complete and verified")
        return

    def attend(host: Host) -> None:
        unit = fetch_unit(checkpoint.instance)
        _wait_for_stamp(host, checkpoint, timeout)
        off = f"could not disable {unit} on {host.name}"
        check(host, "systemctl disable --quiet --", QuoteString(unit), failing=off)

    yield work(attend, f"wait for {checkpoint.repo}")


def is_done(stamp: ModelStampValue, checkpoint: CheckpointPlan) -> bool:
    """Return whether the stamp says that this checkpoint is complete and verified."""
    return stamp.complete and (stamp.repo, stamp.revision) == (checkpoint.repo, checkpoint.revision)


def _wait_for_stamp(host: Host, checkpoint: CheckpointPlan, timeout: float) -> None:
    repo, unit = checkpoint.repo, fetch_unit(checkpoint.instance)
    stamp = ModelStampValue()

    def running(state: UnitStateValue) -> bool:
        # After the unit's state: a unit that had ended by then has written its stamp by now.
        nonlocal stamp
        stamp = read_now(host, ModelStamp, checkpoint.path)
        if is_done(stamp, checkpoint) and not state.runs:
            return False
        # A start that still waits, for the network or the store's disk, has not given up.
        if not state.runs and not state.is_waiting_to_retry and not state.job:
            raise failure(host, unit, state, f"{repo} could not be downloaded")
        return True

    wait_while(
        host,
        unit,
        running,
        Clock(timeout),
        progress=lambda state: progress_line(repo, read_now(host, FetchProgress, checkpoint.instance)),
        timed_out=f"the download of {repo} timed out after {duration(timeout)}",
    )
    say(host, f"{repo} is complete and verified: {size(stamp.bytes)} in {stamp.files} files")
