"""The power supply of one lab host: boots it, boots it again when it reboots, exits when it powers off.

`python -m lab.host.supervisor NAME` runs in the background as long as the host does. SIGTERM cuts the power.
"""

import json
import os
import signal
import subprocess
import sys
from types import FrameType

from lab.host import disks, hardware, kernel, kernel_view
from lab.host.cgroup import Cgroup
from lab.mirror import engine
from lab.mirror.distributions import RELEASES
from lab.registry import tree
from lab.settings import KVER, namespace
from lab.state import host_directory

# What nspawn returns when the host asked for a reboot (systemd-nspawn(1), exit status).
_REBOOT = 133


def nspawn_argv(host: str) -> list[str]:
    """Return the command that boots a host from its disk."""
    here = host_directory(host)
    view = here / "hardware"
    return [
        "systemd-nspawn",
        "--quiet",
        "--boot",
        f"--directory={here / 'root'}",
        # nspawn keeps directories of each machine in /run, and hosts of several labs have the same names.
        f"--machine={namespace(host)}",
        f"--hostname={host}",
        f"--network-namespace-path=/run/netns/{namespace(host)}",
        "--capability=all",
        # Docker needs these; nspawn's filter blocks them.
        "--system-call-filter=add_key keyctl bpf",
        "--bind=/dev/fuse",
        "--register=no",
        "--keep-unit",
        "--console=passive",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        f"--bind-ro={view}:/usr/lib/lab-hardware",
        f"--bind-ro={view / 'pci'}:/sys/bus/pci/devices",
        f"--bind-ro={view / 'module'}:/sys/module",
        *(f"--bind={device}:/dev/disk/by-label/{label}" for label, device in disks.attach(here).items()),
        # For engines without a container; exists only where the image was built.
        *([f"--bind-ro={tree.place()}:{engine.PLACE}"] if tree.place().is_dir() else []),
    ]


def _power_on(host: str) -> None:
    here = host_directory(host)
    spec = json.loads((here / "host.json").read_text())
    plugged = hardware.describe(host, spec["gpus"])
    release = KVER
    if RELEASES[spec["release"]].family == "ubuntu":
        release = kernel.boot_release(here / "root", KVER)
        kernel_view.lend_modules(here / "root", release, KVER)
    booted = kernel.boot(here / "root", plugged, release)
    kernel_view.write(booted, plugged, here / "hardware")
    print(f"{host}: booting; kernel command line: {booted.cmdline}", flush=True)
    for line in booted.log:
        print(f"{host}: kernel: {line}", flush=True)


def run(host: str) -> int:
    """Keep the host running until it powers off or SIGTERM arrives; return nspawn's last exit status."""
    group = Cgroup(host)
    # Processes that a crashed supervisor left behind would keep the disk busy.
    group.remove()
    group.create()
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}

    def cut_power(_signal: int, _frame: FrameType | None) -> None:
        group.remove()
        os._exit(0)

    signal.signal(signal.SIGTERM, cut_power)
    try:
        while True:
            _power_on(host)
            status = subprocess.run(nspawn_argv(host), env=environment, preexec_fn=group.join).returncode
            print(f"{host}: nspawn exited with {status}", flush=True)
            if status != _REBOOT:
                return status
            # The next boot must not find processes of the last one in its group.
            group.kill()
    finally:
        group.remove()


if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))
