"""The power supply of one lab host: boots it, boots it again when it reboots, ends when it is switched off.

`python -m lab.supervisor NAME` runs in the background for as long as the host does. SIGTERM cuts the power.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from lab import disks, hardware, kernel
from lab.cgroup import Cgroup
from lab.mirror import engine
from lab.registry import tree
from lab.settings import KVER, STATE, namespace

# What nspawn returns when the host asked for a reboot (systemd-nspawn(1), exit status).
_REBOOT = 133


def directory(host: str) -> Path:
    """Where everything of a host is: its disk `root`, its simulated hardware `hardware`, `host.json`."""
    return STATE / "hosts" / host


def nspawn_argv(host: str) -> list[str]:
    """The command that boots a host from its disk."""
    here = directory(host)
    view = here / "hardware"
    return [
        "systemd-nspawn",
        "--quiet",
        "--boot",
        f"--directory={here / 'root'}",
        f"--machine={host}",
        f"--network-namespace-path=/run/netns/{namespace(host)}",
        "--capability=all",
        # Docker needs these; nspawn's filter leaves them out.
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
        # For engines without a container; made with the image, and only where that was made here.
        *([f"--bind-ro={tree.place()}:{engine.PLACE}"] if tree.place().is_dir() else []),
    ]


def _power_on(host: str) -> None:
    here = directory(host)
    gpus = json.loads((here / "host.json").read_text())["gpus"]
    plugged = hardware.describe(host, gpus)
    booted = kernel.boot(here / "root", plugged, KVER)
    kernel.write(booted, plugged, here / "hardware")
    print(f"{host}: booting; kernel command line: {booted.cmdline}", flush=True)
    for line in booted.log:
        print(f"{host}: kernel: {line}", flush=True)


def run(host: str) -> int:
    """Keep the host running until it powers off or SIGTERM comes; returns nspawn's last exit status."""
    group = Cgroup(host)
    # What a crashed supervisor left behind would hold the disk.
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
            print(f"{host}: nspawn ended with {status}", flush=True)
            if status != _REBOOT:
                return status
            # The next boot shall not meet what the last one left in its group.
            group.kill()
    finally:
        group.remove()


if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))
