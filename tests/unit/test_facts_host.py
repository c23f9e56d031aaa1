"""What a host is and has: parsers on literal output, and every fact's command on a machine that has next to nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api.command import StringCommand
from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.facts import FactBase

from rigup.facts.dkms import DkmsBuilds, parse_builds
from rigup.facts.docker import DockerdFlags, ImageDigests, parse_image_digests
from rigup.facts.files import FileInfo, FileText
from rigup.facts.hardware import (
    BoundDrivers,
    CpuCount,
    DiskFree,
    DiskSpace,
    FileSystemLabels,
    FileSystems,
    Mount,
    PciDevices,
    SecureBoot,
    Slots,
    mount_of,
    parse_mounts,
)
from rigup.facts.journal import (
    DriverReport,
    FullDisks,
    JournalLine,
    KernelErrors,
    UnitJournal,
    Xid,
    Xids,
    parse_full_disks,
    parse_journal,
    parse_xids,
)
from rigup.facts.kernel import (
    BootId,
    DisabledModules,
    GrubDefaults,
    InitrdSizes,
    KernelState,
    ModuleParameters,
    parse_kernel_state,
)
from rigup.facts.network import (
    HostProxies,
    Listener,
    ListeningPorts,
    Reachability,
    Reachable,
    parse_listeners,
    parse_reachability,
)
from rigup.facts.nvidia import Cards, CdiDevices, DriverState, GpuList, GpuUse
from rigup.facts.packages import (
    AptErrors,
    AptSources,
    AptVersions,
    BrokenPackages,
    FailedBuilds,
    HeldPackages,
    InstalledVersions,
    parse_apt_sources,
    parse_apt_versions,
    parse_broken_packages,
    parse_installed_versions,
)
from rigup.facts.serving import Loads, ModelStamp, Verification
from rigup.facts.store import FetchProgress, FileSizes
from rigup.facts.system import (
    Architecture,
    Container,
    InitSystem,
    MemoryTotal,
    OsRelease,
    Privilege,
    parse_meminfo,
    parse_os_release,
)
from rigup.facts.units import (
    ActiveUnits,
    ProcessCommand,
    UnitState,
    UnitStateValue,
    Work,
    Works,
    parse_active_units,
    parse_unit_state,
    parse_works,
    with_builds,
)
from tests.captures import section
from tests.unit.host_world import FILES
from tests.unit.own_address import OWN_ADDRESS, black_hole
from tests.unit.waiting import HANG_S

# A fresh minimal Debian has these; it has no python3, curl, nvidia-smi, docker or lspci.
ESSENTIAL = ("bash", "cat", "df", "find", "grep", "id", "ls", "nproc", "od", "readlink", "sed", "sh")
ESSENTIAL += ("getent", "sha256sum", "stat", "timeout", "tr", "true", "uname", "xargs")

ALL_FACTS: list[tuple[type[FactBase[Any]], dict[str, Any]]] = [
    (ActiveUnits, {"pattern": "llm@*.service"}),
    (AptVersions, {"names": ["curl"]}),
    (AptSources, {}),
    (Architecture, {}),
    (BootId, {}),
    (BrokenPackages, {}),
    (CdiDevices, {}),
    (Cards, {}),
    (CpuCount, {}),
    (DiskFree, {"paths": ["/", "/srv/models/not/there"]}),
    (DkmsBuilds, {}),
    (DriverReport, {}),
    (DriverState, {}),
    (FileInfo, {"path": "/not/there"}),
    (FileSizes, {"directory": "/not/there", "names": ["x"]}),
    (FileSystemLabels, {}),
    (FileSystems, {}),
    (FileText, {"path": "/not/there"}),
    (FullDisks, {}),
    (GpuList, {}),
    (GpuUse, {}),
    (GrubDefaults, {}),
    (HeldPackages, {}),
    (HostProxies, {}),
    (ImageDigests, {}),
    (InitrdSizes, {}),
    (InitSystem, {}),
    (InstalledVersions, {"names": ["curl"]}),
    (KernelErrors, {}),
    (KernelState, {}),
    (ListeningPorts, {}),
    (Loads, {}),
    (MemoryTotal, {}),
    (ModelStamp, {"path": "/not/there"}),
    (FetchProgress, {"instance": "o--n--c5c90ef5aaa1"}),
    (ModuleParameters, {"modules": ["nvidia_uvm"]}),
    (OsRelease, {}),
    (PciDevices, {}),
    (Privilege, {}),
    (ProcessCommand, {"pid": 999999999}),
    (Verification, {"path": "/not/there", "unit": "docker.service"}),
    (Reachable, {"address": "127.0.0.1", "port": 1}),
    (AptErrors, {}),
    (BoundDrivers, {"addresses": ["0000:99:00.0"]}),
    (BoundDrivers, {"addresses": []}),
    (Container, {}),
    (DisabledModules, {}),
    (DockerdFlags, {}),
    (FailedBuilds, {}),
    (SecureBoot, {}),
    (Slots, {"addresses": ["0000:99:00.0"]}),
    (UnitJournal, {"unit": "docker.service"}),
    (UnitState, {"unit": "docker.service", "inputs": ["/not/there"]}),
    (Works, {}),
    (Xids, {}),
]


def read(fact: type[FactBase[Any]], programs: str, /, **arguments: Any) -> Any:
    """What pyinfra would make of the fact on this machine, with only the programs in those directories."""
    instance = fact()
    command: str | StringCommand = instance.command(**arguments)  # type: ignore[assignment]
    text = command if isinstance(command, str) else command.get_raw_value()
    answer = subprocess.run(
        ["/bin/sh", "-c", text], capture_output=True, text=True, env={"PATH": programs}, timeout=HANG_S
    )
    assert answer.returncode == 0, f"{text}\n{answer.stderr}"
    lines = answer.stdout.splitlines()
    return instance.process(lines) if lines else instance.default()


@pytest.fixture
def bare_path(tmp_path: Path) -> str:
    for name in ESSENTIAL:
        found = shutil.which(name)
        assert found, name
        (tmp_path / name).symlink_to(found)
    return str(tmp_path)


@pytest.mark.parametrize(("fact", "arguments"), ALL_FACTS, ids=lambda value: getattr(value, "__name__", ""))
def test_no_fact_fails_on_a_bare_host(fact: type[FactBase[Any]], arguments: dict[str, Any], bare_path: str) -> None:
    read(fact, bare_path, **arguments)


def test_what_a_bare_host_lacks_reads_as_nothing(bare_path: str) -> None:
    assert read(GpuList, bare_path) == []
    assert read(CdiDevices, bare_path) == []
    assert read(ImageDigests, bare_path) == frozenset()
    assert read(InstalledVersions, bare_path, names=["curl"]) == {}
    assert not read(BrokenPackages, bare_path)
    assert read(UnitState, bare_path, unit="docker.service") == UnitStateValue()
    assert not read(ModelStamp, bare_path, path="/not/there").complete
    assert not read(Verification, bare_path, path="/not/there", unit="docker.service").holds("")
    assert read(FileText, bare_path, path="/not/there") is None
    assert read(FileInfo, bare_path, path="/not/there") is None
    assert read(Reachable, bare_path, address="127.0.0.1", port=1) == Reachability(False, "Connection refused")


def test_the_journals_lines_have_their_time_and_systemds_its_name() -> None:
    lines = """\
1764590000.100000 rig1 systemd[1]: Starting llm@main.service - vllm-nvfp4-cu130 as main...
1764590001.200000 rig1 docker[4711]: (APIServer pid=1) INFO 11-23 20:56:02 [api_server.py:1351] vLLM API server
                                     second line
1764590099.500000 rig1 kernel: NVRM: Xid (PCI:0000:41:00): 79, pid=4711""".splitlines()
    assert parse_journal(lines) == [
        JournalLine(1764590000.1, "systemd[1]: Starting llm@main.service - vllm-nvfp4-cu130 as main..."),
        JournalLine(1764590001.2, "(APIServer pid=1) INFO 11-23 20:56:02 [api_server.py:1351] vLLM API server"),
        JournalLine(1764590001.2, "second line"),
        JournalLine(1764590099.5, "NVRM: Xid (PCI:0000:41:00): 79, pid=4711"),
    ]
    assert parse_journal(["-- No entries --"]) == []


def test_errors_of_cards_are_counted_by_card_and_number() -> None:
    lines = """\
1764590099.500000 rig1 kernel: NVRM: Xid (PCI:0000:41:00): 79, pid=4711, name=VLLM, GPU has fallen off the bus.
1764590100.500000 rig1 kernel: NVRM: GPU 0000:41:00.0: GPU has fallen off the bus.
1764590101.500000 rig1 kernel: NVRM: Xid (PCI:0000:DC:00): 45, pid=1818990, name=python3, Ch 00000001
1764590102.500000 rig1 kernel: NVRM: Xid (PCI:0000:41:00): 154, GPU recovery action changed from 0x0 (None) to 0x1
1764590103.500000 rig1 kernel: NVRM: Xid (PCI:0000:41:00): 79, pid='<unknown>', name=<unknown>""".splitlines()
    assert parse_xids(lines) == [
        Xid("0000:41:00.0", 79, 2, 1764590103.5),
        Xid("0000:41:00.0", 154, 1, 1764590102.5),
        Xid("0000:dc:00.0", 45, 1, 1764590101.5),
    ]
    assert parse_xids(["-- No entries --"]) == []


def test_a_file_system_without_space_is_full_unless_it_always_is() -> None:
    full = "/dev/nvme1n1   3750738264 3750738264         0     100% /srv/models"
    shared = "tmpfs            65781572   65781572         0     100% /dev/shm"
    lines = [
        "Filesystem     1024-blocks      Used Available Capacity Mounted on",
        "/dev/nvme0n1p2   959786032 123456789 787511104      14% /",
        "/dev/loop3           65536     65536         0     100% /snap/core/1",
        "tmpfs                    0         0         0       0% /sys/fs/cgroup",
        full,
        shared,
    ]
    assert parse_full_disks(lines) == [full, shared]


def test_a_reading_that_makes_no_sense_fails_one_host_only() -> None:
    with pytest.raises(FactProcessError, match="unexpected output"):
        MemoryTotal().process(["MemFree: 1 kB"])


def test_file_systems_are_those_that_say_their_size() -> None:
    output = """\
     1B-blocks         Avail Mounted on
  982141440000  806215680000 /
             -             - /proc/somewhere
 3840755982336 3840000000000 /my models
"""
    found = FileSystems().process(output.splitlines())
    assert found == [
        DiskSpace("/", 982141440000, 806215680000),
        DiskSpace("/my models", 3840755982336, 3840000000000),
    ]


def test_a_file_is_read_whole_with_any_name(tmp_path: Path) -> None:
    path = tmp_path / "it's a $file\\name"
    path.write_text("first\n\nthird 'quoted' $HOME\n")
    path.chmod(0o640)

    info = read(FileInfo, os.environ["PATH"], path=str(path))

    assert read(FileText, os.environ["PATH"], path=str(path)) == path.read_text()
    assert (info.kind, info.mode, info.is_regular) == ("regular file", "640", True)
    assert len(info.sha256) == 64


def test_links_and_directories_are_no_regular_files(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")

    assert read(FileInfo, os.environ["PATH"], path=str(tmp_path)).kind == "directory"
    assert not read(FileInfo, os.environ["PATH"], path=str(tmp_path / "link")).is_regular
    assert read(FileInfo, os.environ["PATH"], path=str(tmp_path / "link")).kind == "symbolic link"


def test_os_release_loses_its_quotes() -> None:
    lines = ['PRETTY_NAME="Debian GNU/Linux 13 (trixie)"', "ID=debian", "VERSION_ID='13'", "# a comment", ""]

    assert parse_os_release(lines) == {
        "PRETTY_NAME": "Debian GNU/Linux 13 (trixie)",
        "ID": "debian",
        "VERSION_ID": "13",
    }


def test_memory_is_counted_in_bytes() -> None:
    assert parse_meminfo(["MemTotal:       131909388 kB", "MemFree:        1 kB"]) == 131909388 * 1024


def disk_free(names: dict[str, str], mounts: list[str], df: list[str]) -> dict[str, DiskSpace]:
    """What `DiskFree` makes of these resolved names, lines of mountinfo and rows of `df`."""
    fact = DiskFree()
    fact.command(list(names))
    head = "     1B-blocks        Avail Mounted on"
    return fact.process([*names.values(), "--- mounts", *mounts, "--- space", head, *df])


def test_a_path_belongs_to_the_innermost_file_system_even_before_it_exists() -> None:
    mounts = [
        "24 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw,errors=remount-ro",
        "25 24 0:22 / /proc rw,nosuid - proc proc rw",
        "31 25 0:28 / /proc/sys/fs/binfmt_misc rw,relatime shared:14 - autofs systemd-1 rw,fd=30",
        "40 24 259:5 / /mnt/nvme rw,relatime shared:20 - xfs /dev/nvme1n1 rw,noquota",
        r"41 24 259:7 / /mnt/with\040blank rw,relatime shared:21 - ext4 /dev/nvme2n1 rw",
    ]
    df = [
        "  270553174016  80448339968 /",
        " 4000000000000 3000000000000 /mnt/nvme",
        "             -            - /proc/sys/fs/binfmt_misc",
        "  500000000000 400000000000 /mnt/with blank",
    ]
    names = {
        "/srv/models": "/mnt/nvme/models/nvidia/x",
        "/var/lib/docker": "/var/lib/docker",
        "/mnt/nvme2": "/mnt/nvme2",
    }

    found = disk_free({**names, "/mnt/with blank/x": "/mnt/with blank/x"}, mounts, df)

    assert found["/srv/models"] == DiskSpace("/mnt/nvme", 4000000000000, 3000000000000)
    assert found["/var/lib/docker"].mount == "/"
    # The name only begins like that of another mount.
    assert found["/mnt/nvme2"].mount == "/"
    assert found["/mnt/with blank/x"] == DiskSpace("/mnt/with blank", 500000000000, 400000000000)


def test_a_bind_mount_has_the_room_of_its_disk_which_df_shows_elsewhere() -> None:
    mounts = [
        "24 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw",
        "40 24 259:5 / /data rw,relatime shared:20 - ext4 /dev/nvme1n1 rw",
        "41 24 259:5 /models /srv/models rw,relatime shared:20 - ext4 /dev/nvme1n1 rw",
    ]
    df = ["   64424509440   53687091200 /", "  429496729600  418759311360 /data"]

    found = disk_free({"/srv/models": "/srv/models", "/usr": "/usr"}, mounts, df)

    assert found == {
        "/srv/models": DiskSpace("/srv/models", 429496729600, 418759311360),
        "/usr": DiskSpace("/", 64424509440, 53687091200),
    }


def test_a_mount_that_a_later_one_hides_is_not_the_paths() -> None:
    mounts = [
        "24 1 259:2 / / rw - ext4 /dev/nvme0n1p2 rw",
        "40 24 259:5 / /srv/models rw - ext4 /dev/nvme1n1 rw",
        "41 24 259:6 / /srv rw - ext4 /dev/nvme2n1 rw",
        "42 41 259:7 / /srv rw - ext4 /dev/nvme3n1 rw",
        # Debian's initramfs and containers may have two at the root.
        "43 24 259:8 / / rw - ext4 /dev/nvme4n1 rw",
        "44 43 259:6 / /mnt rw - ext4 /dev/nvme2n1 rw",
    ]
    assert mount_of("/mnt/x", parse_mounts(mounts)) == Mount("44", "43", "259:6", "/mnt", read_only=False)
    found = mount_of("/srv/models/x", parse_mounts(mounts[:4]))
    assert found == Mount("42", "41", "259:7", "/srv", read_only=False)
    # As in the kernel's own root, which is mounted on itself.
    assert mount_of("/", parse_mounts(["1 1 0:1 / / rw - rootfs rootfs rw"])) is not None


def test_what_is_mounted_read_only_below_the_root_is_told_from_it() -> None:
    # The mounts and the rows of `df` are a real host's.
    mounts = [
        "20 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard,resv_strict,resuid=65534",
        "30 20 254:16 / /usr/local/nvidia ro,nosuid,nodev,relatime - squashfs /dev/vdb ro,errors=continue",
        "31 20 254:32 / /srv/a ro,relatime - ext4 /dev/vdc rw",
        "32 20 254:48 / /srv/b rw,relatime - ext4 /dev/vdd ro,errors=remount-ro",
        "33 20 254:64 / /srv/c rw,relatime - ext4 /dev/vde rw,errors=remount-ro",
    ]
    df = section("h200-x2/host.txt", "df -B1 --output=size,avail,target")[1:3]
    paths = ["/usr", "/usr/local/nvidia/models", "/srv/a", "/srv/b", "/srv/c"]

    found = disk_free({path: path for path in paths}, mounts, df)

    assert found["/usr"] == DiskSpace("/", 270553174016, 137388204032)
    assert found["/usr/local/nvidia/models"] == DiskSpace("/usr/local/nvidia", 0, 0, read_only=True)
    assert [found[path].read_only for path in paths] == [False, True, True, True, False]


def test_the_file_systems_of_this_machine_are_those_that_the_kernel_names() -> None:
    found = read(DiskFree, os.environ["PATH"], paths=["/proc/self", "/not/there", "/dev/shm"])
    assert {path: space.mount for path, space in found.items()} == {
        path: subprocess.run(
            ["stat", "-c", "%m", path if Path(path).exists() else "/"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for path in found
    }


def test_kernels_are_ordered_by_number_not_by_letter() -> None:
    state = parse_kernel_state(
        [
            "6.1.0-9-amd64",
            "BOOT_IMAGE=/boot/vmlinuz-6.1.0-9-amd64 root=/dev/vda1 ro quiet",
            "/boot/initrd.img-6.1.0-9-amd64",
            "/boot/vmlinuz-6.1.0-30-amd64",
            "/boot/vmlinuz-6.1.0-9-amd64",
        ]
    )

    assert state.installed == ("6.1.0-9-amd64", "6.1.0-30-amd64")
    assert state.boots_next == "6.1.0-30-amd64"
    assert state.initrds == {"6.1.0-9-amd64"}
    assert "quiet" in state.arguments


def test_without_kernels_in_boot_the_running_one_boots_next() -> None:
    assert parse_kernel_state(["6.1.0-9-amd64", "ro"]).boots_next == "6.1.0-9-amd64"


def test_listeners_are_decoded_from_proc() -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
    lines = [
        head,
        "   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0",
        "   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0",
        "   2: 0100007F:1F41 0100007F:A000 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0",
        head,
        "   0: 00000000000000000000000001000000:0277 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 1 1 0",
        "   1: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 1 1 0",
    ]

    assert parse_listeners(lines) == {
        Listener("127.0.0.1", 8000),
        Listener("0.0.0.0", 22),
        Listener("::1", 631),
        Listener("::", 80),
    }


def test_why_something_cannot_be_reached_is_what_bash_said() -> None:
    refused = ["192.0.2.7: connect: Connection refused", "192.0.2.7: line 1: /dev/tcp/192.0.2.7/1: Connection refused"]

    assert parse_reachability(["reached", "ended"]).ok
    assert parse_reachability([*refused, "reached", "failed"]).ok
    assert parse_reachability([*refused, "failed"]).reason == "Connection refused"
    assert parse_reachability(["ended"]).reason == "Name or service not known"
    assert parse_reachability(["failed"]).reason == "no answer within 5 s"


def test_a_name_is_reached_if_any_of_its_addresses_is(bare_path: str) -> None:
    with socket.create_server((OWN_ADDRESS, 0)) as there:
        port = there.getsockname()[1]
        with black_hole(port) as dark:
            rows = [
                f"{each:16}STREAM both.example.org\n{each:16}DGRAM  \n{each:16}RAW    " for each in (dark, OWN_ADDRESS)
            ]
            getent = Path(bare_path) / "getent"
            getent.unlink()
            getent.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(rows) + "\nEND\n")
            getent.chmod(0o755)
            assert read(Reachable, bare_path, address="both.example.org", port=port).ok
    assert read(Reachable, bare_path, address="both.example.org", port=port).reason == "Connection refused"


def test_only_whole_packages_count_as_installed() -> None:
    lines = [
        "ii \tcurl\t8.14.1-2",
        "hi \tdocker-ce\t5:29.6.1-1~debian.13~trixie",
        "rc \tnginx\t1.26.3-3",
        "un \tpodman-docker\t",
        "iF \tnvidia-kernel-open-dkms\t595.71.05-1",
        "iU \tlibnvidia-ml1\t595.71.05-1",
    ]

    assert parse_installed_versions(lines) == {"curl": "8.14.1-2", "docker-ce": "5:29.6.1-1~debian.13~trixie"}


def test_packages_on_hold_have_their_versions() -> None:
    lines = [
        "hi \tdocker-compose-plugin\t2.29.1-1~debian.13~trixie",
        "hn \tpodman-docker\t",
        "hc \trunc\t1.1.15+ds1-2+b4",
        "ii \tcurl\t8.14.1-2",
    ]
    assert HeldPackages().process(lines) == {
        "docker-compose-plugin": "2.29.1-1~debian.13~trixie",
        "podman-docker": "",
        "runc": "",
    }


def test_half_states_and_the_journal_of_dpkg_are_trouble() -> None:
    trouble = parse_broken_packages(
        ["/var/lib/dpkg/updates/0001", "iF \tnvidia-kernel-open-dkms", "iHR\tcurl", "ii \tbash", "rc \tnginx"]
    )

    assert trouble.journal == ("/var/lib/dpkg/updates/0001",)
    assert trouble.packages == {"nvidia-kernel-open-dkms": "iF", "curl": "iHR"}
    assert not parse_broken_packages(["ii \tbash"])


def test_apt_offers_are_listed_once_each() -> None:
    lines = [
        " docker-ce | 5:29.6.1-1~debian.13~trixie | https://download.docker.com/linux/debian trixie/stable",
        " docker-ce | 5:29.6.0-1~debian.13~trixie | https://download.docker.com/linux/debian trixie/stable",
        "      curl | 8.14.1-2 | http://deb.debian.org/debian trixie/main amd64 Packages",
        "      curl | 8.14.1-2 | http://deb.debian.org/debian trixie/main Sources",
    ]

    assert parse_apt_versions(lines) == {
        "docker-ce": ["5:29.6.1-1~debian.13~trixie", "5:29.6.0-1~debian.13~trixie"],
        "curl": ["8.14.1-2"],
    }


def test_images_without_a_digest_are_left_out() -> None:
    digest = f"vllm/vllm-openai@sha256:{'a' * 64}"

    assert parse_image_digests([digest, "built-here@<none>", ""]) == {digest}


UNIT = [
    "LoadState=loaded",
    "ActiveState=active",
    "SubState=running",
    "Result=success",
    "Job=0",
    "UnitFileState=enabled",
    "NeedDaemonReload=no",
    "MainPID=812",
    "InvocationID=6a0ab0a2b1a04ea2a7d8f4d1e4a7b1c9",
    "NRestarts=0",
    "ExecMainStartTimestamp=Mon 2026-11-23 19:09:11.250000 UTC",
]
STARTED = 1795460951.25


def test_what_a_deploy_left_running_is_read_with_how_far_it_is() -> None:
    lines = """\
--- rigup-apt.service
ExecMainStartTimestamp=Mon 2026-11-23 19:09:11.250000 UTC
Setting up dkms (3.0.10-8+deb12u1) ...
Building module:
--- rigup-pull-aaaaaaaaaaaa.service
ExecMainStartTimestamp=n/a
--- rigup-pull-bbbbbbbbbbbb.service
ExecMainStartTimestamp=Mon 2026-11-23 19:09:11.250000 UTC
downloading, 4.1 GB of 12.4 GB, 9 of 31 layers complete""".splitlines()
    assert parse_works(lines) == [
        Work("rigup-apt.service", 1795460951.25, "Building module:"),
        Work("rigup-pull-aaaaaaaaaaaa.service", None, ""),
        Work(
            "rigup-pull-bbbbbbbbbbbb.service", 1795460951.25, "downloading, 4.1 GB of 12.4 GB, 9 of 31 layers complete"
        ),
    ]
    assert parse_works(["--- rigup-apt.service"]) == [Work("rigup-apt.service", None, "")]


def test_packages_under_way_say_how_far_dkms_is() -> None:
    apt, pull = Work("rigup-apt.service", 1.0, "Building module:"), Work("rigup-pull-aaaaaaaaaaaa.service", 1.0, "x")
    assert with_builds([apt, pull], []) == [apt, pull]
    assert with_builds([apt, pull], ["building nvidia"]) == [Work("rigup-apt.service", 1.0, "building nvidia"), pull]


def test_a_build_of_a_kernel_module_is_read_with_how_far_it_is(tmp_path: Path) -> None:
    build = tmp_path / "nvidia/595.91.07/build"
    for name in ("nvidia/a.c", "nvidia-uvm/b.c", "nvidia-uvm/c.c", "nvidia.mod.c", "conftest/d.c"):
        (build / name).parent.mkdir(parents=True, exist_ok=True)
        (build / name).touch()
    log = build / "make.log"
    log.write_text(" CONFTEST: remap\n  CC [M]  nvidia/a.o\n")
    # Of a build that failed, long ago.
    old = tmp_path / "zfs/2.3/build/make.log"
    old.parent.mkdir(parents=True)
    old.touch()
    os.utime(old, (1, 1))
    # However slow this machine is, the log was written just now.
    os.utime(log, (time.time() + 3600,) * 2)
    (line,) = read(DkmsBuilds, os.environ["PATH"], tree=str(tmp_path))
    assert line.startswith("building nvidia 595.91.07: 1 of about 3 files")


@pytest.mark.parametrize(
    ("made", "compiled", "words"),
    [
        (1795460000, 100, "100 of about 260 files, 2.5 files/s, about 1 min 04 s left"),
        (1795460000, 0, "0 of about 260 files"),
        (1795460000, 270, "270 of about 270 files"),
        # The file system does not say.
        (0, 100, "100 of about 260 files"),
    ],
)
def test_a_build_says_its_rate_and_the_time_left(made: int, compiled: int, words: str) -> None:
    log = "/var/lib/dkms/nvidia/595.91.07/build/make.log"
    lines = [f"--- building {log} {made} 1795460040", str(compiled), "." * 260]
    assert parse_builds(lines) == [f"building nvidia 595.91.07: {words}"]
    assert parse_builds(lines[:2]) == []


def test_inputs_written_since_the_start_are_unknown_to_the_process() -> None:
    state = parse_unit_state(
        [*UNIT, f"mtime={STARTED - 0.01:.6f} /etc/older", f"mtime={STARTED + 0.01:.6f} /etc/newer file"]
    )

    assert state.started == STARTED
    assert state.runs
    assert state.newer_inputs == ["/etc/newer file"]


def test_a_unit_that_never_ran_knows_no_newer_inputs() -> None:
    lines = [line.replace("Mon 2026-11-23 19:09:11.250000 UTC", "") for line in UNIT]

    assert parse_unit_state([*lines, "mtime=1795460951.0 /etc/file"]).newer_inputs == []


def test_waiting_to_be_started_again_is_not_running() -> None:
    lines = [*UNIT, "ActiveState=activating", "SubState=auto-restart", "Job=1234"]

    state = parse_unit_state(lines)

    assert state.is_waiting_to_retry
    assert not state.runs
    assert state.job


def test_active_units_are_named() -> None:
    assert parse_active_units(["llm@main.service loaded active running rigup endpoint main (vllm)", ""]) == [
        "llm@main.service"
    ]


def test_a_stamp_of_the_downloader_holds_until_a_file_is_written_to(tmp_path: Path) -> None:
    store = tmp_path / "revision"
    store.mkdir()
    (store / "config.json").write_text("{}")
    (store / "weights").write_bytes(b"x" * 100)
    write_stamp = "import sys; from pathlib import Path; from rigup_host.fetch.store import Store"
    write_stamp += f"; Store('o/n', '{'a' * 40}', Path(sys.argv[1]), {{}}).stamp(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", write_stamp, str(store)], env={"PYTHONPATH": str(FILES)}, check=True)

    assert read(ModelStamp, os.environ["PATH"], path=str(store)).complete
    (store / "weights").write_bytes(b"y" * 100)
    assert not read(ModelStamp, os.environ["PATH"], path=str(store)).complete
    (store / "weights").write_bytes(b"x" * 99)
    assert not read(ModelStamp, os.environ["PATH"], path=str(store)).complete
    (store / "weights").unlink()
    assert read(ModelStamp, os.environ["PATH"], path=str(store)).present_files == 1


def test_the_sizes_of_files_in_a_directory_are_those_of_what_links_lead_to(tmp_path: Path) -> None:
    (tmp_path / "it's a disk" / "sub").mkdir(parents=True)
    (tmp_path / "blob").write_bytes(b"x" * 100)
    (tmp_path / "it's a disk" / "sub" / "weights 1").symlink_to(tmp_path / "blob")

    def sizes(directory: str, *names: str) -> Any:
        return read(FileSizes, os.environ["PATH"], directory=str(tmp_path / directory), names=names)

    assert sizes("it's a disk", "sub/weights 1", "sub/weights 2") == {"sub/weights 1": 100}
    assert sizes("it's a disk") == {}
    assert sizes("not there", "sub/weights 1") is None


def test_what_is_still_arriving_is_counted_apart(tmp_path: Path) -> None:
    (tmp_path / ".revision.incoming").mkdir()
    (tmp_path / ".revision.incoming" / "weights").write_bytes(b"x" * 100_000)
    found = read(ModelStamp, os.environ["PATH"], path=str(tmp_path / "revision"))
    assert (found.present_bytes, found.complete) == (0, False)
    assert 100_000 <= found.arriving_bytes <= 110_000


@pytest.mark.parametrize("text", ["{", "[1]", "null"])
def test_a_damaged_stamp_or_proof_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store.verified.json").write_text(text)
    assert not read(ModelStamp, os.environ["PATH"], path=str(tmp_path / "store")).complete
    assert not read(Verification, os.environ["PATH"], path=str(tmp_path / "store.verified.json"), unit="x").holds(
        "digest"
    )


@pytest.mark.parametrize(
    ("fact", "key"),
    [("kernel.KernelState", "initrds"), ("network.ListeningPorts", None), ("units.UnitState", "inputs")],
)
def test_a_person_can_ask_for_a_fact(fact: str, key: str | None, tmp_path: Path) -> None:
    pyinfra = Path(sys.executable).parent / "pyinfra"
    arguments = ["unit=docker.service"] if "units" in fact else []

    answer = subprocess.run(
        [pyinfra, "--json", "@local", "fact", f"rigup.facts.{fact}", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )

    assert answer.returncode == 0, answer.stderr
    (told,) = json.loads(answer.stdout).values()
    value = told["@local"]
    assert key in value if key else isinstance(value, list)


def test_source_files_are_read_with_their_repositories() -> None:
    below = "/etc/apt/sources.list.d"
    lines = [
        f"{below}/a.list:# a comment: with a colon",
        f"{below}/a.list:deb [signed-by=/k.gpg] https://a/ x y",
        f"{below}/b.sources:URIs: https://b",
        f"{below}/b.sources:  https://c",
        f"{below}/b.sources:",
    ]
    found = parse_apt_sources(lines)
    assert found == {f"{below}/a.list": {"https://a"}, f"{below}/b.sources": {"https://b", "https://c"}}
