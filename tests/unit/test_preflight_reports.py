"""Hosts that people reported in public, as docs/contributing/reports.md lists them: preflight names what is in the way.

Each input goes through the fact that reads it, so that a line of the report decides what is said.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from rigup.config.settings import Settings
from rigup.facts.docker import DockerdFlags
from rigup.facts.hardware import BoundDrivers, DiskFree, SecureBoot
from rigup.facts.kernel import DisabledModules, parse_kernel_state
from rigup.facts.packages import AptErrors, BrokenPackages, FailedBuilds
from rigup.facts.system import Container
from rigup.host_config import docker_store, dockerd_flags
from rigup.operations._apt_get import ENVIRONMENT
from rigup.preflight.disk import disk_paths
from tests.unit.sample import GIB
from tests.unit.test_preflight import BARE, CARDS, SERVED, Space, changed, only, problems

DROP_IN = "/etc/systemd/system/docker.service.d/override.conf"


def flags(*lines: str) -> dict[str, str]:
    """The flags of a unit whose drop-in has these lines."""
    return DockerdFlags().process([f"{DROP_IN}:{line}" for line in ("[Service]", "ExecStart=", *lines)])


# Docker's unit and daemon.json


def test_a_runtime_that_the_unit_names_is_merged_with_the_one_in_daemon_json() -> None:
    # NVIDIA/nvidia-docker issue 761.
    found = flags("ExecStart=/usr/bin/dockerd --host=fd:// --add-runtime=nvidia=/usr/bin/nvidia-container-runtime")
    assert found == {"hosts": "fd://", "runtimes": "nvidia=/usr/bin/nvidia-container-runtime"}
    assert problems(changed(BARE, dockerd_flags=found)) == []


@pytest.mark.parametrize(
    ("line", "daemon", "told"),
    [
        ("/usr/bin/dockerd -H fd:// --log-driver=journald", "{}", "log-driver (journald)"),
        ("/usr/bin/dockerd --log-driver journald -H fd://", "{}", "log-driver (journald)"),
        # The key stays away where the file has options of another driver.
        ("/usr/bin/dockerd --log-driver=journald", '{"log-opts": {"tag": "x"}}', None),
        ("-/usr/bin/dockerd -H fd:// \\", '{"debug": true}', None),
        ("/usr/bin/dockerd -D", '{"debug": true}', "debug ()"),
        ("/usr/bin/dockerd --registry-mirror=http://m", '{"registry-mirrors": []}', "registry-mirrors (http://m)"),
        ("/usr/bin/dockerd -H tcp://0.0.0.0:2375", '{"hosts": ["fd://"]}', "hosts (tcp://0.0.0.0:2375)"),
        ("/usr/bin/dockerd", '{"hosts": ["fd://"]}', None),
        ("/usr/bin/dockerd --log-driver=journald", "[]", "/etc/docker/daemon.json is not a JSON object"),
    ],
)
def test_a_flag_beside_its_key_in_daemon_json_is_told_before_docker_stops(
    line: str, daemon: str, told: str | None
) -> None:
    facts = changed(BARE, daemon_json=daemon, dockerd_flags=flags(f"ExecStart={line}"))
    found = [problem.found for problem in problems(facts)]
    assert [told in each for each in found if told] == [True] * (told is not None)
    assert bool(found) is (told is not None)


def test_hosts_in_daemon_json_beside_dockers_own_unit_is_told() -> None:
    problem = only(problems(changed(BARE, daemon_json='{"hosts": ["tcp://10.0.0.1:2375"]}', dockerd_flags=flags())))
    assert (problem.id, "hosts (fd://)" in problem.found) == ("docker-flags", True)


def test_a_unit_of_the_owners_counts_before_the_packages_and_drop_ins_after_both() -> None:
    texts = {
        "/lib/systemd/system/docker.service": "ExecStart=/usr/bin/dockerd -H fd://\n",
        "/etc/systemd/system/docker.service": "[Service]\nExecStart=/usr/bin/dockerd \\\n  -g /data/docker\n",
    }
    assert dockerd_flags(texts) == {"data-root": "/data/docker"}
    assert dockerd_flags({**texts, DROP_IN: "ExecStart=\nExecStart=/usr/bin/dockerd\n"}) == {}
    assert docker_store("{}", None, dockerd_flags(texts)).data == "/data/docker"


# apt


def test_two_keys_for_a_repository_of_the_deploy_are_no_problem_and_for_another_one_are() -> None:
    # docker/for-linux issue 1349.
    said = [
        "E: Conflicting values set for option Signed-By regarding source https://download.docker.com/linux/debian/ "
        "trixie: /etc/apt/keyrings/docker.gpg != /usr/share/keyrings/docker-archive-keyring.gpg",
        "E: The list of sources could not be read.",
    ]
    sources = {"/etc/apt/sources.list.d/docker.list": {"https://download.docker.com/linux/debian"}}
    assert problems(changed(BARE, apt_errors=AptErrors().process(said), apt_sources=sources)) == []

    theirs = [said[0].replace("download.docker.com", "dl.winehq.org"), said[1]]
    problem = only(problems(changed(BARE, apt_errors=AptErrors().process(theirs))))
    assert (problem.id, "https://dl.winehq.org/linux/debian/ trixie" in problem.found) == ("apt-refuses", True)
    malformed = AptErrors().process(
        ["E: Malformed entry 1 in list file /etc/apt/sources.list.d/x.list (Suite)", said[1]]
    )
    assert "x.list" in only(problems(changed(BARE, apt_errors=malformed))).found


def test_nobody_is_asked_about_bugs_and_changes_of_packages() -> None:
    # ronivay/XenOrchestraInstallerUpdater issue 258.
    assert {ENVIRONMENT[f"APT_{name}_FRONTEND"] for name in ("LISTBUGS", "LISTCHANGES")} == {"none"}


def test_a_module_of_others_that_dkms_cannot_build_is_named_with_what_it_keeps_unconfigured() -> None:
    # ElvishArtisan/rivendell issue 890.
    built = FailedBuilds().process(["/var/lib/dkms/asihpi/4.20.39/build/make.log"])
    left = BrokenPackages().process(["iF \tlinux-headers-6.1.0-10-amd64", "iU \tlinux-headers-amd64"]).packages
    problem = only(problems(changed(BARE, failed_builds=built, unconfigured=left)))
    assert (problem.id, problem.found) == (
        "packages-unconfigured",
        "linux-headers-6.1.0-10-amd64, linux-headers-amd64 could not be configured, as DKMS cannot build "
        "asihpi 4.20.39",
    )
    # What a deploy of ours left is finished by the next, and a log alone stops nothing.
    ours = FailedBuilds().process(["/var/lib/dkms/nvidia/595.71.05/build/make.log"])
    assert problems(changed(BARE, failed_builds=ours, unconfigured=left)) == []
    assert problems(changed(BARE, failed_builds=built)) == []


# The machine


@pytest.mark.parametrize(
    ("said", "refused"), [("lxc", True), ("wsl", True), ("none", False), ("systemd-nspawn", False)]
)
def test_a_container_is_told_that_the_driver_is_its_hosts(said: str, refused: bool) -> None:
    # canonical/lxd issue 5415.
    found = problems(changed(BARE, container=Container().process([said])))
    assert [each.id for each in found] == ["system-container"] * refused


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        # Witko/nvidia-xrun issue 122, canonical/nvidia-prime issue 20.
        ("install nvidia /bin/false", True),
        ("alias nvidia off", True),
        ("  install nvidia-uvm   /usr/bin/true # later", True),
        ("install nvidia_uvm true", True),
        ("alias nvidia-drm off", False),
        ("alias nvidia-current nvidia", False),
        ("install nvidia modprobe --ignore-install nvidia-current $CMDLINE_OPTS", False),
        ("install nvidia", False),
    ],
)
def test_a_line_of_modprobe_that_keeps_the_driver_from_loading_is_named(line: str, refused: bool) -> None:
    path = "/etc/modprobe.d/blacklist-nvidia.conf"
    found = problems(changed(BARE, disabled_modules=DisabledModules().process([f"{path}:{line}"])))
    assert [(each.id, path in each.found) for each in found] == [("driver-disabled", True)] * refused


def test_an_argument_of_the_kernel_that_keeps_the_driver_from_loading_is_named() -> None:
    facts = changed(BARE, kernel_arguments=("quiet", "module_blacklist=nouveau,nvidia"))
    assert "`module_blacklist=nouveau,nvidia`" in only(problems(facts)).found
    assert problems(changed(BARE, kernel_arguments=("module_blacklist=nouveau", "modprobe.blacklist=nvidia"))) == []


def test_gpus_that_are_kept_for_virtual_machines_are_one_problem() -> None:
    # NVIDIA/kubevirt-gpu-device-plugin issue 45.
    links = [f"/sys/bus/pci/devices/{card.address} ../../../../bus/pci/drivers/vfio-pci" for card in CARDS[:2]]
    links += [f"/sys/bus/pci/devices/{CARDS[2].address} ../../../../bus/pci/drivers/nvidia"]
    problem = only(problems(changed(BARE, bound=BoundDrivers().process(links))))
    assert (problem.id, problem.found) == (
        "gpus-bound",
        "vfio-pci has the GPU at 0000:21:00.0, 0000:41:00.0: NVIDIA's driver cannot use it",
    )


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        (["   1", "SecureBoot enabled", "/var/lib/dkms/mok.pub is not enrolled"], True),
        (["   1", "SecureBoot enabled", "/var/lib/dkms/mok.pub is already in the enrollment request"], True),
        (["   1", "SecureBoot enabled", "/var/lib/dkms/mok.pub is already in db"], False),
        (["   1", "sh: 1: mokutil: not found"], True),
        # NVIDIA/gds-nvidia-fs issue 81: the driver is signed with a key that the owner has enrolled.
        (["   1", "SecureBoot enabled", "/var/lib/dkms/mok.pub is already enrolled"], False),
        (["   1", "SecureBoot enabled", "/var/lib/shim-signed/mok/MOK.der is already enrolled"], False),
        (["   1", "SecureBoot enabled", "SecureBoot validation is disabled in shim"], False),
        (["   0", "SecureBoot disabled"], False),
        (["EFI variables are not supported on this system"], False),
    ],
)
def test_secure_boot_is_in_the_way_only_where_it_does_not_know_dkms_key(said: list[str], refused: bool) -> None:
    found = problems(changed(BARE, secure_boot=SecureBoot().process(said)))
    assert [each.id for each in found] == ["firmware-secure-boot"] * refused


def test_a_machine_that_systemd_boot_starts_gets_no_arguments_from_an_installed_grub() -> None:
    # wvthoog/proxmox-vgpu-installer issue 11.
    entry = json.dumps([{"version": "6.8.12-4-pve", "options": "root=ZFS=rpool/ROOT/pve-1", "isDefault": True}])
    menu = ["--- environment", "", "--- menu"]
    lines = ["6.8.12-4-pve", "root=ZFS=rpool/ROOT/pve-1 boot=zfs", "--- next", "--- entries", "systemd-boot", entry]
    assert parse_kernel_state([*lines, *menu]).systemd_boot
    assert not parse_kernel_state([*lines[:4], *menu]).systemd_boot
    problem = only(problems(changed(BARE, uses_grub=False)))
    assert "proxmox-boot-tool refresh" in problem.remedy


def seen(files: str, path: str) -> dict[str, Any]:
    """What is read of a host on which `path` is a file system with this row of `df` about its inodes."""
    fact, paths = DiskFree(), disk_paths(Settings())
    fact.command(paths)
    mounts = ["24 1 259:2 / / rw - ext4 /dev/a rw", f"30 24 259:3 / {path} rw - ext4 /dev/b rw"]
    space = ["--- space", "1B Avail Mounted on", f"{3000 * GIB} {2000 * GIB} /", f"{200 * GIB} {100 * GIB} {path}"]
    inodes = ["--- files", "IFree Inodes Mounted on", *([f"{files} {path}"] if files else [])]
    return {"disks": fact.process([*paths, "--- mounts", *mounts, *space, *inodes])}


def test_a_disk_without_inodes_is_told_although_it_has_space() -> None:
    # moby/moby issue 10613.
    where = docker_store(None, None).data
    problem = only(problems(changed(BARE, **seen("2000", where))))
    assert (problem.id, problem.found) == (
        "disk-inodes",
        "/var/lib/docker can have 2000 more files (`df -i`) and needs about 150000: "
        "image vllm/vllm-openai:cu130-nightly",
    )
    assert problems(changed(BARE, **seen("12345678", where))) == []
    # Btrfs, XFS without a limit and vfat have no row.
    assert problems(changed(BARE, **seen("", where))) == []
    assert (
        problems(changed(SERVED, disks={path: replace(Space("/", GIB), files=0) for path in disk_paths(Settings())}))
        == []
    )
