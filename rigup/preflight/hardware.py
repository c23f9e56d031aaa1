"""Preflight's look at the machine itself: system, login, GPUs, memory, firmware, boot loader."""

from __future__ import annotations

from collections.abc import Mapping

from rigup.config.endpoint import gpu_indices
from rigup.distros.table import distro_id
from rigup.errors import RigupError
from rigup.preflight.snapshot import GIB, Case, amount

__all__ = ["gpus", "iommu", "kernel_args", "memory", "privilege", "secure_boot", "slots", "system"]

NVIDIA = 0x10DE
DISPLAY_CONTROLLER = 0x03

# Memory of the cards with a GB202 (device ids 10de:2bb*), by device id, in MiB as nvidia-smi says it.
CARD_MIB: Mapping[int, int] = {0x2BB1: 97887, 0x2BB3: 48935, 0x2BB4: 97887, 0x2BB5: 97887}

# Of a machine with 256, one was lost to `amd_iommu=off` (the kernel's own words: "CPU 239 has invalid APIC ID ff").
CPUS_WITHOUT_IOMMU = 254
IOMMU_OFF = ("iommu=off", "amd_iommu=off", "intel_iommu=off")

# Each engine process holds some GiB of host memory beside its GPU; less than this does not load a model.
MEMORY_BYTES = 12 * GIB


def system(case: Case) -> None:
    if case.distro is None:
        try:
            distro_id(case.facts.os_release)
        except RigupError as error:
            case.problem("system", error.message, error.remedy)
    if case.facts.architecture != "x86_64":
        found = f"the machine is {case.facts.architecture or 'of an unknown kind'}"
        case.problem("architecture", found, "rigup's packages and images are for x86_64")
    if case.facts.init != "systemd":
        case.problem(
            "init",
            f"process 1 is {case.facts.init or 'unknown'}, not systemd",
            "boot it with systemd; no container",
        )


def privilege(case: Case) -> None:
    if case.facts.privilege not in ("root", "sudo"):
        case.problem(
            "privilege",
            "the login user is not root and has no sudo without a password",
            "add `USER ALL=(ALL) NOPASSWD: ALL` under /etc/sudoers.d/, or log in as root",
        )


def gpus(case: Case) -> None:
    displays = [d for d in case.facts.pci if d.vendor == NVIDIA and d.class_code >> 16 == DISPLAY_CONTROLLER]
    cards = [d for d in displays if d.device >> 4 == 0x2BB]
    for other in (d for d in displays if d not in cards):
        case.problem(
            "gpus",
            f"the GPU at {other.address} is 10de:{other.device:04x}, no RTX PRO 6000 Blackwell (10de:2bb*)",
            "take it out, or use this host for something else: the engine would see it too",
        )
    numbers, takers = case.facts.gpus, dict[int, str]()
    for endpoint in case.plan.endpoints:
        uuids = endpoint.gpu_uuids
        # Without a driver nobody knows UUIDs yet; containers are refused devices that are not there.
        if numbers and (unknown := [uuid for uuid in uuids if uuid not in numbers]):
            case.problem(
                "gpus",
                f"endpoint {endpoint.name} takes {', '.join(unknown)}; there are {', '.join(numbers)}",
                f"correct endpoints.{endpoint.name}.gpus: `nvidia-smi -L` lists them",
            )
            continue
        wanted = gpu_indices(endpoint.gpus, len(cards), numbers)
        if twice := [number for number in wanted if takers.setdefault(number, endpoint.name) != endpoint.name]:
            case.problem(
                "gpus",
                f"endpoints {takers[twice[0]]} and {endpoint.name} both take GPU {', '.join(map(str, twice))}, by "
                "number and by UUID",
                f"correct endpoints.{endpoint.name}.gpus",
            )
            continue
        if len(wanted) < endpoint.gpu_count and not (uuids and not numbers):
            case.problem(
                "gpus",
                f"{len(cards)} on the bus; recipe {endpoint.recipe} of endpoint {endpoint.name} "
                f"needs {endpoint.gpu_count}",
                "seat the missing cards and check the BIOS (Above 4G decoding), or choose a recipe for fewer GPUs",
            )
            continue
        if absent := [index for index in wanted if index >= len(cards)]:
            case.problem(
                "gpus",
                f"endpoint {endpoint.name} takes GPU {', '.join(map(str, absent))}; there are {len(cards)}, from 0",
                f"correct endpoints.{endpoint.name}.gpus",
            )
            continue
        for index in wanted:
            memory = CARD_MIB.get(cards[index].device)
            if memory is not None and memory < endpoint.vram_mib:
                case.problem(
                    "vram",
                    f"the GPU at {cards[index].address} has {amount(memory << 20)}; recipe {endpoint.recipe} "
                    f"needs {amount(endpoint.vram_mib << 20)}",
                    "choose a recipe that fits",
                )


def slots(case: Case) -> None:
    """Software cannot mend these, and a rig may be built so; it serves, and slower."""
    narrow: dict[tuple[int, int], list[str]] = {}
    hidden: dict[int, list[str]] = {}
    for card in case.facts.pci:
        slot, memory = case.facts.slots.get(card.address), CARD_MIB.get(card.device)
        if slot is None or memory is None:
            continue
        if 0 < slot.lanes < slot.card_lanes:
            narrow.setdefault((slot.lanes, slot.card_lanes), []).append(card.address)
        if 0 < slot.window < memory << 20:
            hidden.setdefault(slot.window, []).append(card.address)
    for (lanes, card_lanes), cards in narrow.items():
        case.problem(
            "gpus",
            f"{lanes} of {card_lanes} lanes: the GPU at {', '.join(cards)}",
            "if it is so under load too, look at the riser, the slot and its bifurcation in the BIOS: all that GPUs "
            "tell each other goes over these lanes",
        )
    for window, cards in hidden.items():
        case.problem(
            "gpus",
            f"{amount(window)} of memory on the bus (BAR1): the GPU at {', '.join(cards)}",
            "switch Above 4G decoding and Resizable BAR on in the BIOS: without them GPUs do not reach each other's "
            "memory",
        )


def memory(case: Case) -> None:
    if case.facts.memory < MEMORY_BYTES:
        case.problem(
            "memory",
            f"{amount(case.facts.memory)} of memory; the engine needs {amount(MEMORY_BYTES)}",
            "add memory; a model that swaps does not serve",
        )


def secure_boot(case: Case) -> None:
    if case.facts.secure_boot:
        case.problem(
            "secure-boot",
            "Secure Boot is on: the driver would build and never load",
            "turn it off in the firmware, or enrol /var/lib/dkms/mok.pub at the console and turn it off until then",
        )


def kernel_args(case: Case) -> None:
    lacking = [argument for argument in case.settings.kernel_args if argument not in case.facts.booted_with]
    if lacking and not case.facts.grub:
        case.problem(
            "kernel",
            f"the kernel was booted without {' '.join(lacking)} (`kernel_args`), and there is no update-grub",
            "add them where this host's boot loader reads them, as /etc/kernel/cmdline, and reboot; or set "
            "`kernel_args: []`",
        )


def iommu(case: Case) -> None:
    off = [argument for argument in case.settings.kernel_args if argument in IOMMU_OFF]
    if off and case.facts.cpus > CPUS_WITHOUT_IOMMU:
        case.problem(
            "kernel",
            f"{' '.join(off)} (`kernel_args`), and {case.facts.cpus} CPUs: without an IOMMU those whose number in the "
            "interrupt controller is 255 or more do not start",
            "set iommu=pt in its place, which lets GPUs reach each other as well",
        )
