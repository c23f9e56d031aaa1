"""Preflight's checks of the machine itself: system, login, GPUs, memory, firmware."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rigup.config.endpoint import gpu_indices
from rigup.distros.table import distro_id
from rigup.errors import RigupError
from rigup.hardware.cards import CARDS, OTHERS, SUPPORTED, described
from rigup.hardware.power import wanted
from rigup.plan.model import ENGINE_MEMORY_BYTES, EndpointPlan
from rigup.preflight.snapshot import HostCheck, PciDevice
from rigup.text import size

NVIDIA = 0x10DE
DISPLAY_CONTROLLER = 0x03

# As systemd-detect-virt(1) names them. Not systemd-nspawn: it is also used to boot whole systems for tests.
CONTAINERS = ("lxc", "lxc-libvirt", "openvz", "docker", "podman", "wsl")

# The drivers that leave a GPU to NVIDIA's as soon as that is installed, and NVIDIA's own.
DRIVERS = ("nvidia", "nouveau", "nova_core")

# Each engine process needs some GiB of host memory next to its GPU; a model does not load with less than this.


def nvidia_gpus(devices: Sequence[PciDevice]) -> list[PciDevice]:
    """Return NVIDIA's display controllers: neither other vendors' graphics nor the audio functions of the cards."""
    return [device for device in devices if device.vendor == NVIDIA and device.class_code >> 16 == DISPLAY_CONTROLLER]


def system(host: HostCheck) -> None:
    """Check distribution, architecture and init system."""
    if host.distro is None:
        try:
            distro_id(host.facts.system.os_release)
        except RigupError as error:
            host.problem("system-release", error.message, error.remedy)
    if host.facts.system.architecture != "x86_64":
        found = f"the machine is {host.facts.system.architecture or 'of an unknown architecture'}"
        host.problem("system-architecture", found, "use an x86_64 machine: the packages and images are built for it")
    if host.facts.system.init != "systemd":
        host.problem(
            "system-init",
            f"process 1 is {host.facts.system.init or 'unknown'}, not systemd",
            "use a host that boots with systemd, not a container",
        )


def container(host: HostCheck) -> None:
    """Check that this is a machine: a container has its host's kernel, for which it cannot install a driver."""
    if host.facts.system.container in CONTAINERS:
        host.problem(
            "system-container",
            f"this system is a container ({host.facts.system.container}): the kernel and the driver are its host's",
            "deploy to the machine itself, or to a virtual machine that the GPUs are passed to",
        )


def privilege(host: HostCheck) -> None:
    """Check that the login user can become root."""
    if host.facts.system.privilege not in ("root", "sudo"):
        host.problem(
            "login-privilege",
            "the login user is not root and cannot use sudo without a password",
            "add `USER ALL=(ALL) NOPASSWD: ALL` under /etc/sudoers.d/, or log in as root",
        )


def gpus(host: HostCheck) -> None:
    """Check that every endpoint gets the GPUs that its recipe needs."""
    cards = nvidia_gpus(host.facts.hardware.pci)
    if others := _unsupported(host, cards):
        if all(card.device not in CARDS for card in cards):
            _refuse(host, others, f"0 supported among {len(cards)}: ", f"use a host with one of these: {SUPPORTED}")
            return
        # By UUID an endpoint gets the cards that it names; by index it may get any.
        if not all(endpoint.gpu_uuids for endpoint in host.plan.endpoints):
            _refuse(host, others, "not supported: ", "remove it, or name the GPUs of each endpoint by UUID (`gpus`)")
            return
    numbers, users = host.facts.hardware.gpu_indices, dict[int, str]()
    for endpoint in host.plan.endpoints:
        uuids = endpoint.gpu_uuids
        # UUIDs are unknown until the driver is installed; a container with a device that does not exist fails to start.
        if numbers and (unknown := [uuid for uuid in uuids if uuid not in numbers]):
            host.problem(
                "gpus-unknown",
                f"endpoint {endpoint.name} uses {', '.join(unknown)}; the host has {', '.join(numbers)}",
                f"correct endpoints.{endpoint.name}.gpus: `nvidia-smi -L` lists them",
            )
            continue
        indices = gpu_indices(endpoint.gpus, len(cards), numbers)
        if twice := [number for number in indices if users.setdefault(number, endpoint.name) != endpoint.name]:
            host.problem(
                "gpus-shared",
                f"endpoints {users[twice[0]]} and {endpoint.name} both use GPU {', '.join(map(str, twice))}, by "
                "index and by UUID",
                f"correct endpoints.{endpoint.name}.gpus",
            )
            continue
        if len(indices) < endpoint.gpu_count and not (uuids and not numbers):
            host.problem(
                "gpus-missing",
                f"{len(cards)} on the bus; recipe {endpoint.recipe} of endpoint {endpoint.name} "
                f"needs {endpoint.gpu_count}",
                "reseat the missing cards and check the BIOS (Above 4G decoding), or choose a recipe for fewer GPUs",
            )
            continue
        if absent := [index for index in indices if index >= len(cards)]:
            host.problem(
                "gpus-unknown",
                f"endpoint {endpoint.name} uses GPU {', '.join(map(str, absent))}; the host has {len(cards)}",
                f"correct endpoints.{endpoint.name}.gpus",
            )
            continue
        for index in indices:
            _suits(host, endpoint, cards[index])


def _unsupported(host: HostCheck, cards: Sequence[PciDevice]) -> dict[str, list[str]]:
    """Return the PCI addresses of the cards that no recipe is for, by what they are."""
    names = {card.address: card.name for card in host.facts.hardware.cards}
    found = dict[str, list[str]]()
    for card in cards:
        if card.device not in CARDS:
            why = f": {OTHERS[card.device][1]}" if card.device in OTHERS else ""
            found.setdefault(f"{described(card.device, names.get(card.address, ''))}{why}", []).append(card.address)
    return found


def _refuse(host: HostCheck, others: Mapping[str, Sequence[str]], found: str, remedy: str) -> None:
    listed = "; ".join(f"{kind} (at {', '.join(addresses)})" for kind, addresses in others.items())
    host.problem("gpus-unsupported", f"{found}{listed}", remedy)


def _suits(host: HostCheck, endpoint: EndpointPlan, card: PciDevice) -> None:
    """Check that a card has what a recipe needs."""
    known = CARDS.get(card.device)
    if known is None:
        host.problem(
            "gpus-unsupported",
            f"endpoint {endpoint.name} uses the {described(card.device)} at {card.address}, which is not supported",
            f"correct endpoints.{endpoint.name}.gpus",
        )
    elif known.capability != endpoint.capability:
        host.problem(
            "gpus-capability",
            f"the GPU at {card.address} has compute capability {known.capability}; recipe {endpoint.recipe} needs "
            f"{endpoint.capability}",
            "choose a recipe for this card",
        )
    elif max(known.memory_mib) < endpoint.vram_mib:
        host.problem(
            "gpus-memory",
            f"the GPU at {card.address} has {size(max(known.memory_mib) << 20, binary=True)}; "
            f"recipe {endpoint.recipe} needs {size(endpoint.vram_mib << 20, binary=True)}",
            "choose a recipe that fits",
        )


def mig(host: HostCheck) -> None:
    """Check that no GPU is partitioned: CDI lists the partitions of such a GPU, and not the GPU itself."""
    for card in host.facts.hardware.cards:
        if card.mig:
            host.problem(
                "gpus-mig",
                f"GPU {card.index} ({card.name}, at {card.address}) is in MIG mode: engines need whole GPUs",
                f"run `nvidia-smi -i {card.index} -mig 0` there; if it then says that a reset is pending, reboot",
            )


def bound(host: HostCheck) -> None:
    """Check that no GPU is kept for something else, such as virtual machines: NVIDIA's driver would not see it."""
    kept: dict[str, list[str]] = {}
    for address, driver in host.facts.hardware.bound.items():
        if driver not in DRIVERS:
            kept.setdefault(driver, []).append(address)
    for driver, addresses in kept.items():
        host.problem(
            "gpus-bound",
            f"{driver} has the GPU at {', '.join(addresses)}: NVIDIA's driver cannot use it",
            f"take it from {driver} (`grep -r vfio /etc/modprobe.d /proc/cmdline` shows how it gets GPUs for virtual "
            "machines), run `update-initramfs -u -k all`, and reboot",
        )


def power(host: HostCheck) -> None:
    """Check that the GPUs accept their power limits."""
    uuids = {number: uuid for uuid, number in host.facts.hardware.gpu_indices.items()}
    limits = host.settings.gpu_power
    cards = nvidia_gpus(host.facts.hardware.pci)
    # What the card itself says: boards of one kind differ.
    own = {card.address: card.watts for card in host.facts.hardware.cards if card.watts}
    for index, card in enumerate(cards):
        watts = wanted(limits, index, uuids.get(index, ""))
        known = own.get(card.address) or (CARDS[card.device].watts if card.device in CARDS else None)
        name = CARDS[card.device].name if card.device in CARDS else described(card.device)
        if watts is not None and known and not known[0] <= watts <= known[1]:
            host.problem(
                "gpus-power",
                f"{watts} W (`gpu_power`) for the GPU at {card.address}; the {name} accepts {known[0]} to {known[1]} W",
                "choose a limit within the range of each card: `gpu_power: [450, 300]` has one for each card",
            )
    unknown = [gpu for gpu in limits if gpu.isdigit() and int(gpu) >= len(cards)]
    unknown += [gpu for gpu in limits if uuids and gpu.startswith("GPU-") and gpu not in uuids.values()]
    if unknown:
        host.problem(
            "gpus-power",
            f"`gpu_power` names {', '.join(unknown)}; the host has {len(cards)} GPUs",
            "correct gpu_power: `nvidia-smi -L` lists them",
        )


def slots(host: HostCheck) -> None:
    """Warn about slow slots. Software cannot fix them, and some rigs are built that way: they serve, but slower."""
    narrow: dict[tuple[int, int], list[str]] = {}
    hidden: dict[int, list[str]] = {}
    for card in host.facts.hardware.pci:
        slot, known = host.facts.hardware.slots.get(card.address), CARDS.get(card.device)
        if slot is None or known is None:
            continue
        if 0 < slot.lanes < slot.card_lanes:
            narrow.setdefault((slot.lanes, slot.card_lanes), []).append(card.address)
        if 0 < slot.window < min(known.memory_mib) << 20:
            hidden.setdefault(slot.window, []).append(card.address)
    for (lanes, card_lanes), cards in narrow.items():
        host.problem(
            "gpus-lanes",
            f"{lanes} of {card_lanes} lanes: the GPU at {', '.join(cards)}",
            "if this is so under load too, check the riser, the slot and its bifurcation in the BIOS: all traffic "
            "between GPUs uses these lanes",
        )
    for window, cards in hidden.items():
        host.problem(
            "gpus-bar1",
            f"{size(window, binary=True)} of memory on the bus (BAR1): the GPU at {', '.join(cards)}",
            "enable Above 4G decoding and Resizable BAR in the BIOS: without them GPUs cannot access each other's "
            "memory",
        )


def memory(host: HostCheck) -> None:
    """Check the host's memory."""
    if host.facts.hardware.memory < ENGINE_MEMORY_BYTES:
        host.problem(
            "memory-size",
            f"{size(host.facts.hardware.memory, binary=True)} of memory; "
            f"the engine needs {size(ENGINE_MEMORY_BYTES, binary=True)}",
            "add memory: an engine that swaps is too slow to serve",
        )


def secure_boot(host: HostCheck) -> None:
    """Check that Secure Boot is off, or trusts what DKMS builds."""
    if host.facts.hardware.secure_boot:
        host.problem(
            "firmware-secure-boot",
            "Secure Boot is on: the driver would build but never load",
            "turn it off in the firmware; or enroll DKMS's key (`mokutil --import /var/lib/dkms/mok.pub`, on Ubuntu "
            "/var/lib/shim-signed/mok/MOK.der) and confirm that at the console during the next boot",
        )
