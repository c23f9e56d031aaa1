"""The lab's nvidia-smi: formats, errors and exit codes of the real one."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.captures import Recorded, recorded
from tests.unit.standin_host import StandinHost, card

CAPTURE = "h200/smi.txt"
SMI = "nvidia_smi.py"

H200: dict[str, Any] = {
    "index": 0,
    "minor": 0,
    "bdf": "0000:00:06.0",
    "uuid": "GPU-00000000-1111-2222-3333-444444444444",
    "serial": "0000000000000",
    "name": "NVIDIA H200",
    "compute_capability": "9.0",
    "architecture": "Hopper",
    "memory_mib": 143771,
    "bar1_mib": 262144,
    "vbios": "96.00.a5.00.1a",
    "power_limit_w": {"min": 200, "default": 700, "max": 700},
    "fan": "N/A",
    "pstate": "P0",
    "temperature": 41,
    "power_draw": "124.00",
    "link_generation": 5,
    "clock": 420,
    "cpus": "0-15",
}


@pytest.fixture
def host(tmp_path: Path) -> StandinHost:
    """Four cards, driver 595.91.07 installed and loaded."""
    made = StandinHost.make(tmp_path, [card(index) for index in range(4)])
    made.install("595.91.07")
    made.load("595.91.07")
    return made


def query(host: StandinHost, fields: str, form: str = "csv,noheader") -> list[str]:
    done = host.run(SMI, f"--query-gpu={fields}", f"--format={form}")
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


@pytest.fixture
def h200(tmp_path: Path) -> StandinHost:
    """The host of the capture: one H200 with persistence mode on."""
    made = StandinHost.make(tmp_path, [card(0, **H200)])
    made.install("580.159.04")
    made.load("580.159.04")
    assert made.run(SMI, "-pm", "1").returncode == 0
    return made


def find(command: str) -> Recorded:
    return next(one for one in recorded(CAPTURE) if one.command.removeprefix("nvidia-smi").strip() == command)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="setting a mode takes root, as with the real one")


@needs_root
@pytest.mark.parametrize(
    "command",
    [
        "-L",
        "--version",
        "topo -m",
        "topo -p2p r",
        "topo -p2p w",
        "--query-gpu=index,name,memory.total,compute_cap --format=csv,noheader,nounits",
        "--query-gpu=bogus --format=csv",
    ],
)
def test_it_prints_what_the_real_one_printed(h200: StandinHost, command: str) -> None:
    real = find(command)
    done = h200.run(SMI, *command.split())
    assert (done.stdout, done.returncode) == (real.stdout, real.status)


@needs_root
def test_its_table_is_the_real_ones_but_for_the_time(h200: StandinHost) -> None:
    time, real = find("").stdout.split("\n", 1)
    shown_time, shown = h200.run(SMI).stdout.split("\n", 1)
    assert shown == real
    assert len(shown_time) == len(time)


@needs_root
def test_its_long_query_matches_the_real_one_except_for_the_temperature(h200: StandinHost) -> None:
    command = next(one.command for one in recorded(CAPTURE) if "query-gpu=index,name,uuid" in one.command)
    (real_head, real), (head, shown) = (
        text.splitlines()
        for text in (
            find(command.removeprefix("nvidia-smi ")).stdout,
            h200.run(SMI, *command.split()[1:]).stdout,
        )
    )
    assert head == real_head
    temperature = head.split(", ").index("temperature.gpu")
    differing = [i for i, (a, b) in enumerate(zip(real.split(", "), shown.split(", "), strict=True)) if a != b]
    assert differing in ([], [temperature])


def test_every_field_the_real_one_knows_is_known(host: StandinHost) -> None:
    listed = find("--help-query-gpu").stdout
    names = [name for line in listed.splitlines() for name in re.findall(r'^"([\w.]+)"', line)]
    assert len(names) > 150
    done = host.run(SMI, f"--query-gpu={','.join(names)}", "--format=csv")
    assert done.returncode == 0, done.stdout


def test_without_a_loaded_module_it_ends_with_9(host: StandinHost) -> None:
    (host.root / "proc/driver/nvidia/version").unlink()
    done = host.run(SMI)
    assert done.returncode == 9
    assert done.stdout == (
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
        "Make sure that the latest NVIDIA driver is installed and running.\n\n"
    )


def test_with_another_module_than_library_it_ends_with_18(host: StandinHost) -> None:
    host.install("610.57.04")
    done = host.run(SMI, "-L")
    assert done.returncode == 18
    assert done.stdout == "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 610.57\n"


def test_without_a_library_it_reports_that(host: StandinHost) -> None:
    for library in (host.root / "usr/lib/x86_64-linux-gnu/nvidia").iterdir():
        library.unlink()
    done = host.run(SMI)
    assert done.returncode == 12
    assert "couldn't find libnvidia-ml.so" in done.stdout


def test_without_cards_it_finds_no_devices(tmp_path: Path) -> None:
    bare = StandinHost.make(tmp_path, [])
    bare.install("595.91.07")
    bare.load("595.91.07")
    assert (bare.run(SMI).returncode, bare.run(SMI).stdout) == (6, "No devices were found\n")


def test_the_labs_cards_are_what_they_should_be(host: StandinHost) -> None:
    rows = query(host, "index,name,memory.total,compute_cap,power.min_limit,power.max_limit,driver_version")
    name = "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"
    assert rows == [f"{i}, {name}, 97887 MiB, 12.0, 150.00 W, 600.00 W, 595.91.07" for i in range(4)]
    assert "CUDA Version: 13.2" in host.run(SMI).stdout
    assert "NVIDIA RTX PRO 6000 Blac..." in host.run(SMI).stdout


def test_one_card_is_chosen_by_index_uuid_or_bus_id(host: StandinHost) -> None:
    uuids = query(host, "uuid")
    buses = query(host, "pci.bus_id")
    for wanted in ("2", uuids[2], buses[2]):
        done = host.run(SMI, "-i", wanted, "--query-gpu=uuid", "--format=csv,noheader")
        assert done.stdout.split() == [uuids[2]]
    assert host.run(SMI, "-i", "9").stdout == "No devices were found\n"


@needs_root
def test_a_power_limit_holds_and_is_checked_against_the_cards_range(host: StandinHost) -> None:
    done = host.run(SMI, "-pl", "400")
    assert done.stdout.splitlines()[0] == "Power limit for GPU 00000000:01:00.0 was set to 400.00 W from 600.00 W."
    assert query(host, "power.limit") == ["400.00 W"] * 4
    refused = host.run(SMI, "-pl", "100000")
    assert refused.returncode != 0
    assert refused.stdout == (
        "Provided power limit 100000.00 W is not a valid power limit which should be between 150.00 W and 600.00 W "
        "for GPU 00000000:01:00.0\nTerminating early due to previous errors.\n"
    )
    assert query(host, "power.limit") == ["400.00 W"] * 4


@needs_root
def test_persistence_mode_is_set_and_said(host: StandinHost) -> None:
    assert query(host, "persistence_mode") == ["Disabled"] * 4
    assert host.run(SMI, "-pm", "1").stdout.splitlines()[-2:] == [
        "Enabled persistence mode for GPU 00000000:61:00.0.",
        "All done.",
    ]
    assert query(host, "persistence_mode") == ["Enabled"] * 4
    assert "already Enabled" in host.run(SMI, "-pm", "1").stdout


def test_cards_on_one_numa_node_meet_at_its_host_bridges(host: StandinHost) -> None:
    lines = host.run(SMI, "topo", "-m").stdout.splitlines()
    assert lines[1].split("\t")[1:5] == [" X ", "NODE", "NODE", "NODE"]
    assert host.run(SMI, "topo", "-p2p", "r").stdout.splitlines()[1] == " GPU0\tX\tOK\tOK\tOK\t"


def test_arguments_it_does_not_know_are_refused(host: StandinHost) -> None:
    for arguments in (["--nonsense"], ["-i"], ["topo", "-x"]):
        done = host.run(SMI, *arguments)
        assert done.returncode == 1
        assert "Invalid combination of input arguments" in done.stdout
    assert host.run(SMI, "--query-gpu=index").returncode == 1


def test_a_container_sees_the_cards_it_was_given_counts_them_from_0_and_can_lose_them(
    host: StandinHost, tmp_path: Path
) -> None:
    uuids = query(host, "uuid")
    hardware = (host.root / "usr/lib/lab-hardware/lab.json").read_text()
    version = (host.root / "proc/driver/nvidia/version").read_text()
    container = StandinHost(tmp_path / "container")
    container.install("595.91.07")
    container.write("run/lab-gpu/lab.json", hardware)
    container.write("run/lab-gpu/version", version)
    for index in (1, 3):
        container.write(f"run/lab-gpu/gpus/{uuids[index]}", "")
    assert query(container, "index,uuid") == [f"0, {uuids[1]}", f"1, {uuids[3]}"]
    cgroup = container.write("run/lab-gpu/device-cgroup/lab-device-cgroup", "")
    assert container.run(SMI, "-L").returncode == 0
    cgroup.unlink()
    lost = container.run(SMI, "-L")
    assert (lost.returncode, lost.stdout) == (255, "Failed to initialize NVML: Unknown Error\n")
