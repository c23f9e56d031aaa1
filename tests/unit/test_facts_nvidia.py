"""What NVIDIA's tools and files say, from real machines and from the words of their sources."""

from __future__ import annotations

import pytest

from rigup.facts.hardware import PciDevice, Slot, parse_pci_devices, parse_slots
from rigup.facts.kernel import parse_kernel_state, parse_module_parameters
from rigup.facts.nvidia import (
    USE_FIELDS,
    Gpu,
    GpuUseValue,
    parse_cdi_devices,
    parse_driver_state,
    parse_gpu_list,
    parse_gpu_use,
)
from rigup.preflight.hardware import nvidia_gpus
from tests.captures import capture, section

GPU_UUID = "GPU-00000000-1111-2222-3333-444444444444"


def test_a_real_driver_is_read_with_its_version_and_flavour() -> None:
    state = parse_driver_state(
        [*section("h200/host.txt", "/proc/driver/nvidia/version"), *section("h200/smi.txt", "nvidia-smi --version")]
    )

    assert (state.loaded, state.open_module, state.userspace) == ("580.159.04", True, "580.159.04")


def test_a_proprietary_module_is_told_from_an_open_one() -> None:
    line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025"

    state = parse_driver_state([line, "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14+deb12u1)"])

    assert (state.loaded, state.open_module) == ("580.95.05", False)


def test_modules_on_disk_are_told_apart_by_kernel_and_dkms_comes_first() -> None:
    state = parse_driver_state(
        [
            "/lib/modules/6.12.57+deb13-amd64/updates/dkms/nvidia.ko.xz",
            "595.71.05",
            "/lib/modules/6.12.57+deb13-amd64/kernel/nvidia-580/nvidia.ko",
            "580.95.05",
            "/lib/modules/6.12.63+deb13-amd64/updates/dkms/nvidia.ko.xz",
        ]
    )

    assert state.on_disk == {"6.12.57+deb13-amd64": "595.71.05"}
    assert state.loaded is None


def test_nouveau_and_no_driver() -> None:
    state = parse_driver_state(["/sys/module/nouveau"])

    assert state.nouveau
    assert state.userspace is None


def test_real_gpus_are_listed() -> None:
    assert parse_gpu_list(section("h200/smi.txt", "nvidia-smi -L")) == [Gpu(0, "NVIDIA H200", GPU_UUID)]


@pytest.mark.parametrize(
    "line",
    [
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
        "Failed to initialize NVML: Driver/library version mismatch",
        "No devices were found",
    ],
)
def test_the_errors_of_nvidia_smi_are_no_gpus(line: str) -> None:
    assert parse_gpu_list([line]) == []


def test_real_cdi_devices_are_named_without_the_log_between_them() -> None:
    lines = section("h200/nvidia-ctk.txt", "nvidia-ctk cdi list")

    assert parse_cdi_devices([*lines, 'time="T" level=info msg="Found 3 CDI devices"']) == [
        "nvidia.com/gpu=0",
        f"nvidia.com/gpu={GPU_UUID}",
        "nvidia.com/gpu=all",
    ]


def test_parameters_are_read_under_the_names_that_modprobe_uses() -> None:
    params = [f"/proc/driver/nvidia/params:{line}" for line in section("h200/host.txt", "/proc/driver/nvidia/params")]
    hmm = section("h200/host.txt", "/sys/module/nvidia_uvm/parameters/uvm_disable_hmm")
    found = parse_module_parameters(
        [*params, *(f"/sys/module/nvidia_uvm/parameters/uvm_disable_hmm:{line}" for line in hmm)]
    )

    assert found.in_effect("nvidia", "NVreg_EnableResizableBar", 0) is True
    assert found.in_effect("nvidia", "NVreg_EnableResizableBar", 1) is False
    assert found.in_effect("nvidia", "NVreg_RegistryDwords", "") is True
    # The module says N where modprobe.d says 0.
    assert found.in_effect("nvidia_uvm", "uvm_disable_hmm", 0) is True
    assert found.in_effect("nvidia_uvm", "uvm_disable_hmm", 1) is False
    assert found.in_effect("nvidia_uvm", "unheard_of", 1) is None
    assert found.in_effect("nvidia_drm", "modeset", 1) is None


def test_quotes_around_a_parameter_do_not_count() -> None:
    found = parse_module_parameters(['/proc/driver/nvidia/params:RegistryDwords: "ForceP2P=0x11;RMForceP2PType=1"'])

    assert found.in_effect("nvidia", "NVreg_RegistryDwords", '"ForceP2P=0x11;RMForceP2PType=1"') is True


def test_only_nvidias_display_controllers_are_gpus() -> None:
    bus = {
        "0000:c1:00.0": ("0x10de", "0x2bb1", "0x030000"),
        "0000:c1:00.1": ("0x10de", "0x22e8", "0x040300"),
        "0000:06:00.0": ("0x10de", "0x2bb5", "0x030200"),
        "0000:05:00.0": ("0x1a03", "0x2000", "0x030000"),
        "0000:01:00.0": ("0x8086", "0x1533", "0x020000"),
    }
    lines = [
        f"/sys/bus/pci/devices/{address}/{name}:{value}"
        for at, name in enumerate(("vendor", "device", "class"))
        for address, values in bus.items()
        for value in (values[at],)
    ]

    gpus = nvidia_gpus(parse_pci_devices(lines))

    assert gpus == [
        PciDevice("0000:06:00.0", 0x10DE, 0x2BB5, 0x030200),
        PciDevice("0000:c1:00.0", 0x10DE, 0x2BB1, 0x030000),
    ]


def test_a_card_has_its_lanes_and_its_largest_region_on_the_bus() -> None:
    here = "/sys/bus/pci/devices"
    lines = [
        f"{here}/0000:c1:00.0/resource:0x00000000b8000000 0x00000000bbffffff 0x0000000000040200",
        f"{here}/0000:c1:00.0/resource:0x0000028000000000 0x00000280ffffffff 0x000000000014220c",
        f"{here}/0000:c1:00.0/resource:0x0000000000000000 0x0000000000000000 0x0000000000000000",
        f"{here}/0000:c1:00.0/resource:0x0000029000000000 0x0000029001ffffff 0x000000000014220c",
        f"{here}/0000:c1:00.0/current_link_width:8",
        f"{here}/0000:c1:00.0/max_link_width:16",
        f"{here}/0000:06:00.0/resource:0x0000000000000000 0x0000000000000000 0x0000000000000000",
        # An H200's, whose driver says that BAR1 has 262144 MiB.
        f"{here}/0000:00:06.0/resource:0x0000104002000000 0x0000104002ffffff 0x000000000014220c",
        f"{here}/0000:00:06.0/resource:0x0000100000000000 0x0000103fffffffff 0x000000000014220c",
        f"{here}/0000:00:06.0/resource:0x0000104000000000 0x0000104001ffffff 0x000000000014220c",
        f"{here}/0000:00:06.0/current_link_width:16",
        f"{here}/0000:00:06.0/max_link_width:16",
    ]
    assert parse_slots(lines) == {
        "0000:c1:00.0": Slot(8, 16, 4 << 30),
        "0000:06:00.0": Slot(0, 0, 0),
        "0000:00:06.0": Slot(16, 16, 262144 << 20),
    }


def test_a_real_command_line_is_split_into_arguments() -> None:
    cmdline = capture("rtx-pro-6000-x8/cmdline.txt").splitlines()

    state = parse_kernel_state(["6.17.0-20-generic", *cmdline, "/boot/vmlinuz-6.17.0-20-generic"])

    assert {"amd_iommu=off", "iommu=off", "ro"} <= set(state.arguments)
    assert "iommu=pt" not in state.arguments


def test_words_for_init_are_no_arguments_of_the_kernel() -> None:
    (line,) = section("h200-x2/host.txt", "cat /proc/cmdline")[:1]

    arguments = parse_kernel_state(["6.18.44", line]).arguments

    assert arguments[-1] == "fc_dmapin=0xeebe0000,0x4000,0xeebf0000"
    assert {"pci=realloc=off", "quiet"} <= set(arguments)
    assert not {"--", "--firecracker-init", "--auth-required"} & set(arguments)


def test_an_argument_after_the_two_dashes_is_not_in_effect() -> None:
    assert parse_kernel_state(["6.12", "ro iommu=pt -- single pcie_aspm=off"]).arguments == ("ro", "iommu=pt")
    assert parse_kernel_state(["6.12", "ro x=-- --y"]).arguments == ("ro", "x=--", "--y")


def test_what_a_card_does_is_read_and_what_it_does_not_report_is_unknown() -> None:
    name = "NVIDIA RTX PRO 6000 Blackwell Server Edition"
    lines = [
        f"0, 92160, 97887, 100, 84, 598.34, 600.00, 0x00000000000000EC, 00000000:C1:00.0, {name}",
        f"1, 5, 97887, [N/A], [N/A], [N/A], [N/A], [N/A], 00000001:07:00.0, {name}",
        # A card that shares the host's memory, and what nvidia-smi says of one that is lost.
        "2, [N/A], [N/A], 0, 40, 11.20, [N/A], 0x0000000000000001, 0000000F:01:00.0, NVIDIA GB10",
        "Unable to determine the device handle for GPU3: 0000:E1:00.0: Unknown Error",
        "No devices were found",
    ]
    reasons = ("power limit", "hardware slowdown", "heat", "heat (hardware)", "power brake")
    assert parse_gpu_use(lines) == [
        GpuUseValue(0, 92160, 97887, 100, 84, 598.34, 600.0, reasons, "0000:c1:00.0", name),
        GpuUseValue(1, 5, 97887, None, None, None, None, (), "0001:07:00.0", name),
    ]


def test_real_cards_have_these_fields() -> None:
    offered = {word for line in section("h200/smi.txt", "nvidia-smi --help-query-gpu") for word in line.split('"')}
    assert set(USE_FIELDS.split(",")) <= offered
