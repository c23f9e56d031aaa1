"""Docker's daemon configuration and images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pyinfra.api.command import QuoteString
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup import commands
from rigup.facts.docker import ImageDigests
from rigup.facts.nvidia import CdiDevices
from rigup.facts.units import UnitState, UnitStateValue
from rigup.host_config import DAEMON_JSON
from rigup.ledger import backup_of
from rigup.operations._host import Commands, check, read_now, refusal, run, work
from rigup.operations._ledger import note, record
from rigup.operations._units import UnitFailed, run_as_unit, wait_for_leftover
from rigup.operations.files import Merged, merged_file, place_merged
from rigup.operations.systemd import serving_again, start
from rigup.paths import CDI_UNIT, DOCKER_UNIT, HOST_PROGRAM, pull_unit

VALIDATE = ("dockerd", "--validate", "--config-file=%s")


@operation()
def daemon_config(
    values: Mapping[str, Any],
    unless: Mapping[str, Collection[str]] | None = None,
    timeout: float = 180,
    max_unavailable: int = 1,
    ready_timeout: float = 2700,
) -> Commands:
    """Make Docker run with `values` in its daemon.json, next to the keys of others.

    + values, unless: merged as by `files.merged_file`
    + timeout: seconds until Docker must be up
    + max_unavailable: on how many hosts of a run at a time Docker may be restarted while endpoints serve
    + ready_timeout: seconds until everything that served must serve again

    Docker is restarted only if it runs with older content of the file. If it does not start, the previous file is
    restored, Docker is started with that, and the operation fails.
    """
    try:
        merged = merged_file(DAEMON_JSON, values, unless)
    except OperationError as error:
        yield refusal(str(error))
        return
    state: UnitStateValue = host.get_fact(UnitState, unit=DOCKER_UNIT, inputs=[DAEMON_JSON])
    if merged is None and state.active == "active" and not state.newer_inputs:
        host.noop(f"Docker runs with the present {DAEMON_JSON}")
        return

    def configure(host: Host) -> None:
        with serving_again(host, max_unavailable, ready_timeout):
            restart(host)

    def restart(host: Host) -> None:
        if merged is None and not (state.runs and state.newer_inputs):
            # It is down, or the host is still booting: units that start with it must not lose it.
            start(host, DOCKER_UNIT, timeout)
            return
        if merged is not None:
            place_merged(host, DAEMON_JSON, merged, VALIDATE)
        else:
            # The file was changed since Docker started: if it is invalid, Docker keeps running with the old one.
            check(
                host,
                *(QuoteString(argument.replace("%s", DAEMON_JSON)) for argument in VALIDATE),
                failing=f"Docker on {host.name} keeps its old settings: `dockerd` refuses {DAEMON_JSON}",
            )
        try:
            start(host, DOCKER_UNIT, timeout, verb="restart")
        except OperationError as error:
            if merged is None:
                raise
            raise OperationError(f"{error}\n{_roll_back(host, merged, timeout)}") from error

    yield work(configure, f"configure {DOCKER_UNIT}")


def _roll_back(host: Host, merged: Merged, timeout: float) -> str:
    """Restore the previous daemon.json, and return the result as a sentence."""
    target = QuoteString(DAEMON_JSON)
    if merged.owner.is_regular:
        check(
            host,
            "cp -a",
            QuoteString(backup_of(DAEMON_JSON)),
            target,
            failing=f"could not restore the old {DAEMON_JSON}",
        )
        before = f"{DAEMON_JSON} is rolled back"
    else:
        check(host, "rm -f", target, failing=f"could not remove {DAEMON_JSON}")
        before = f"{DAEMON_JSON} is removed again"
    try:
        start(host, DOCKER_UNIT, timeout, verb="restart")
    except OperationError:
        return f"{before}, but Docker does not start with that either: see `journalctl -u {DOCKER_UNIT}`."
    return f"{before}, and Docker runs. Correct the Docker settings and run again."


@operation()
def image(reference: str, tag: str, size: int = 0, timeout: float = 7200) -> Commands:
    """Pull an image.

    + reference: `REPOSITORY@sha256:...`
    + tag: its tag, for messages
    + size: its compressed size in bytes, to say how long the rest takes; 0 if it is not known
    + timeout: seconds until the pull must be done

    It runs as a unit of its own: it continues when the deploy is interrupted, and the next deploy waits for it.
    """
    if reference in host.get_fact(ImageDigests):
        host.noop(f"{tag} is pulled")
        return

    def pull(host: Host) -> None:
        unit = pull_unit(reference)
        wait_for_leftover(host, unit, f"the pull of {tag}", timeout)
        if not _is_pulled(host, reference):
            record(host, note("images", [reference]))
            argv = [HOST_PROGRAM, "pull", f"--bytes={size}", reference]
            try:
                run_as_unit(host, unit, argv, what=f"the pull of {tag}", limit_s=timeout)
            except UnitFailed as error:
                # If a mirror lacks the digest, Docker asks the public registry and reports only that.
                hint = f"If the registry no longer has {reference}, `{commands.rigup('update')}` resolves {tag} again."
                raise OperationError(f"{error}\n{hint}") from error
        if not _is_pulled(host, reference):
            raise OperationError(f"{host.name}: the pull of {tag} succeeded, but {reference} is missing")

    yield work(pull, f"pull {tag}")


def _is_pulled(host: Host, reference: str) -> bool:
    return run(host, "docker image inspect --format .", QuoteString(reference)).ok


@operation()
def cdi(gpus: int, uuids: Sequence[str] = (), timeout: float = 120) -> Commands:
    """Make the container device list (`nvidia-ctk cdi list`) include all `gpus` of the host, and these `uuids`.

    The list is on a tmpfs. NVIDIA's own unit writes it at boot, and is restarted if it ran too early, or if the
    toolkit was installed since.
    """
    listed: list[str] = host.get_fact(CdiDevices)
    if _lists_all(listed, gpus, uuids):
        host.noop(f"containers can use {gpus} GPUs")
        return

    def refresh(host: Host) -> None:
        start(host, CDI_UNIT, timeout, verb="restart")
        listed = read_now(host, CdiDevices)
        if not _lists_all(listed, gpus, uuids):
            required = ", ".join([f"{gpus} GPUs", *uuids])
            raise OperationError(
                f"{host.name}: containers need {required}, but `nvidia-ctk cdi list` names only "
                f"{', '.join(listed) or 'none'}. See `journalctl -u {CDI_UNIT}` and `nvidia-smi -L`."
            )

    yield work(refresh, "update the GPU list for containers")


def _lists_all(listed: Sequence[str], gpus: int, uuids: Sequence[str]) -> bool:
    return {f"nvidia.com/gpu={name}" for name in ("all", *range(gpus), *uuids)} <= set(listed)
