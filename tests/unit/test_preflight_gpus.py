"""Preflight on real machines with other cards, a partitioned card, or a driver that nobody knows how to remove."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rigup.facts.hardware import parse_pci_devices
from rigup.facts.nvidia import Card, Cards, DriverState
from rigup.preflight.snapshot import HostFacts
from tasks.gather import _kept_driver
from tests.captures import section
from tests.unit.test_preflight import BARE, CARDS, SERVED, Device, changed, installed, lock, only, problems

BUS = "grep -H . /sys/bus/pci/devices/*/vendor /sys/bus/pci/devices/*/device /sys/bus/pci/devices/*/class"
H200S = [
    "0, NVIDIA H200, 00000000:00:06.0, Disabled, Disabled, 200.00 W, 700.00 W",
    "1, NVIDIA H200, 00000000:00:07.0, Disabled, Disabled, 200.00 W, 700.00 W",
]


def h200s() -> HostFacts:
    return changed(BARE, pci=parse_pci_devices(section("h200-x2/pci.txt", BUS)))


def test_only_cards_of_another_kind_are_one_problem_that_names_them() -> None:
    found = only(problems(changed(h200s(), cards=Cards().process(H200S))))
    assert found.id == "gpus-unsupported"
    assert found.found == (
        "0 supported among 2: NVIDIA H200 (10de:2335): Hopper (compute capability 9.0) has no FP4, which the recipes "
        "use (at 0000:00:06.0, 0000:00:07.0)"
    )
    assert "RTX PRO 6000" in found.remedy and "reseat" not in found.remedy


def test_a_card_that_nobody_knows_has_its_number() -> None:
    strange = [replace(card, device=0x1FFF) for card in CARDS[:1]]
    assert only(problems(changed(BARE, pci=strange))).found == "0 supported among 1: 10de:1fff (at 0000:21:00.0)"


def test_the_fabric_manager_of_an_hgx_board_is_the_reason() -> None:
    found = only(problems(changed(BARE, pci=[replace(card, device=0x2901) for card in CARDS]))).found
    assert found.startswith(
        "0 supported among 4: NVIDIA B200 (10de:2901): compute capability 10.0, and its NVSwitches "
    )


def test_other_cards_are_ignored_where_every_endpoint_names_its_own_by_uuid() -> None:
    other = Device("0000:a1:00.0", 0x10DE, 0x2684, 0x030000)
    uuids = [f"GPU-00000000-0000-0000-0000-00000000000{at}" for at in range(5)]
    mixed = changed(BARE, pci=(*CARDS, other), gpu_indices={uuid: at for at, uuid in enumerate(uuids)})
    assert problems(mixed, endpoints={"main": {"gpus": uuids[:4]}}) == []
    found = only(problems(mixed, endpoints={"main": {"gpus": uuids[1:]}})).found
    assert found == (
        "endpoint main uses the NVIDIA GeForce RTX 4090 (10de:2684) at 0000:a1:00.0, which is not supported"
    )


@pytest.mark.parametrize(
    ("device", "size"),
    [
        (0x2B85, "31.8 GiB"),
        (0x2BB3, "71.7 GiB"),
        (0x2C02, "15.9 GiB"),
        (0x2C05, "15.9 GiB"),
        (0x2C31, "31.9 GiB"),
        (0x2C34, "23.9 GiB"),
    ],
)
def test_a_smaller_card_is_refused_for_its_memory_alone(device: int, size: str) -> None:
    found = problems(changed(BARE, pci=[replace(card, device=device) for card in CARDS]))
    assert {problem.id for problem in found} == {"gpus-memory"}
    assert f"has {size}; recipe vllm-nvfp4-cu130 needs 94.7 GiB" in found[0].found


def test_another_card_beside_ours_is_named() -> None:
    other = Device("0000:a1:00.0", 0x10DE, 0x2684, 0x030000)
    card = Card(4, "NVIDIA GeForce RTX 4090", "0000:a1:00.0", mig=False)
    found = only(problems(changed(BARE, pci=(*CARDS, other), cards=[card]))).found
    assert found == (
        "not supported: NVIDIA GeForce RTX 4090 (10de:2684): Ada (compute capability 8.9) has no FP4, which the "
        "recipes use (at 0000:a1:00.0)"
    )


RTX = "NVIDIA RTX PRO 6000 Blackwell Server Edition"


def test_cards_are_read_with_their_names_addresses_and_modes() -> None:
    lines = [
        f"0, {RTX}, 00000000:21:00.0, Disabled, Disabled, 300.00 W, 600.00 W",
        f"1, {RTX}, 00000000:C1:00.0, Enabled, Enabled, 150.50 W, 600.50 W",
        f"2, {RTX}, 00010000:61:00.0, Disabled, Enabled, [N/A], [N/A]",
        "3, NVIDIA GeForce RTX 4090, 00000000:81:00.0, [N/A], [N/A], 10.00 W, [Unknown Error]",
    ]
    assert Cards().process(lines) == [
        Card(0, RTX, "0000:21:00.0", mig=False, watts=(300, 600)),
        Card(1, RTX, "0000:c1:00.0", mig=True, watts=(151, 600)),
        Card(2, RTX, "10000:61:00.0", mig=True),
        Card(3, "NVIDIA GeForce RTX 4090", "0000:81:00.0", mig=False),
    ]
    assert Cards().process(["NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."]) == []
    assert Cards().process(['Field "mig.mode.current" is not a valid field to query.', ""]) == []


def test_a_gpu_in_mig_mode_is_named_with_the_command_that_turns_it_off() -> None:
    cards = [Card(at, RTX, card.address, mig=at == 2) for at, card in enumerate(CARDS)]
    found = only(problems(changed(BARE, cards=cards)))
    assert (found.id, found.found) == (
        "gpus-mig",
        f"GPU 2 ({RTX}, at 0000:61:00.0) is in MIG mode: engines need whole GPUs",
    )
    assert "`nvidia-smi -i 2 -mig 0`" in found.remedy
    assert problems(changed(BARE, cards=[replace(card, mig=False) for card in cards])) == []


def loaded_on_the_h200() -> str | None:
    lines = [*section("h200/host.txt", "/proc/driver/nvidia/version"), *section("h200/smi.txt", "nvidia-smi --version")]
    return _kept_driver(DriverState().process(lines))


def test_a_driver_that_neither_apt_nor_a_run_file_installed_is_named() -> None:
    found = only(problems(changed(BARE, driver=loaded_on_the_h200())))
    assert (found.id, found.found.partition(",")[0]) == ("driver-unknown", "driver 580.159.04 is loaded")
    assert "`modinfo -n nvidia`" in found.remedy and "reboot" in found.remedy


@pytest.mark.parametrize(
    "change",
    [
        {"installed": {"nvidia-dkms-580-open": "580.95.05-0ubuntu1"}},
        {"installed": {"linux-modules-nvidia-580-open-generic": "6.8.0-45.45"}},
        {"installed": {"nvidia-open-kernel-dkms": "550.163.01-2"}},
        {"installed": installed(lock())},
    ],
)
def test_a_driver_with_a_package_is_no_problem(change: dict[str, Any]) -> None:
    assert problems(changed(BARE, driver="580.95.05", **change)) == []
    assert problems(changed(SERVED, driver="595.71.05")) == []


def test_a_driver_with_a_run_file_is_one_problem() -> None:
    found = only(problems(changed(BARE, driver="580.95.05", foreign=["/usr/bin/nvidia-uninstall"])))
    assert "`nvidia-uninstall`" in found.remedy


def test_a_module_that_stays_loaded_after_its_packages_went_is_no_driver() -> None:
    version = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  595.71.05  Release Build"
    assert _kept_driver(DriverState().process([version])) is None
    module = ["/lib/modules/6.12.57+deb13-amd64/updates/dkms/nvidia.ko.xz", "595.71.05"]
    assert _kept_driver(DriverState().process([version, *module])) == "595.71.05"
    assert _kept_driver(DriverState().process(module)) is None


def test_a_power_limit_outside_a_cards_range_is_refused_and_within_it_is_not() -> None:
    assert problems(BARE, gpu_power=450) == []
    found = problems(BARE, gpu_power=[450, 450, 450, 620])
    assert [problem.found for problem in found] == [
        "620 W (`gpu_power`) for the GPU at 0000:81:00.0; the RTX PRO 6000 Blackwell Workstation Edition accepts 150 "
        "to 600 W"
    ]
    absent = only(problems(BARE, gpu_power=[450] * 5))
    assert (absent.id, absent.found) == ("gpus-power", "`gpu_power` names 4; the host has 4 GPUs")


def test_the_range_that_a_card_reports_counts_before_that_of_its_kind() -> None:
    # Two boards with one chip: 575 W is the most that this one accepts.
    boards = [replace(card, device=0x2B85) for card in CARDS]
    own = [Card(at, "NVIDIA GeForce RTX 5090", card.address, False, (400, 575)) for at, card in enumerate(boards)]
    before, after = changed(BARE, pci=boards), changed(BARE, pci=boards, cards=own)

    def power(facts: HostFacts, watts: int) -> list[str]:
        return [each.found for each in problems(facts, gpu_power={"0": watts}) if each.id == "gpus-power"]

    told = "(`gpu_power`) for the GPU at 0000:21:00.0; the GeForce RTX 5090 accepts"
    assert power(before, 390) == [f"390 W {told} 400 to 600 W"]
    assert power(before, 600) == []
    assert power(after, 600) == [f"600 W {told} 400 to 575 W"]
    assert power(after, 575) == []
