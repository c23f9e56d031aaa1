"""Preflight's checks of the machine itself: system, login, GPUs, memory, firmware, boot loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rigup.boot_loader import GRUB_ARGUMENTS, GRUB_DEFAULTS, grub_drop_in
from rigup.config.endpoint import gpu_indices
from rigup.distros.table import distro_id
from rigup.errors import RigupError
from rigup.host_config import shell_variables
from rigup.paths import GRUB_CONFIG
from rigup.preflight.snapshot import GIB, HostCheck, PciDevice
from rigup.text import size

NVIDIA = 0x10DE
DISPLAY_CONTROLLER = 0x03

# Memory of the cards with a GB202 (device IDs 10de:2bb*), by device ID, in MiB as nvidia-smi reports it.
CARD_MIB: Mapping[int, int] = {0x2BB1: 97887, 0x2BB3: 48935, 0x2BB4: 97887, 0x2BB5: 97887}

# On a machine with 256 CPUs, `amd_iommu=off` cost one (the kernel logged "CPU 239 has invalid APIC ID ff").
CPUS_WITHOUT_IOMMU = 254
IOMMU_OFF = ("iommu=off", "amd_iommu=off", "intel_iommu=off")

# Each engine process needs some GiB of host memory next to its GPU; a model does not load with less than this.
MEMORY_BYTES = 12 * GIB


def nvidia_gpus(devices: Sequence[PciDevice]) -> list[PciDevice]:
    """Return NVIDIA's display controllers: neither other vendors' graphics nor the audio functions of the cards."""
    return [device for device in devices if device.vendor == NVIDIA and device.class_code >> 16 == DISPLAY_CONTROLLER]


def system(host: HostCheck) -> None:
    """Check distribution, architecture and init system."""
    if host.distro is None:
        try:
            distro_id(host.facts.system.os_release)
        except RigupError as error:
            host.problem("system", error.message, error.remedy)
    if host.facts.system.architecture != "x86_64":
        found = f"the machine is {host.facts.system.architecture or 'of an unknown architecture'}"
        host.problem("architecture", found, "use an x86_64 machine: the packages and images are built for it")
    if host.facts.system.init != "systemd":
        host.problem(
            "init",
            f"process 1 is {host.facts.system.init or 'unknown'}, not systemd",
            "use a host that boots with systemd, not a container",
        )


def privilege(host: HostCheck) -> None:
    """Check that the login user can become root."""
    if host.facts.system.privilege not in ("root", "sudo"):
        host.problem(
            "privilege",
            "the login user is not root and cannot use sudo without a password",
            "add `USER ALL=(ALL) NOPASSWD: ALL` under /etc/sudoers.d/, or log in as root",
        )


def gpus(host: HostCheck) -> None:
    """Check that every endpoint gets the GPUs that its recipe needs."""
    displays = nvidia_gpus(host.facts.hardware.pci)
    cards = [d for d in displays if d.device >> 4 == 0x2BB]
    names = {card.address: f"{card.name}, " for card in host.facts.hardware.cards}
    if displays and not cards:
        kinds = dict[str, list[str]]()
        for other in displays:
            kinds.setdefault(f"{names.get(other.address, '')}10de:{other.device:04x}", []).append(other.address)
        listed = "; ".join(f"{kind} (at {', '.join(addresses)})" for kind, addresses in kinds.items())
        host.problem(
            "gpus",
            f"0 supported among {len(displays)} GPUs: {listed}",
            "use a host with RTX PRO 6000 Blackwell cards (10de:2bb*): the recipes are for these",
        )
        return
    for other in (d for d in displays if d not in cards):
        host.problem(
            "gpus",
            f"the GPU at {other.address} is {names.get(other.address, '')}10de:{other.device:04x}, not an RTX PRO 6000 "
            "Blackwell (10de:2bb*)",
            "remove it, or use another host: the engine would see this GPU too",
        )
    numbers, users = host.facts.hardware.gpu_indices, dict[int, str]()
    for endpoint in host.plan.endpoints:
        uuids = endpoint.gpu_uuids
        # UUIDs are unknown until the driver is installed; a container with a device that does not exist fails to start.
        if numbers and (unknown := [uuid for uuid in uuids if uuid not in numbers]):
            host.problem(
                "gpus",
                f"endpoint {endpoint.name} uses {', '.join(unknown)}; the host has {', '.join(numbers)}",
                f"correct endpoints.{endpoint.name}.gpus: `nvidia-smi -L` lists them",
            )
            continue
        indices = gpu_indices(endpoint.gpus, len(cards), numbers)
        if twice := [number for number in indices if users.setdefault(number, endpoint.name) != endpoint.name]:
            host.problem(
                "gpus",
                f"endpoints {users[twice[0]]} and {endpoint.name} both use GPU {', '.join(map(str, twice))}, by "
                "index and by UUID",
                f"correct endpoints.{endpoint.name}.gpus",
            )
            continue
        if len(indices) < endpoint.gpu_count and not (uuids and not numbers):
            host.problem(
                "gpus",
                f"{len(cards)} on the bus; recipe {endpoint.recipe} of endpoint {endpoint.name} "
                f"needs {endpoint.gpu_count}",
                "reseat the missing cards and check the BIOS (Above 4G decoding), or choose a recipe for fewer GPUs",
            )
            continue
        if absent := [index for index in indices if index >= len(cards)]:
            host.problem(
                "gpus",
                f"endpoint {endpoint.name} uses GPU {', '.join(map(str, absent))}; the host has {len(cards)}",
                f"correct endpoints.{endpoint.name}.gpus",
            )
            continue
        for index in indices:
            memory = CARD_MIB.get(cards[index].device)
            if memory is not None and memory < endpoint.vram_mib:
                host.problem(
                    "vram",
                    f"the GPU at {cards[index].address} has {size(memory << 20, binary=True)}; "
                    f"recipe {endpoint.recipe} needs {size(endpoint.vram_mib << 20, binary=True)}",
                    "choose a recipe that fits",
                )


def mig(host: HostCheck) -> None:
    """Check that no GPU is partitioned: CDI lists the partitions of such a GPU, and not the GPU itself."""
    for card in host.facts.hardware.cards:
        if card.mig:
            host.problem(
                "gpus",
                f"GPU {card.index} ({card.name}, at {card.address}) is in MIG mode: engines need whole GPUs",
                f"run `nvidia-smi -i {card.index} -mig 0` there; if it then says that a reset is pending, reboot",
            )


def slots(host: HostCheck) -> None:
    """Warn about slow slots. Software cannot fix them, and some rigs are built that way: they serve, but slower."""
    narrow: dict[tuple[int, int], list[str]] = {}
    hidden: dict[int, list[str]] = {}
    for card in host.facts.hardware.pci:
        slot, memory = host.facts.hardware.slots.get(card.address), CARD_MIB.get(card.device)
        if slot is None or memory is None:
            continue
        if 0 < slot.lanes < slot.card_lanes:
            narrow.setdefault((slot.lanes, slot.card_lanes), []).append(card.address)
        if 0 < slot.window < memory << 20:
            hidden.setdefault(slot.window, []).append(card.address)
    for (lanes, card_lanes), cards in narrow.items():
        host.problem(
            "gpus",
            f"{lanes} of {card_lanes} lanes: the GPU at {', '.join(cards)}",
            "if this is so under load too, check the riser, the slot and its bifurcation in the BIOS: all traffic "
            "between GPUs uses these lanes",
        )
    for window, cards in hidden.items():
        host.problem(
            "gpus",
            f"{size(window, binary=True)} of memory on the bus (BAR1): the GPU at {', '.join(cards)}",
            "enable Above 4G decoding and Resizable BAR in the BIOS: without them GPUs cannot access each other's "
            "memory",
        )


def memory(host: HostCheck) -> None:
    """Check the host's memory."""
    if host.facts.hardware.memory < MEMORY_BYTES:
        host.problem(
            "memory",
            f"{size(host.facts.hardware.memory, binary=True)} of memory; "
            f"the engine needs {size(MEMORY_BYTES, binary=True)}",
            "add memory: an engine that swaps is too slow to serve",
        )


def secure_boot(host: HostCheck) -> None:
    """Check that Secure Boot is off."""
    if host.facts.hardware.secure_boot:
        host.problem(
            "secure-boot",
            "Secure Boot is on: the driver would build but never load",
            "turn it off in the firmware, at least until /var/lib/dkms/mok.pub is enrolled at the console",
        )


def kernel_args(host: HostCheck) -> None:
    """Check that missing kernel arguments can be set: only GRUB is supported."""
    lacking = [argument for argument in host.settings.kernel_args if argument not in host.facts.system.kernel_arguments]
    if lacking and not host.facts.system.has_update_grub:
        host.problem(
            "kernel",
            f"the kernel was booted without {' '.join(lacking)} (`kernel_args`), and there is no update-grub",
            "add them to the configuration of this host's boot loader, such as /etc/kernel/cmdline, and reboot; or set "
            "`kernel_args: []`",
        )
    elif lacking and (found := _overriding(host)):
        path, lost = found
        host.problem(
            "kernel",
            f"{path} sets {GRUB_ARGUMENTS} anew, without {' '.join(lost)} (`kernel_args`) of {GRUB_CONFIG}",
            f'begin its value with "${GRUB_ARGUMENTS} ", or add the arguments to it',
        )


def _overriding(host: HostCheck) -> tuple[str, list[str]] | None:
    """Return the default file of GRUB in which arguments of ours get lost, and those; None if there is none."""
    texts = {**host.facts.system.grub_defaults, GRUB_CONFIG: grub_drop_in(host.settings.kernel_args)}
    names: dict[str, str] = {}
    # grub-mkconfig reads the directory after the file.
    for path in sorted(texts, key=lambda path: (path != GRUB_DEFAULTS, path)):
        names = shell_variables([texts[path]], names)
        words = f"{names.get('GRUB_CMDLINE_LINUX', '')} {names.get(GRUB_ARGUMENTS, '')}".split()
        lost = [argument for argument in host.settings.kernel_args if argument not in words]
        if lost and path > GRUB_CONFIG:
            return path, lost
    return None


def iommu(host: HostCheck) -> None:
    """Check that no kernel argument turns the IOMMU off on a machine that needs it."""
    off = [argument for argument in host.settings.kernel_args if argument in IOMMU_OFF]
    if off and host.facts.hardware.cpus > CPUS_WITHOUT_IOMMU:
        host.problem(
            "kernel",
            f"{' '.join(off)} (`kernel_args`), and {host.facts.hardware.cpus} CPUs: without an IOMMU, CPUs with an "
            "APIC ID of 255 or more do not start",
            "set iommu=pt instead, which also lets GPUs access each other's memory",
        )
