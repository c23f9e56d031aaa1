"""A lab host is as bare as a fresh cloud image, has its own kernel as far as one can see, and no way out.

At the end a whole lab comes and goes, and nothing of it is left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import machine, network
from lab.cgroup import Cgroup
from lab.machine import Host
from lab.settings import KVER, NUMBER, RELEASES

NAME = "rig8"
ROOT = Path(__file__).resolve().parents[2]

# A lab of its own, beside that of these tests and those of the other workers.
PASSING = 200 + NUMBER
PASSING_STATE = Path(f"/var/lib/rigup-lab-{PASSING}")


@pytest.fixture(scope="module", params=RELEASES)
def host(services: None, request: pytest.FixtureRequest) -> Iterator[Host]:
    host = machine.get(NAME)
    host.create(machine.Spec(release=request.param))
    machine.write_known_hosts()
    yield host
    host.remove()
    machine.write_known_hosts()


def said(host: Host, command: str) -> str:
    return host.shell(command, check=False).stdout.strip()


def test_it_is_bare(host: Host) -> None:
    assert said(host, "command -v python3 curl wget docker nvidia-smi gcc") == ""
    assert said(host, "cat /proc/swaps | tail -n +2") == ""
    assert said(host, "systemctl is-system-running") == "running"


def test_ops_logs_in_and_becomes_root_without_a_password(host: Host) -> None:
    assert host.ssh("id -un; hostname; sudo -n id -un", "ops").stdout.split() == ["ops", NAME, "root"]
    assert host.ssh("id -un", "root").stdout.strip() == "root"


def test_it_sees_four_cards_and_runs_nouveau(host: Host) -> None:
    assert said(host, "cat /sys/bus/pci/devices/*/device | grep -c 0x2bb1") == "4"
    assert "nouveau" in said(host, "lsmod")
    assert said(host, "ls /proc/driver") == ""


def test_it_has_no_way_out(host: Host) -> None:
    assert "default" not in said(host, "ip route; ip -6 route")
    assert host.shell("timeout 5 bash -c '</dev/tcp/192.0.2.1/80'", check=False).returncode == 1
    assert host.shell("timeout 5 getent hosts deb.debian.org", check=False).returncode == 2


def test_packages_come_through_the_mirror_and_the_kernels_from_the_lab(host: Host) -> None:
    host.shell("apt-get update --error-on=any", timeout=180)
    host.shell("DEBIAN_FRONTEND=noninteractive apt-get install -y linux-headers-amd64", timeout=180)
    assert said(host, "dpkg-query -W -f '${Status}' linux-headers-$(uname -r)") == "install ok installed"
    assert host.shell("test -e /lib/modules/$(uname -r)/build/Makefile").returncode == 0
    assert said(host, "modinfo -k $(uname -r) -F license nouveau") == "GPL"


def test_a_sysctl_applies_here_and_not_to_the_machine_below(host: Host) -> None:
    below = Path("/proc/sys/vm/max_map_count").read_text()
    host.shell("echo vm.max_map_count = 1048576 > /etc/sysctl.d/90-test.conf; sysctl --system")
    assert said(host, "cat /proc/sys/vm/max_map_count") == "1048576"
    host.shell("echo vm.max_map_count = 7 > /etc/sysctl.d/90-test.conf; systemctl restart systemd-sysctl")
    assert said(host, "cat /proc/sys/vm/max_map_count") == "7"
    assert Path("/proc/sys/vm/max_map_count").read_text() == below
    assert host.shell("sysctl -w vm.no_such_key=1", check=False).returncode != 0
    host.shell("sysctl -w net.ipv4.ip_forward=1")


def test_kernel_arguments_modules_and_sysctls_take_effect_at_the_reboot(host: Host) -> None:
    host.shell(
        "mkdir -p /etc/default/grub.d;"
        """echo 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX iommu=pt"' > /etc/default/grub.d/90-test.cfg;"""
        "echo 'blacklist nouveau' > /etc/modprobe.d/test.conf; update-grub; update-initramfs -u"
    )
    assert "iommu=pt" not in said(host, "cat /proc/cmdline")
    before = host.boot_id()
    assert host.reboot() < 30
    assert host.boot_id() != before
    assert said(host, "cat /proc/cmdline") == f"BOOT_IMAGE=/boot/vmlinuz-{KVER} root=/dev/vda1 ro iommu=pt quiet"
    assert "nouveau" not in said(host, "lsmod")
    assert said(host, "cat /proc/sys/vm/max_map_count") == "7"


def test_a_power_cut_is_survived(host: Host) -> None:
    before = host.boot_id()
    host.shell("echo kept > /root/kept; sync")
    host.kill()
    assert host.boot_id() != before
    assert said(host, "cat /root/kept") == "kept"


def test_cards_can_be_pulled(host: Host) -> None:
    host.set_gpus(2)
    assert said(host, "grep -l 0x2bb1 /sys/bus/pci/devices/*/device | wc -l") == "2"


def test_logging_in_changes_no_file_and_a_change_is_seen(host: Host) -> None:
    said(host, "systemctl is-system-running --wait")
    before = host.files()
    host.ssh("sudo -n true", "ops")
    host.ssh("true", "root")
    assert host.files() == before
    host.shell("echo 1 > /etc/modprobe.d/other.conf; chmod 600 /etc/hostname; ln -s /x /srv/link")
    after = host.files()
    assert {name for name in after if after[name] != before.get(name)} == {
        "etc/modprobe.d/other.conf",
        "etc/hostname",
        "srv/link",
    }


def test_a_reset_makes_it_bare_again_with_the_same_ssh_key(host: Host) -> None:
    release = host.spec.release
    host.reset(gpus=4)
    assert host.spec.release == release
    assert not (host.root / "root/kept").exists()
    assert "nouveau" in said(host, "lsmod")
    assert host.ssh("id -un", "ops").stdout.strip() == "ops"


def test_removing_it_leaves_nothing(host: Host) -> None:
    host.remove()
    assert not host.directory.exists()
    assert not Cgroup(NAME).path.exists()
    assert not Path("/run/netns/rigup-rig8").exists()
    assert not Path("/run/systemd/nspawn/propagate/rig8").exists()
    assert network.present()


def lab(*words: str) -> str:
    """Runs Python with these arguments in the passing lab; returns what it printed."""
    mine = {name: value for name, value in os.environ.items() if name != "RIGUP_LAB_STATE"}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**mine, "RIGUP_LAB": str(PASSING)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def traces() -> dict[str, set[str]]:
    """All that this machine shows of the passing lab, by kind; kinds of which there is nothing are left out."""
    links = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, check=True).stdout)
    loops = subprocess.run(["losetup", "--list", "--noheadings", "--output=BACK-FILE"], capture_output=True, text=True)
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    nspawn = Path("/run/systemd/nspawn")
    found = {
        "link": {link["ifname"] for link in links},
        "namespace": {path.name for path in Path("/run/netns").glob("*")},
        "mount": {line.split()[4] for line in mounts},
        "loop device": set(loops.stdout.splitlines()),
        "control group": {str(path) for path in Path("/sys/fs/cgroup").glob("**/rigup-lab*") if path.is_dir()},
        "nspawn": {str(path) for path in nspawn.rglob("*")} if nspawn.exists() else set(),
        "state": {str(path) for path in PASSING_STATE.parent.glob("*")},
    }
    words = (f"rigup{PASSING}", f"rigup-lab-{PASSING}")
    kept = {kind: {name for name in names if any(word in name for word in words)} for kind, names in found.items()}
    kept["process"] = {str(path) for path in Path("/proc").glob("[0-9]*") if _is_of_the_passing_lab(path)}
    return {kind: names for kind, names in kept.items() if names}


def _is_of_the_passing_lab(process: Path) -> bool:
    try:
        environment = (process / "environ").read_bytes().split(b"\0")
        groups = (process / "cgroup").read_text()
    except OSError:
        return False
    return f"RIGUP_LAB={PASSING}".encode() in environment or f"rigup-lab-{PASSING}/" in groups


def test_a_lab_that_is_brought_down_leaves_nothing_behind(services: None) -> None:
    assert traces() == {}
    try:
        lab("-m", "lab", "up", "--hosts", "1")
        lab("-c", "from lab import machine; machine.get('rig1').add_disk('data', 16 << 20)")
        there = traces()
    finally:
        told = lab("-m", "lab", "down")
    assert "the lab is down (1 hosts removed)" in told
    assert set(there) >= {"link", "namespace", "mount", "loop device", "control group", "state", "process"}
    assert traces() == {}
