"""Docker's daemon configuration and images."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from pyinfra.api.command import FunctionCommand, QuoteString
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.facts.docker import ImageDigests
from rigup.facts.nvidia import CdiDevices, parse_cdi_devices
from rigup.facts.units import UnitState, UnitStateValue
from rigup.host_config import DAEMON_JSON
from rigup.ledger import backup_of
from rigup.operations._host import check, refusal, run, work
from rigup.operations._ledger import note
from rigup.operations._units import UnitFailed, run_as_unit, wait_for_leftover
from rigup.operations.files import Merged, merged_file, place_merged
from rigup.operations.systemd import serving_again, start
from rigup.plan.model import pull_unit

__all__ = ["cdi", "daemon_config", "image"]

Commands = Generator[FunctionCommand, None, None]

DOCKER = "docker.service"
CDI_REFRESH = "nvidia-cdi-refresh.service"
VALIDATE = ("dockerd", "--validate", "--config-file=%s")


@operation()
def daemon_config(
    values: Mapping[str, Any], timeout: float = 180, max_unavailable: int = 1, ready_timeout: float = 2700
) -> Commands:
    """Make Docker run with `values` in its daemon.json, beside what others have put there.

    + values: merged as by `files.merged_file`
    + timeout: seconds until Docker must be up
    + max_unavailable: on how many hosts of a run Docker may be restarted under what serves
    + ready_timeout: seconds until what served must serve again

    Docker is restarted only where it runs without the file's present content. Where it does not come up, the file from
    before is put back, Docker is started with it, and the operation fails.
    """
    try:
        merged = merged_file(DAEMON_JSON, values)
    except OperationError as error:
        yield refusal(str(error))
        return
    state: UnitStateValue = host.get_fact(UnitState, unit=DOCKER, inputs=[DAEMON_JSON])
    if merged is None and state.active == "active" and not state.newer_inputs:
        host.noop(f"Docker runs with what {DAEMON_JSON} says")
        return

    def configure(host: Host) -> None:
        with serving_again(host, max_unavailable, ready_timeout):
            restart(host)

    def restart(host: Host) -> None:
        if merged is None and not (state.runs and state.newer_inputs):
            # It is down, or the host is still booting: what starts with it must not lose it again.
            start(host, DOCKER, timeout)
            return
        if merged is not None:
            place_merged(host, DAEMON_JSON, merged, VALIDATE)
        else:
            # Somebody has written it since Docker began: better one that runs on what it has read than none.
            check(
                host,
                *(QuoteString(argument.replace("%s", DAEMON_JSON)) for argument in VALIDATE),
                failing=f"Docker on {host.name} runs on without the changes in {DAEMON_JSON}, which `dockerd` refuses",
            )
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
def image(reference: str, tag: str, timeout: float = 7200) -> Commands:
    """Have an image on the host.

    + reference: `REPOSITORY@sha256:...`
    + tag: the name people know it by, for the messages
    + timeout: seconds until it must be there

    The pull runs as a unit of its own: it goes on when the deploy is cut off, and the next deploy waits for it.
    """
    if reference in host.get_fact(ImageDigests):
        host.noop(f"{tag} is here")
        return

    def pull(host: Host) -> None:
        unit = pull_unit(reference)
        wait_for_leftover(host, unit, f"the pull of {tag}", timeout)
        if not _is_here(host, reference):
            check(host, note("images", [reference]), failing=f"could not write the ledger of {host.name}")
            argv = ["/usr/bin/docker", "pull", reference]
            try:
                run_as_unit(host, unit, argv, what=f"the pull of {tag}", limit_s=timeout)
            except UnitFailed as error:
                # Where a mirror lacks the digest, Docker asks the public registry and tells of that alone.
                hint = f"If the registry no longer has {reference}, `rigup update` resolves {tag} anew."
                raise OperationError(f"{error}\n{hint}") from error
        if not _is_here(host, reference):
            raise OperationError(f"{host.name}: `docker pull {reference}` went well, but the image is not here")

    yield work(pull, f"pull {tag}")


def _is_here(host: Host, reference: str) -> bool:
    return run(host, "docker image inspect --format .", QuoteString(reference)).ok


@operation()
def cdi(gpus: int, uuids: Sequence[str] = (), timeout: float = 120) -> Commands:
    """Have the container device list (`nvidia-ctk cdi list`) name all of the host's `gpus`, and these `uuids`.

    The list lies on a tmpfs; NVIDIA's own unit makes it at boot, and is asked again where it came too early or where
    the toolkit was installed since.
    """
    listed: list[str] = host.get_fact(CdiDevices)
    if _lists_all(listed, gpus, uuids):
        host.noop(f"containers can ask for {gpus} GPUs")
        return

    def refresh(host: Host) -> None:
        start(host, CDI_REFRESH, timeout, verb="restart")
        listed = parse_cdi_devices(list(run(host, CdiDevices().command()).lines))
        if not _lists_all(listed, gpus, uuids):
            wanted = ", ".join([f"{gpus} GPUs", *uuids])
            raise OperationError(
                f"{host.name}: containers shall be able to ask for {wanted}, but `nvidia-ctk cdi list` names only "
                f"{', '.join(listed) or 'none'}. See `journalctl -u {CDI_REFRESH}` and `nvidia-smi -L`."
            )

    yield work(refresh, "list the GPUs for containers")


def _lists_all(listed: Sequence[str], gpus: int, uuids: Sequence[str]) -> bool:
    return {f"nvidia.com/gpu={name}" for name in ("all", *range(gpus), *uuids)} <= set(listed)
