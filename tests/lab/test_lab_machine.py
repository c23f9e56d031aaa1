"""A lab host is as bare as a fresh cloud image, has its own kernel as far as one can see, and no way out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import machine, network
from lab.host.cgroup import Cgroup
from lab.machine import Host
from lab.mirror.distributions import RELEASES
from lab.settings import KVER, namespace

NAME = "rig8"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=[name for name, each in RELEASES.items() if each.family == "debian"])
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
    host.shell("apt-get update --error-on=any")
    host.shell("DEBIAN_FRONTEND=noninteractive apt-get install -y linux-headers-amd64")
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


def test_a_reset_makes_it_bare_and_keeps_its_ssh_key(host: Host) -> None:
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
    # Labs with other numbers may have a host of this name.
    assert not Path("/run/netns", namespace(NAME)).exists()
    assert not Path("/run/systemd/nspawn/propagate", namespace(NAME)).exists()
    assert network.present()
