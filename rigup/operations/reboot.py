"""A reboot when, and only when, the host's state asks for one; proven by the boot id, and never twice in a row."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence

from pyinfra.api.command import FunctionCommand, QuoteString
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.api.state import StateStage
from pyinfra.connectors.util import clear_askpass_cache
from pyinfra.context import host, state

from rigup import ledger
from rigup.facts.kernel import (
    BootId,
    BootMenu,
    KernelState,
    KernelStateValue,
    ModuleParameters,
    ModuleParametersValue,
    parse_boot_menu,
    parse_kernel_state,
    parse_module_parameters,
)
from rigup.facts.nvidia import DriverState, DriverStateValue, GpuList, parse_driver_state, parse_gpu_list
from rigup.facts.units import ActiveUnits, parse_active_units
from rigup.operations._host import Clock, check, duration, pause, run, say, try_reconnect, work
from rigup.operations.files import place
from rigup.operations.systemd import SERVING

__all__ = ["obstacles", "reasons", "reboot_and_wait", "when_needed"]

Commands = Generator[FunctionCommand, None, None]

GPU_PATIENCE_S = 300
SHUTDOWN_S = 3.0
# In the ledger's room: what a reboot did not change.
REBOOTED = "rebooted.json"


def reasons(
    kernel: KernelStateValue,
    driver: DriverStateValue,
    parameters: ModuleParametersValue,
    kernel_args: Sequence[str] = (),
    modprobe_options: Mapping[str, Mapping[str, str | int]] | None = None,
    leaving: Sequence[str] = (),
) -> list[str]:
    """Why this host must be rebooted before what is on its disks is also what runs. `leaving` are former arguments."""
    found = newer_kernel(kernel)
    if missing := [argument for argument in kernel_args if argument not in kernel.arguments]:
        found.append(f"the kernel was booted without {' '.join(missing)}")
    if staying := [argument for argument in leaving if argument in kernel.arguments]:
        found.append(f"the kernel was booted with {' '.join(staying)}, which the settings no longer have")
    on_disk = driver.on_disk.get(kernel.newest) or driver.on_disk.get(kernel.release)
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
    """That reason for a reboot which can wait: all that a deploy needs runs with the present kernel too."""
    return [] if kernel.release == kernel.newest else [f"kernel {kernel.newest} is installed, {kernel.release} runs"]


def obstacles(
    kernel: KernelStateValue,
    driver: DriverStateValue,
    menu: Sequence[Sequence[str]] = (),
    kernel_args: Sequence[str] = (),
) -> list[str]:
    """Why a reboot would leave the host without GPUs, without a boot, or as it is: what must be mended first.

    `menu` has the arguments of each entry of GRUB's menu; empty where that is unknown.
    """
    found = []
    lost = [argument for argument in kernel_args if not any(argument in entry for entry in menu)] if menu else []
    if missing := [argument for argument in lost if argument not in kernel.arguments]:
        found.append(
            f"GRUB's menu, /boot/grub/grub.cfg, has no entry with {' '.join(missing)}: something in "
            "/etc/default/grub.d overrules 60-rigup.cfg, or another program than `update-grub` makes the menu"
        )
    if kernel.newest not in driver.on_disk:
        found.append(
            f"there is no NVIDIA module for kernel {kernel.newest}, which boots next: see `dkms status` and install "
            f"linux-headers-{kernel.newest}"
        )
    if kernel.installed and kernel.initrds and kernel.newest not in kernel.initrds:
        found.append(f"kernel {kernel.newest} has no initrd in /boot: run `update-initramfs -c -k {kernel.newest}`")
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
    """Reboot the host if what is on its disks is not what runs, and wait until its GPUs answer.

    + kernel_args: arguments that the kernel must have been booted with
    + modprobe_options: `{module: {option: value}}` that must be in effect
    + former_args: arguments of an earlier deploy that must no longer be in effect, unless others have them in GRUB
    + gpus: how many GPUs `nvidia-smi -L` must list afterwards
    + allowed: whether to reboot; if not, a needed reboot is an error that says why it is needed
    + while_serving: whether to reboot under an endpoint that is serving
    + timeout: seconds until the host must be back (servers with many GPUs take many minutes in their firmware)

    A reboot that does not help is an error, and no later deploy tries it again for the same reasons. One for a newer
    kernel alone waits until nothing serves; that it is due is said.
    """
    options = modprobe_options or {}
    kernel: KernelStateValue = host.get_fact(KernelState)
    leaving = [argument for argument in former_args if argument in kernel.arguments]
    if leaving:
        menu: list[list[str]] = host.get_fact(BootMenu)
        leaving = [argument for argument in leaving if menu and not any(argument in entry for entry in menu)]
    why = reasons(
        kernel,
        host.get_fact(DriverState),
        host.get_fact(ModuleParameters, modules=sorted(options)),
        kernel_args,
        options,
        leaving,
    )
    if not why:
        host.noop("what is installed is what runs")
        return
    if why == newer_kernel(kernel) and not while_serving and (serving := host.get_fact(ActiveUnits, pattern=SERVING)):
        due = f"a reboot is due ({why[0]}): it waits until {', '.join(serving)} does not serve"
        host.noop(due)
        if state.current_stage is StateStage.Execute:
            say(host, due)
        return

    def reboot(host: Host) -> None:
        kernel, driver, _ = _look(host, options)
        listed = "; ".join(why)
        menu = parse_boot_menu(list(run(host, BootMenu().command()).lines))
        if blocking := obstacles(kernel, driver, menu, kernel_args):
            raise OperationError(f"{host.name} needs a reboot ({listed}), but {'; '.join(blocking)}. Then run again.")
        if not allowed:
            raise OperationError(
                f"{host.name} needs a reboot ({listed}), and the setting `reboot` is `never`. Reboot it yourself, or "
                "set `reboot: when-needed`, and run again."
            )
        serving = parse_active_units(list(run(host, ActiveUnits().command(SERVING)).lines))
        if serving and not while_serving:
            raise OperationError(
                f"{host.name} needs a reboot ({listed}), but {', '.join(serving)} is serving. When that may stop, run "
                f"`systemctl stop {' '.join(serving)}` there, and deploy again."
            )
        if set(why) <= _left_by_last(host):
            raise OperationError(
                f"{host.name} was rebooted by an earlier deploy, and still: {listed}. {_advice(why)} It is not "
                "rebooted again for that: mend it, reboot the host yourself, and deploy again."
            )
        say(host, f"rebooting: {listed}")
        took = reboot_and_wait(host, timeout)
        say(host, f"back after {duration(took)}")
        _wait_for_gpus(host, gpus)
        if left := reasons(*_look(host, options), kernel_args, options, leaving):
            _remember(host, left)
            raise OperationError(
                f"{host.name} was rebooted, and still: {'; '.join(left)}. {_advice(left)} It is not rebooted again."
            )

    yield work(reboot, "reboot")


def _advice(left: Sequence[str]) -> str:
    if any("not loaded" in reason for reason in left):
        return "See `dmesg | grep -i -e nvidia -e nvrm` (a module refused by Secure Boot says `Key was rejected`)."
    return "See /proc/cmdline, /etc/default/grub.d and /etc/modprobe.d: something else may overrule them."


def _look(
    host: Host, options: Mapping[str, Mapping[str, str | int]]
) -> tuple[KernelStateValue, DriverStateValue, ModuleParametersValue]:
    """The same readings as the facts, taken now."""
    return (
        parse_kernel_state(list(run(host, KernelState().command()).lines)),
        parse_driver_state(list(run(host, DriverState().command()).lines)),
        parse_module_parameters(list(run(host, ModuleParameters().command(sorted(options))).lines)),
    )


def _left_by_last(host: Host) -> set[str]:
    """The reasons that remained after a deploy's reboot, where that was the last one."""
    answer = run(host, "cat --", QuoteString(f"{ledger.ROOM}/{REBOOTED}"), "2>/dev/null")
    try:
        found = json.loads("\n".join(answer.lines))
        return {*found["left"]} if found["boot"] == _boot_id(host) else set()
    except (ValueError, KeyError, TypeError):
        return set()


def _remember(host: Host, left: Sequence[str]) -> None:
    content = json.dumps({"boot": _boot_id(host), "left": list(left)}).encode()
    place(host, f"{ledger.ROOM}/{REBOOTED}", content, mode="644", user="root", group="root")


def _boot_id(host: Host) -> str:
    return check(host, BootId().command(), failing=f"could not read the boot id of {host.name}").lines[0].strip()


def reboot_and_wait(host: Host, timeout: float) -> float:
    """Reboot and wait for another boot id; returns the seconds it took. Raises OperationError."""
    before = _boot_id(host)
    # A timer of its own: the order is taken and answered before the connection goes.
    check(
        host,
        "systemd-run --quiet --on-active=1 --timer-property=AccuracySec=100ms systemctl reboot",
        failing=f"{host.name} did not take the order to reboot",
    )
    clear_askpass_cache(host)
    clock = Clock(timeout)
    # It answers until its sshd is stopped; asking it meanwhile tells nothing.
    pause(SHUTDOWN_S)
    while not clock.is_up:
        clock.nap()
        if clock.is_due():
            say(host, f"rebooting: {clock}")
        try:
            if try_reconnect(host) and _boot_id(host) != before:
                return clock.elapsed_s
        except OperationError:
            continue
    raise OperationError(
        f"{host.name} did not come back within {duration(timeout)} (its boot id was {before}). See its console; when "
        "it answers again, run the deploy again: it goes on from here."
    )


def _wait_for_gpus(host: Host, gpus: int) -> None:
    """Wait until the driver lists as many GPUs as there must be: it needs a while after sshd is up."""
    clock = Clock(GPU_PATIENCE_S)
    listed = -1
    while listed < gpus:
        answer = run(host, GpuList().command())
        listed = len(parse_gpu_list(list(answer.lines)))
        if listed >= gpus:
            return
        if clock.is_up:
            said = run(host, "nvidia-smi -L").complaint
            raise OperationError(
                f"{host.name} is back, but nvidia-smi lists {listed} of {gpus} GPUs after {clock}: {said}. "
                "See `dmesg | grep -i nvrm`."
            )
        if clock.is_due():
            say(host, f"{listed} of {gpus} GPUs answer: {clock}")
        clock.nap()
