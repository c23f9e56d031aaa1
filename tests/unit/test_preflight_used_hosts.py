"""Preflight on hosts that somebody has used before: another Docker, another driver, disks of their own, no IOMMU."""

from __future__ import annotations

import json

import pytest

from rigup.config.settings import Settings
from rigup.facts.docker import OtherContainers
from rigup.facts.hardware import CpuCount, parse_disk_free
from rigup.host_config import docker_store
from rigup.preflight.disk import disk_paths
from tests.captures import capture, recorded
from tests.unit.sample import GIB, lock
from tests.unit.test_preflight import BARE, SERVED, Space, changed, disks, installed, only, problems, warned

PT = list(Settings().kernel_args)


def test_an_iommu_that_is_off_costs_cpus_on_a_large_machine() -> None:
    # 2 EPYC 9575F that were booted with both arguments, and run with 255 CPUs.
    booted = capture("rtx-pro-6000-x8/cmdline.txt").split()
    off = [argument for argument in booted if "iommu" in argument]
    listed = next(line for line in capture("rtx-pro-6000-x8/lscpu.txt").splitlines() if line.startswith("CPU(s):"))
    # As `nproc --all` says it, which counts those that do not run too.
    large = changed(BARE, cpus=CpuCount().process([listed.split()[-1]]))

    problem = only(problems(large, kernel_args=off))
    assert problem.id == "kernel-iommu"
    assert problem.found.startswith("amd_iommu=off iommu=off (`kernel_args`), and 256 CPUs")
    assert "iommu=pt" in problem.remedy
    assert problems(changed(large, kernel_arguments=booted), kernel_args=PT) == []


@pytest.mark.parametrize(("cpus", "refused"), [(254, False), (255, True), (768, True)])
def test_a_smaller_machine_may_turn_its_iommu_off(cpus: int, refused: bool) -> None:
    assert bool(problems(changed(BARE, cpus=cpus), kernel_args=["intel_iommu=off"])) == refused


def test_docker_as_a_snap_is_told_with_what_to_do() -> None:
    problem = only(problems(changed(BARE, foreign=["/snap/bin/docker"])))
    assert (problem.id, "installed as a snap" in problem.found) == ("docker-snap", True)
    assert "`snap remove docker`" in problem.remedy


def test_a_driver_from_a_run_file_is_told_with_what_to_do() -> None:
    problem = only(problems(changed(BARE, foreign=["/usr/bin/nvidia-uninstall"])))
    assert (problem.id, ".run file" in problem.found) == ("driver-run-file", True)
    assert "`nvidia-uninstall` there" in problem.remedy


DEBIANS_DOCKER = ["containerd", "docker-buildx", "docker-cli", "docker.io", "runc"]


def test_debians_docker_is_replaced_unless_a_container_of_others_runs_in_it() -> None:
    idle = changed(BARE, conflicting=DEBIANS_DOCKER, removals=DEBIANS_DOCKER)
    assert problems(idle) == []

    busy = changed(idle, containers=["nextcloud", "pihole"])
    problem = only(problems(busy))
    assert (problem.id, problem.found) == (
        "docker-replaced",
        "Docker CE must replace containerd, docker-buildx, docker-cli, docker.io, runc, which stops running "
        "containers: nextcloud, pihole",
    )
    assert "`replace_docker: true`" in problem.remedy
    assert problems(busy, replace_docker=True) == []


def test_what_apt_would_remove_with_a_replaced_package_is_told_before_anything_is_touched() -> None:
    found = changed(BARE, conflicting=["nvidia-kernel-dkms"], removals=["nvidia-driver", "nvidia-kernel-dkms"])
    problem = only(problems(found))
    assert problem.found == "nvidia-kernel-dkms must be replaced; apt would remove nvidia-driver as well"
    assert "`apt-get remove nvidia-driver` there" in problem.remedy


def test_containers_that_stop_while_docker_or_the_driver_is_installed_are_named_in_a_warning() -> None:
    problem = only(warned(changed(BARE, containers=["pihole"])))
    assert problem.found == "a reboot for the driver and a restart of Docker will stop pihole"
    assert warned(changed(BARE, containers=["pihole"], installed=installed(lock()))) == []


def test_containers_of_rigup_are_not_other_peoples() -> None:
    assert OtherContainers().process(["llm-main\t4f1c", "pihole\t", "nextcloud\t"]) == ["nextcloud", "pihole"]


def test_a_daemon_json_that_cannot_be_merged_into_is_told_before_anything_is_touched() -> None:
    # What nvidia-ctk was given on a real host, readable and not.
    given = {one.before or "" for one in recorded("nvidia-ctk-1.20/transcript.txt") if one.before is not None}
    told = {text: problems(changed(SERVED, daemon_json=text)) for text in (*given, " \n")}
    assert [text for text, found in told.items() if found] == ["{not json"]
    problem = only(told["{not json"])
    assert (problem.id, problem.found.partition(": ")[0]) == (
        "docker-json",
        "/etc/docker/daemon.json is not a JSON object",
    )
    assert only(problems(changed(SERVED, daemon_json="[]"))).found == "/etc/docker/daemon.json is not a JSON object"


# /proc/self/mountinfo, and `df -B1 --output=size,avail,target`, of a host with disks of its own for most things.
MOUNTS = """\
24 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
30 24 259:3 / /usr rw,relatime shared:2 - ext4 /dev/nvme0n1p3 rw
31 24 259:4 / /var rw,relatime shared:3 - ext4 /dev/nvme0n1p4 rw
32 24 259:5 / /data rw,relatime shared:4 - ext4 /dev/nvme1n1 rw
33 24 259:6 / /srv/models rw,relatime shared:5 - xfs /dev/nvme2n1 rw
"""
DF = """\
        1B-blocks         Avail Mounted on
      20000000000   12884901888 /
      40000000000   32212254720 /usr
     100000000000   85899345920 /var
    4000000000000 3221225472000 /data
    2000000000000 1073741824000 /srv/models
"""


def test_every_need_is_counted_on_the_disk_that_it_will_lie_on() -> None:
    daemon = json.dumps({"data-root": "/data/docker"})
    paths = disk_paths(Settings(), docker_store(daemon, None))
    seen = parse_disk_free(paths, [*paths, "--- mounts", *MOUNTS.splitlines(), "--- space", *DF.splitlines()])
    assert [seen[path].mount for path in paths] == ["/usr"] * 3 + ["/srv/models", "/data", "/var", "/"] + ["/var"] * 2
    facts = changed(BARE, daemon_json=daemon, disks=seen)

    assert problems(facts) == []
    low = {"/usr": Space("/usr", 8 * GIB), "/data": Space("/data", GIB)}
    small = {path: low.get(space.mount, space) for path, space in seen.items()}
    found = sorted(problem.found for problem in problems(changed(facts, disks=small)))
    assert found == [
        "/data has 1.0 GiB free and needs 30.8 GiB: 28.8 GiB for image vllm/vllm-openai:cu130-nightly, 2.0 GiB spare",
        "/usr has 8.0 GiB free and needs 16.0 GiB: 4.0 GiB for driver and Docker, 10.0 GiB for cuda-toolkit-13-2, "
        "2.0 GiB spare",
    ]


@pytest.mark.parametrize(
    ("daemon", "containerd", "place"),
    [
        (None, None, "/var/lib/containerd"),
        ('{"data-root": "/data/docker"}', None, "/var/lib/containerd"),
        (None, 'version = 3\nroot = "/data/containerd"\n', "/data/containerd"),
        ('{"data-root": "/data/docker", "features": {"containerd-snapshotter": false}}', None, "/data/docker"),
        ('{"features": {"containerd-snapshotter": false}}', None, "/var/lib/docker"),
        ('{"features": {"cdi": true}}', "root = ", "/var/lib/containerd"),
    ],
)
def test_images_lie_where_dockers_and_containerds_files_say(
    daemon: str | None, containerd: str | None, place: str
) -> None:
    versions = {**installed(lock()), "docker-ce": "5:29.6.1-1~debian.13~trixie"}
    paths = disk_paths(Settings(), docker_store(daemon, containerd))
    room = {path: Space(path, GIB if path == place else 1000 * GIB) for path in paths}
    facts = changed(SERVED, images=(), installed=versions, disks=room, daemon_json=daemon, containerd_toml=containerd)
    assert only(problems(facts)).found.startswith(f"{place} has 1.0 GiB free")


def test_an_older_docker_with_containerds_store_keeps_images_there_too() -> None:
    daemon = '{"features": {"containerd-snapshotter": true}}'
    facts = changed(SERVED, images=(), disks=disks(root=100, docker=100, containerd=10), daemon_json=daemon)
    assert only(problems(facts)).found.startswith("/var/lib/containerd has 10.0 GiB free")


def test_a_store_on_a_bind_mounted_disk_has_that_disks_room() -> None:
    mounts = [
        "24 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw",
        "40 24 259:5 / /data rw,relatime shared:20 - ext4 /dev/nvme1n1 rw",
        "41 24 259:5 /models /srv/models rw,relatime shared:20 - ext4 /dev/nvme1n1 rw",
    ]
    df = ["1B-blocks Avail Mounted on", f"{80 * GIB} {60 * GIB} /", f"{400 * GIB} {390 * GIB} /data"]
    paths = disk_paths(Settings())
    seen = parse_disk_free(paths, [*paths, "--- mounts", *mounts, "--- space", *df])
    assert problems(changed(BARE, disks=seen)) == []


def test_a_read_only_file_system_is_told_before_anything_is_written_to_it() -> None:
    room = {path: Space("/", 1000 * GIB) for path in disk_paths(Settings())}
    facts = changed(BARE, disks={**room, "/srv/models": Space("/srv/models", 1000 * GIB, read_only=True)})
    problem = only(problems(facts))
    assert (problem.id, problem.found) == (
        "disk-read-only",
        "/srv/models is mounted read-only, and checkpoint nvidia/Qwen3.5-397B-A17B-NVFP4 must be written there",
    )
    assert "`mount -o remount,rw /srv/models`" in problem.remedy
    # A store that is complete needs no writing.
    assert problems(changed(facts, stored_bytes=SERVED.disk.stored_bytes)) == []


FLUENTD = '{"log-driver": "fluentd", "log-opts": {"fluentd-address": "tcp://192.0.2.5:24224"}}'


@pytest.mark.parametrize(
    ("daemon", "setting", "refused"),
    [
        (FLUENTD, None, False),
        (FLUENTD, "journald", True),
        (FLUENTD.replace("fluentd-address", "max-size"), "local", True),
        ('{"log-opts": 5}', "journald", False),
        ('{"log-driver": "fluentd"}', "journald", False),
        ('{"log-driver": "journald", "log-opts": {"tag": "x"}}', "journald", False),
        ('{"log-opts": {"max-size": "10m", "max-file": "3"}}', "local", False),
        ('{"log-opts": {"max-size": "10m", "labels": "x"}}', "local", True),
    ],
)
def test_a_chosen_log_driver_that_others_have_options_against_is_told(
    daemon: str, setting: str | None, refused: bool
) -> None:
    found = problems(changed(SERVED, daemon_json=daemon), docker_log_driver=setting)
    assert bool(found) is refused
    if refused:
        assert only(found).id == "docker-log-options"
        assert "/etc/docker/daemon.json has options of the log driver " in found[0].found


HELD = {"docker-ce": "5:27.5.1-1~debian.13~trixie"}


@pytest.mark.parametrize(
    ("held", "told"),
    [
        (HELD, "docker-ce 5:27.5.1-1~debian.13~trixie (to 5:28.5.2-1~debian.13~trixie)"),
        ({"containerd.io": ""}, "containerd.io not installed (to 2.2.6-1)"),
        ({"runc": "1.1.15+ds1-2+b4"}, "runc 1.1.15+ds1-2+b4 (to be removed)"),
        ({"nvidia-driver-pinning-580": "580-1"}, "nvidia-driver-pinning-580 580-1 (to be removed)"),
        ({"libnvidia-ml1": "580.95.05-1"}, "libnvidia-ml1 580.95.05-1 (to 595.71.05)"),
    ],
)
def test_a_package_on_hold_that_the_deploy_changes_is_named(held: dict[str, str], told: str) -> None:
    problem = only(problems(changed(BARE, held=held)))
    assert (problem.id, problem.found) == ("packages-held", f"held packages that this deploy changes: {told}")
    assert f"`apt-mark unhold {' '.join(held)}`" in problem.remedy


def test_packages_on_hold_that_stay_as_they_are_are_nobodys_problem() -> None:
    stay = {
        "docker-ce": "5:28.5.2-1~debian.13~trixie",
        "libnvidia-ml1": "595.71.05-1",
        "nvidia-container-toolkit": "1.20.1-1",
        "linux-image-amd64": "6.12.57-1",
        "podman-docker": "",
        "cuda-toolkit-13-2": "13.2.1-1",
    }
    assert problems(changed(SERVED, held=stay)) == []
    # Another CUDA toolkit than the settings'.
    assert problems(changed(SERVED, held={"cuda-toolkit-12-8": "12.8.1-1"})) == []


def test_several_packages_on_hold_are_one_problem_with_one_command() -> None:
    problem = only(problems(changed(BARE, held={**HELD, "nvidia-kernel-open-dkms": "595.58.03-1"})))
    assert "`apt-mark unhold docker-ce nvidia-kernel-open-dkms` there" in problem.remedy


GRUB = {
    "/etc/default/grub": 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX=""\n',
    "/etc/default/grub.d/50-cloudimg-settings.cfg": 'GRUB_CMDLINE_LINUX_DEFAULT="console=tty1 console=ttyS0"\n',
    "/etc/default/grub.d/90-mine.cfg": 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT mitigations=off"\n',
}
ANEW = {**GRUB, "/etc/default/grub.d/90-mine.cfg": 'GRUB_CMDLINE_LINUX_DEFAULT="mitigations=off iommu=pt"\n'}


def test_a_later_default_file_of_grub_that_drops_our_arguments_is_named() -> None:
    assert problems(changed(BARE, grub_defaults=GRUB)) == []
    problem = only(problems(changed(BARE, grub_defaults=ANEW)))
    assert (problem.id, problem.found) == (
        "kernel-grub-file",
        "/etc/default/grub.d/90-mine.cfg sets GRUB_CMDLINE_LINUX_DEFAULT anew, without pcie_aspm=off pcie_port_pm=off "
        "(`kernel_args`) of /etc/default/grub.d/60-rigup.cfg",
    )
    assert '"$GRUB_CMDLINE_LINUX_DEFAULT "' in problem.remedy
    # In effect by other means.
    assert problems(changed(BARE, grub_defaults=ANEW, kernel_arguments=PT)) == []


def test_a_kernel_without_headers_of_a_known_name_is_told() -> None:
    problem = only(problems(changed(BARE, next_kernel="6.12.9-x64v3-xanmod1")))
    assert problem.id == "kernel-headers-name"
    assert problem.found.startswith("kernel 6.12.9-x64v3-xanmod1, which boots next, is no kernel of Debian 13")
    assert problems(changed(BARE, next_kernel="6.8.12-9-pve")) == []
    assert problems(changed(BARE, next_kernel="6.12.57+deb13-amd64")) == []


MIB = 1 << 20
INITRDS = {"6.12.48+deb13-amd64": 61 * MIB, "6.12.57+deb13-amd64": 64 * MIB}


def room(**mounts: int) -> dict[str, Space]:
    """Plenty of free bytes at the root, and these at mounts of their own; their names have `_` in place of `/`."""
    own = {f"/{name.replace('_', '/')}": free for name, free in mounts.items()}
    paths = {path: Space("/", 2000 * GIB) for path in disk_paths(Settings())}
    return paths | {path: Space(mount, free) for path in paths for mount, free in own.items() if path.startswith(mount)}


def test_a_boot_partition_without_room_for_an_initramfs_is_told_before_anything_is_installed() -> None:
    full = changed(BARE, disks=room(boot=3 * MIB), initrd_bytes=INITRDS)
    problem = only(problems(full))
    assert (problem.id, problem.found) == (
        "disk-space",
        "/boot has 3 MiB free and needs 64 MiB: 64 MiB for a new initramfs",
    )
    assert problem.remedy.startswith("free 61 MiB there") and "autoremove" in problem.remedy
    assert problems(changed(full, disks=room(boot=64 * MIB))) == []
    # The driver is there: nothing is written to /boot.
    assert problems(changed(full, installed=installed(lock()))) == []


def test_a_small_file_system_for_apts_packages_is_told_before_anything_is_downloaded() -> None:
    problem = only(problems(changed(BARE, disks=room(var_cache_apt_archives=500 * MIB))))
    assert problem.found == (
        "/var/cache/apt/archives has 500 MiB free and needs 6.0 GiB: 1.0 GiB for the packages of driver and Docker, "
        "5.0 GiB for the packages of cuda-toolkit-13-2"
    )
    assert problems(changed(BARE, disks=room(var_cache_apt_archives=500 * MIB), installed=installed(lock()))) == []
    assert problems(changed(BARE, disks=room(var_cache_apt_archives=1100 * MIB)), cuda_toolkit="off") == []


def test_packages_count_on_the_disk_of_var_together_with_images() -> None:
    problem = only(problems(changed(BARE, disks=room(var=20 * GIB))))
    assert problem.found == (
        "/var has 20.0 GiB free and needs 37.8 GiB: 28.8 GiB for image vllm/vllm-openai:cu130-nightly, "
        "1.0 GiB for the packages of driver and Docker, 5.0 GiB for the packages of cuda-toolkit-13-2, "
        "1.0 GiB for what DKMS builds, 2.0 GiB spare"
    )
