"""A reboot if the host's state requires one, verified by the boot ID, and never twice for the same reasons."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence

from pyinfra.api.command import QuoteString
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.api.state import StateStage
from pyinfra.connectors.util import clear_askpass_cache
from pyinfra.context import host, state

from rigup.boot_loader import version_key
from rigup.facts.kernel import (
    BootId,
    KernelState,
    KernelStateValue,
    ModuleParameters,
    ModuleParametersValue,
)
from rigup.facts.nvidia import DriverState, DriverStateValue, GpuList
from rigup.facts.units import ActiveUnits
from rigup.operations import run_lock
from rigup.operations._host import Commands, check, read_now, run, try_reconnect, work
from rigup.operations._wait import Clock, pause, say, wait_until
from rigup.operations.files import place
from rigup.operations.systemd import SERVING
from rigup.paths import GRUB_CONFIG, STATE
from rigup.ssh import environment
from rigup.text import duration, from_json

GPU_TIMEOUT_S = 300
SHUTDOWN_S = 3.0
# In the ledger's directory: the reasons that a reboot did not remove.
REBOOTED = "rebooted.json"


def reasons(
    kernel: KernelStateValue,
    driver: DriverStateValue,
    parameters: ModuleParametersValue,
    kernel_args: Sequence[str] = (),
    modprobe_options: Mapping[str, Mapping[str, str | int]] | None = None,
    leaving: Sequence[str] = (),
) -> list[str]:
    """Return why the host must be rebooted to run what is installed. `leaving` are arguments that must go."""
    found = newer_kernel(kernel)
    if missing := [argument for argument in kernel_args if argument not in kernel.arguments]:
        found.append(f"the kernel was booted without {' '.join(missing)}")
    if staying := [argument for argument in leaving if argument in kernel.arguments]:
        found.append(f"the kernel was booted with {' '.join(staying)}, which the settings no longer have")
    on_disk = driver.on_disk.get(kernel.boots_next) or driver.on_disk.get(kernel.release)
    if driver.loaded is None:
        found.append("the NVIDIA module is not loaded" + (" (nouveau is)" if driver.nouveau else ""))
    elif on_disk and driver.loaded != on_disk:
        found.append(f"NVIDIA module {driver.loaded} is loaded, {on_disk} is installed")
    for module, options in (modprobe_options or {}).items():
        for name, value in options.items():
            if parameters.in_effect(module, name, value) is False:
                found.append(f"module {module} was loaded without {name}={value}")
    return found


def newer_kernel(kernel: KernelStateValue) -> list[str]:
    """Return the one reason that can wait: everything that a deploy needs runs with the present kernel too.

    A boot loader that boots an older kernel next was told so by somebody.
    """
    following, running = kernel.boots_next, kernel.release
    newer = version_key(following) > version_key(running)
    return [f"kernel {following} is installed, {running} runs"] if newer else []


def obstacles(kernel: KernelStateValue, driver: DriverStateValue, kernel_args: Sequence[str] = ()) -> list[str]:
    """Return why a reboot would fail, break the GPUs or change nothing: what must be fixed first."""
    found = []
    menu = kernel.next_arguments
    lost = [argument for argument in kernel_args if argument not in menu] if menu is not None else []
    if missing := [argument for argument in lost if argument not in kernel.arguments]:
        found.append(
            f"the entry of the boot menu that boots next, with kernel {kernel.boots_next}, has no {' '.join(missing)}: "
            f"another file in {posixpath.dirname(GRUB_CONFIG)} overrides {posixpath.basename(GRUB_CONFIG)}, the "
            "default is a custom entry, or another program than `update-grub` writes the menu"
        )
    if kernel.boots_next not in driver.on_disk:
        found.append(
            f"there is no NVIDIA module for kernel {kernel.boots_next}, which boots next: check `dkms status` and "
            f"install linux-headers-{kernel.boots_next}"
        )
    if kernel.installed and kernel.initrds and kernel.boots_next not in kernel.initrds:
        found.append(
            f"kernel {kernel.boots_next} has no initrd in /boot: run `update-initramfs -c -k {kernel.boots_next}`"
        )
    return found


@operation()
def when_needed(
    kernel_args: Sequence[str] = (),
    modprobe_options: Mapping[str, Mapping[str, str | int]] | None = None,
    former_args: Sequence[str] = (),
    gpus: int = 0,
    allowed: bool = True,
    while_serving: bool = False,
    timeout: float = 1800,
) -> Commands:
    """Reboot the host if it does not run what is installed, and wait until its GPUs answer.

    + kernel_args: arguments that the kernel must have been booted with
    + modprobe_options: `{module: {option: value}}` that must be in effect
    + former_args: arguments of an earlier deploy that must no longer be in effect, unless others set them in GRUB
    + gpus: how many GPUs `nvidia-smi -L` must list afterwards
    + allowed: whether to reboot; if not, a required reboot is an error that says why
    + while_serving: whether to reboot while an endpoint serves
    + timeout: seconds until the host must be back (the firmware of servers with many GPUs takes many minutes)

    A reboot that does not help is an error, and no later deploy tries it again for the same reasons. A reboot only for
    a newer kernel waits until nothing serves, and is logged as due.
    """
    options = modprobe_options or {}
    kernel: KernelStateValue = host.get_fact(KernelState)
    menu = kernel.next_arguments
    leaving = [each for each in former_args if menu is not None and each in kernel.arguments and each not in menu]
    why = reasons(
        kernel,
        host.get_fact(DriverState),
        host.get_fact(ModuleParameters, modules=sorted(options)),
        kernel_args,
        options,
        leaving,
    )
    if not why:
        host.noop("the host runs what is installed")
        return
    if why == newer_kernel(kernel) and not while_serving and (serving := host.get_fact(ActiveUnits, pattern=SERVING)):
        due = f"a reboot is due ({why[0]}): waiting until {', '.join(serving)} no longer serves"
        host.noop(due)
        if state.current_stage is StateStage.Execute:
            say(host, due)
        return

    def reboot(host: Host) -> None:
        kernel, driver, _ = _state_now(host, options)
        listed = "; ".join(why)
        if blocking := obstacles(kernel, driver, kernel_args):
            if kernel.boots_next not in driver.on_disk and (error := _build_error(host)):
                blocking.append(f"DKMS's last build failed with: {error}")
            raise OperationError(
                f"{host.name} needs a reboot ({listed}), but {'; '.join(blocking)}. Fix that and run again."
            )
        if not allowed:
            raise OperationError(
                f"{host.name} needs a reboot ({listed}), and the setting `reboot` is `never`. Reboot it yourself, or "
                "set `reboot: when-needed`, and run again."
            )
        serving = read_now(host, ActiveUnits, SERVING)
        if serving and not while_serving:
            raise OperationError(
                f"{host.name} needs a reboot ({listed}), but {', '.join(serving)} is serving. When it may stop, run "
                f"`systemctl stop {' '.join(serving)}` there, and deploy again."
            )
        if set(why) <= _left_by_last(host):
            raise OperationError(
                f"{host.name} was rebooted by an earlier deploy, and still: {listed}. {_advice(why)} It is not "
                "rebooted again for that: fix it, reboot the host yourself, and deploy again."
            )
        say(host, f"rebooting: {listed}")
        took = reboot_and_wait(host, timeout)
        say(host, f"back after {duration(took)}")
        _wait_for_gpus(host, gpus)
        if left := reasons(*_state_now(host, options), kernel_args, options, leaving):
            _remember(host, left)
            raise OperationError(
                f"{host.name} was rebooted, and still: {'; '.join(left)}. {_advice(left)} It is not rebooted again."
            )

    yield work(reboot, "reboot")


def _advice(left: Sequence[str]) -> str:
    if any("not loaded" in reason for reason in left):
        return "See `dmesg | grep -i -e nvidia -e nvrm` (`Key was rejected` means that Secure Boot refused the module)."
    return "See /proc/cmdline, /etc/default/grub.d and /etc/modprobe.d: something else may override them."


def _state_now(
    host: Host, options: Mapping[str, Mapping[str, str | int]]
) -> tuple[KernelStateValue, DriverStateValue, ModuleParametersValue]:
    """Read the same facts again."""
    return (
        read_now(host, KernelState),
        read_now(host, DriverState),
        read_now(host, ModuleParameters, sorted(options)),
    )


def _build_error(host: Host) -> str:
    """Return the compiler's first error in the logs that DKMS keeps of failed builds; empty without one."""
    # A successful build moves its log elsewhere (dkms(8), /var/lib/dkms/MODULE/VERSION/build).
    lines = run(host, "grep -hm1 -e ' error: ' -- /var/lib/dkms/*/*/build/make.log 2>/dev/null").lines
    return lines[0].strip() if lines else ""


def _left_by_last(host: Host) -> set[str]:
    """Return the reasons that remained after a deploy's reboot, if the host was not rebooted since."""
    result = run(host, "cat --", QuoteString(f"{STATE}/{REBOOTED}"), "2>/dev/null")
    try:
        found = from_json("\n".join(result.lines))
        return {*found["left"]} if found["boot"] == _boot_id(host) else set()
    except (ValueError, KeyError, TypeError):
        return set()


def _remember(host: Host, left: Sequence[str]) -> None:
    content = json.dumps({"boot": _boot_id(host), "left": list(left)}).encode()
    place(host, f"{STATE}/{REBOOTED}", content, mode="644", user="root", group="root")


def _boot_id(host: Host) -> str:
    return check(host, BootId().command(), failing=f"could not read the boot ID of {host.name}").lines[0].strip()


def reboot_and_wait(host: Host, timeout: float) -> float:
    """Reboot, wait for another boot ID, and return the seconds that it took. Raises OperationError."""
    before = _boot_id(host)
    run_lock.outlast(host, timeout)
    # With a timer, the command succeeds before the connection is closed.
    check(
        host,
        "systemd-run --quiet --on-active=1 --timer-property=AccuracySec=100ms --",
        *environment.words(),
        "systemctl reboot",
        failing=f"could not reboot {host.name}",
    )
    clear_askpass_cache(host)
    clock = Clock(timeout)
    # Until its sshd is stopped it answers with the old boot ID.
    pause(SHUTDOWN_S)

    def poll() -> float | None:
        try:
            return clock.elapsed_s if try_reconnect(host) and _boot_id(host) != before else None
        except OperationError:
            return None

    if (took := wait_until(host, clock, poll, lambda: f"rebooting: {clock}")) is None:
        raise OperationError(
            f"{host.name} did not come back within {duration(timeout)} (its boot ID was {before}). Check its console; "
            "when it answers again, run the deploy again: it continues from here."
        )
    run_lock.hold_again(host)
    return took


def _wait_for_gpus(host: Host, gpus: int) -> None:
    """Wait until the driver lists `gpus` GPUs: it needs a while after sshd is up."""
    clock, listed = Clock(GPU_TIMEOUT_S), 0

    def poll() -> bool | None:
        nonlocal listed
        listed = len(read_now(host, GpuList))
        return listed >= gpus or None

    if not wait_until(host, clock, poll, lambda: f"{listed} of {gpus} GPUs answer: {clock}"):
        message = run(host, "nvidia-smi -L").message
        raise OperationError(
            f"{host.name} is back, but nvidia-smi lists {listed} of {gpus} GPUs after {clock}: {message}. "
            "See `dmesg | grep -i nvrm`."
        )
