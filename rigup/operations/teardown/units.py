"""Stop what runs: units, mounts, and the kernel with our driver and arguments."""

from __future__ import annotations

from collections.abc import Sequence

from pyinfra.api.command import QuoteString
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.facts.kernel import KernelState
from rigup.ledger import Ledger
from rigup.operations._host import Commands, check, read_now, run, work
from rigup.operations._units import wait_for_leftover
from rigup.operations._wait import say
from rigup.operations.reboot import reboot_and_wait
from rigup.operations.teardown.kept import Kept
from rigup.paths import APT_UNIT
from rigup.text import duration


@operation()
def stopped(ledger: Ledger, mounts: Sequence[str] = (), timeout: float = 3600) -> Commands:
    """Stop and disable all our units but `mounts`.

    If apt still runs for a deploy that was interrupted, wait at most `timeout` seconds for its end: dpkg must not be
    killed.
    """

    def stop(host: Host) -> None:
        wait_for_leftover(host, APT_UNIT, "apt", timeout)
        # Never empty: systemctl would list all units.
        names = [QuoteString(unit) for unit in (*ledger.units, *ledger.commands) if unit not in mounts]
        loaded = "systemctl list-units --all --plain --no-legend --no-pager --full --"
        enabled = "systemctl list-unit-files --plain --no-legend --no-pager --state=enabled --"
        found = [line.split()[0] for line in run(host, loaded, *names).lines if line.strip()]
        found += [line.split()[0] for line in run(host, enabled, *names).lines if line.strip()]
        # rigup's own first: a switch would restart an endpoint that was stopped during it.
        for unit in sorted(dict.fromkeys(found), key=lambda unit: not unit.startswith("rigup-")):
            say(host, f"stopping {unit}")
            run(host, "systemctl disable --quiet --now --", QuoteString(unit))
            check(host, "systemctl stop --", QuoteString(unit), failing=f"could not stop {unit} on {host.name}")
            run(host, "systemctl reset-failed --", QuoteString(unit))
        # The gateways' table; each gateway has removed its own chain when it stopped.
        run(host, "command -v nft && nft delete table inet rigup")

    yield work(stop, "stop units")


@operation()
def unmounted(mounts: Sequence[str]) -> Commands:
    """Unmount the store's own disk, and do not mount it at boot any more."""
    if not mounts:
        host.noop("the store has no disk of its own")
        return

    def unmount(host: Host) -> None:
        for unit in mounts:
            name = QuoteString(unit)
            run(host, "systemctl disable --quiet --", name)
            if run(host, "systemctl is-active --quiet --", name).ok:
                check(host, "systemctl stop --", name, failing=f"could not unmount the store's disk of {host.name}")

    yield work(unmount, "unmount the store")


@operation()
def rebooted(ledger: Ledger, kernel_args: Sequence[str], allowed: bool, timeout: float, kept: Kept) -> Commands:
    """Reboot if the kernel was booted with our arguments, or still has the removed driver loaded."""
    if not ledger.packages and not ledger.files:
        host.noop("no deploy has changed the kernel or the driver")
        return

    def reboot(host: Host) -> None:
        kernel = read_now(host, KernelState)
        why = [f"it was booted with {argument}" for argument in kernel_args if argument in kernel.arguments]
        if run(host, "test -d /sys/module/nvidia").ok and not run(host, "modinfo nvidia >/dev/null 2>&1").ok:
            why.append("the NVIDIA module is loaded")
        if not why:
            return
        if not allowed:
            kept.notes.append(f"until the next reboot: {'; '.join(why)} (the setting `reboot` is `never`)")
            return
        say(host, f"rebooting: {'; '.join(why)}")
        say(host, f"back after {duration(reboot_and_wait(host, timeout))}")

    yield work(reboot, "reboot")
