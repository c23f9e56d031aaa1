"""Docker's daemon configuration and images."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from pyinfra.api.command import FunctionCommand, QuoteString
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.facts.docker import ImageDigests
from rigup.facts.units import UnitState, UnitStateValue
from rigup.operations._host import check, refusal, run, say, work
from rigup.operations._units import run_as_unit, wait_for_leftover
from rigup.operations.files import Merged, backup_of, merged_file, place_merged
from rigup.operations.systemd import start

__all__ = ["daemon_config", "image"]

Commands = Generator[FunctionCommand, None, None]

DAEMON_JSON = "/etc/docker/daemon.json"
DOCKER = "docker.service"
VALIDATE = ("dockerd", "--validate", "--config-file=%s")


@operation()
def daemon_config(values: Mapping[str, Any], timeout: float = 180) -> Commands:
    """Make Docker run with `values` in its daemon.json, beside what others have put there.

    + values: merged as by `files.merged_json`
    + timeout: seconds until Docker must be up

    Docker is restarted only where it runs without the file's present content. Where it does not come up, the file from
    before is put back, Docker is started with it, and the operation fails.
    """
    try:
        merged = merged_file(DAEMON_JSON, values, mode="644")
    except OperationError as error:
        yield refusal(str(error))
        return
    state: UnitStateValue = host.get_fact(UnitState, unit=DOCKER, inputs=[DAEMON_JSON])
    if merged is None and state.active == "active" and not state.newer_inputs:
        host.noop(f"Docker runs with what {DAEMON_JSON} says")
        return

    def configure(host: Host) -> None:
        if merged is not None:
            place_merged(host, DAEMON_JSON, merged, validate=VALIDATE)
        try:
            start(host, DOCKER, timeout, verb="restart")
        except OperationError as error:
            if merged is None:
                raise
            raise OperationError(f"{error}\n{_roll_back(host, merged, timeout)}") from error

    yield work(configure, f"configure {DOCKER}")


def _roll_back(host: Host, merged: Merged, timeout: float) -> str:
    """Go back to the daemon.json from before; says what came of it."""
    target = QuoteString(DAEMON_JSON)
    if merged.owner.is_regular:
        check(
            host,
            "cp -a",
            QuoteString(backup_of(DAEMON_JSON)),
            target,
            failing=f"could not put the old {DAEMON_JSON} back",
        )
        before = f"{DAEMON_JSON} is again what it was"
    else:
        check(host, "rm -f", target, failing=f"could not remove {DAEMON_JSON}")
        before = f"{DAEMON_JSON} is removed again"
    try:
        start(host, DOCKER, timeout, verb="restart")
    except OperationError:
        return f"{before}, but Docker does not come up with that either: see `journalctl -u {DOCKER}`."
    return f"{before}, and Docker runs. Change what the settings ask of Docker and run again."


@operation()
def image(ref: str, tag: str | None = None, timeout: float = 7200) -> Commands:
    """Have the image `ref` (`REPOSITORY@sha256:...`) on the host.

    + tag: the name people know it by, for the messages
    + timeout: seconds until it must be there

    The pull runs as a unit of its own: it goes on when the deploy is cut off, and the next deploy waits for it.
    """
    if ref in host.get_fact(ImageDigests):
        host.noop(f"{tag or ref} is here")
        return

    def pull(host: Host) -> None:
        repository, _, digest = ref.partition("@")
        unit = f"rigup-pull-{digest.removeprefix('sha256:')[:12]}.service"
        what = f"the pull of {tag or repository}"
        wait_for_leftover(host, unit, what, timeout)
        if not _is_here(host, ref):
            run_as_unit(host, unit, ["/usr/bin/docker", "pull", ref], what=what, limit_s=timeout)
        if not _is_here(host, ref):
            raise OperationError(f"{host.name}: `docker pull {ref}` went well, but the image is not here")
        say(host, f"{tag or repository} is here")

    yield work(pull, f"pull {ref}")


def _is_here(host: Host, ref: str) -> bool:
    return run(host, "docker image inspect --format .", QuoteString(ref)).ok
