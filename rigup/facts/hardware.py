"""The hardware of a host: CPUs, PCI bus and slots, the firmware's Secure Boot switch, disk space."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.facts.reading import ONE_LINE_EACH, Value, reading

SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
# The public keys that DKMS signs with: its own, and on Ubuntu the system's (dkms(8), `mok_certificate`).
DKMS_KEYS = ("/var/lib/dkms/mok.pub", "/var/lib/shim-signed/mok/MOK.der")
# What mokutil prints of a key that shim or the firmware trusts, and of a shim that trusts everything (src/mokutil.c).
TRUSTING = re.compile(r" is already (enrolled|in db)$| validation is disabled in shim$")
END_OF_PATHS = "--- mounts"
END_OF_MOUNTS = "--- space"
END_OF_SPACE = "--- files"


@dataclass(frozen=True)
class PciDevice(Value):
    """One function on the PCI bus; `address` is `domain:bus:device.function`, `class_code` has 24 bits."""

    address: str
    vendor: int
    device: int
    class_code: int


@dataclass(frozen=True)
class Slot(Value):
    """How a card is connected: it uses `lanes` of its `card_lanes` (0: unknown) and has a window of `window` bytes.

    The window is its largest region on the bus; for a GPU that is BAR1, through which others access its memory.
    """

    lanes: int
    card_lanes: int
    window: int


@dataclass(frozen=True)
class DiskSpace(Value):
    """The file system of a path, whether or not the path exists: its mount point, its size and free space in bytes.

    `files` is how many more files it can have, None if it has no such limit.
    """

    mount: str
    size: int
    available: int
    read_only: bool = False
    files: int | None = None


@dataclass(frozen=True)
class Mount:
    """A line of /proc/self/mountinfo. `parent` is the ID of the mount that it is mounted on, `device` MAJOR:MINOR."""

    id: str
    parent: str
    device: str
    point: str
    read_only: bool


def parse_pci_devices(lines: list[str]) -> list[PciDevice]:
    """Parse devices in bus order, from lines `/sys/bus/pci/devices/ADDRESS/{vendor,device,class}:0xNUMBER`."""
    found: dict[str, dict[str, int]] = {}
    for line in lines:
        path, _, number = line.rpartition(":")
        address, attribute = path.split("/")[-2:]
        found.setdefault(address, {})[attribute] = int(number, 16)
    return [
        PciDevice(address, values["vendor"], values["device"], values["class"])
        for address, values in sorted(found.items())
    ]


def parse_slots(lines: Sequence[str]) -> dict[str, Slot]:
    """Parse slots by the address of their card, from lines `/sys/bus/pci/devices/ADDRESS/FILE:CONTENT`."""
    lanes: dict[str, int] = {}
    card_lanes: dict[str, int] = {}
    windows: dict[str, int] = {}
    for line in lines:
        found = re.fullmatch(r".*/([^/]+)/(\w+):(.*)", line)
        if found is None:
            continue
        address, file, content = found.groups()
        if file == "resource":
            # The first and the last byte of each region; zeros for a region that does not exist.
            first, last = (int(word, 16) for word in content.split()[:2])
            windows[address] = max(windows.get(address, 0), last - first + 1 if last else 0)
        elif content.isdigit():
            (lanes if file == "current_link_width" else card_lanes)[address] = int(content)
    return {
        address: Slot(lanes.get(address, 0), card_lanes.get(address, 0), window) for address, window in windows.items()
    }


def parse_mounts(lines: Sequence[str]) -> list[Mount]:
    """Parse /proc/self/mountinfo, proc_pid_mountinfo(5)."""
    found = []
    for line in lines:
        mount, _, system = line.partition(" - ")
        id_, parent, device, _, point, options, *_ = mount.split()
        # The mount may be read-only, or the whole file system.
        read_only = "ro" in options.split(",") or "ro" in system.split()[-1].split(",")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)
        found.append(Mount(id_, parent, device, point, read_only))
    return found


def mount_of(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """Return the mount that a path is on: the innermost one that no later mount hides. None for a path on no mount."""
    ids = {mount.id for mount in mounts}
    current: Mount | None = None
    parts = path.strip("/").split("/")
    for prefix in ("/", *(f"/{'/'.join(parts[:count])}" for count in range(1, len(parts) + 1))):
        # Several may be mounted at one place, each on the one before it.
        while over := next((each for each in mounts if each.point == prefix and _is_on(each, current, ids)), None):
            current = over
    return current


def _is_on(mount: Mount, below: Mount | None, ids: set[str]) -> bool:
    """Return whether a mount is mounted on `below`; on none of them if that is None."""
    if below is None:
        return mount.parent == mount.id or mount.parent not in ids
    return mount.parent == below.id and mount.id != below.id


def parse_disk_free(paths: Sequence[str], lines: list[str]) -> dict[str, DiskSpace]:
    """Return the file system of each of `paths`, from their resolved names, mountinfo, and what `df` says of each.

    `df` shows one mount of each file system: bind mounts have its size and free space.
    """
    at, end = lines.index(END_OF_PATHS), lines.index(END_OF_MOUNTS)
    last = lines.index(END_OF_SPACE) if END_OF_SPACE in lines else len(lines)
    mounts = parse_mounts(lines[at + 1 : end])
    sizes, files = _by_mount(lines[end + 2 : last], 2), _by_mount(lines[last + 2 :], 1)
    found = {}
    for path, real in zip(paths, lines[:at], strict=True):
        if mount := mount_of(real, mounts):
            points = [mount.point, *(each.point for each in mounts if each.device == mount.device)]
            # `df` leaves out what it cannot ask, and what has no blocks.
            size, available = next((sizes[point] for point in points if point in sizes), (0, 0))
            free = next((files[point][0] for point in points if point in files), None)
            found[path] = DiskSpace(mount.point, size, available, read_only=mount.read_only, files=free)
    return found


def _by_mount(rows: Iterable[str], count: int) -> dict[str, list[int]]:
    """Return the numbers in rows of `df` by mount point, without rows that have none."""
    cells = (row.split(None, count) for row in rows)
    return {point: [int(each) for each in numbers] for *numbers, point in cells if all(map(str.isdigit, numbers))}


class BoundDrivers(FactBase[dict[str, str]]):
    """The kernel driver that each of the devices at these addresses belongs to; none for a device without one."""

    @staticmethod
    def default() -> dict[str, str]:
        return {}

    def command(self, addresses: Sequence[str]) -> StringCommand:
        paths = [QuoteString(f"/sys/bus/pci/devices/{address}/driver") for address in addresses]
        return StringCommand("find", *paths, "/dev/null -maxdepth 0 -type l -printf '%h %l\\n' 2>/dev/null || true")

    @reading
    def process(self, output: list[str]) -> dict[str, str]:
        links = (line.partition(" ") for line in output)
        return {device.rpartition("/")[2]: driver.rpartition("/")[2] for device, _, driver in links}


class CpuCount(FactBase[int]):
    """How many CPUs the machine has, including those that are offline."""

    @staticmethod
    def default() -> int:
        return 0

    def command(self) -> str:
        return "nproc --all"

    @reading
    def process(self, output: list[str]) -> int:
        return int(output[0])


class PciDevices(FactBase[list[PciDevice]]):
    """All devices on the PCI bus, read from sysfs because a bare host has no lspci."""

    @staticmethod
    def default() -> list[PciDevice]:
        return []

    def command(self) -> str:
        attributes = " ".join(f"/sys/bus/pci/devices/*/{name}" for name in ("vendor", "device", "class"))
        return f"grep -H . {attributes} 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> list[PciDevice]:
        return parse_pci_devices(output)


class Slots(FactBase[dict[str, Slot]]):
    """How the cards at these addresses are connected; missing ones are left out."""

    @staticmethod
    def default() -> dict[str, Slot]:
        return {}

    def command(self, addresses: Sequence[str]) -> StringCommand:
        files = ("resource", "current_link_width", "max_link_width")
        paths = [f"/sys/bus/pci/devices/{address}/{file}" for address in addresses for file in files]
        return StringCommand("grep -H .", *map(QuoteString, paths), "/dev/null 2>/dev/null || true")

    @reading
    def process(self, output: list[str]) -> dict[str, Slot]:
        return parse_slots(output)


class SecureBoot(FactBase[bool]):
    """Whether Secure Boot keeps modules that DKMS builds from loading; false on machines without EFI.

    The variable is four bytes of attributes and one of value (UEFI specification, 3.3). Modules load if DKMS's key is
    enrolled (mokutil(1), `--test-key`), or if shim's validation is off (`--sb-state`).
    """

    @staticmethod
    def default() -> bool:
        return False

    def command(self) -> str:
        tests = "; ".join(f"mokutil --test-key {key} 2>&1" for key in DKMS_KEYS)
        return f"od -An -tu1 -j4 -N1 {SECURE_BOOT} 2>/dev/null; mokutil --sb-state 2>&1; {tests}; true"

    @reading
    def process(self, output: list[str]) -> bool:
        return output[0].strip() == "1" and not any(map(TRUSTING.search, output))


class DiskFree(FactBase[dict[str, DiskSpace]]):
    """The file system of each path, whether or not the path exists yet."""

    _paths: Sequence[str] = ()

    @staticmethod
    def default() -> dict[str, DiskSpace]:
        return {}

    def command(self, paths: Sequence[str]) -> StringCommand:
        self._paths = paths
        names = [QuoteString(path) for path in paths]
        return StringCommand(
            # Mounts what is mounted only when it is used.
            *("stat -f --", *names, ">/dev/null 2>&1; readlink -m --", *names),
            f"; echo '{END_OF_PATHS}'; cat /proc/self/mountinfo; echo '{END_OF_MOUNTS}';",
            f"df -B1 --output=size,avail,target 2>/dev/null; echo '{END_OF_SPACE}';",
            # A file system that creates them as needed says that it has none at all.
            "df --output=iavail,itotal,target 2>/dev/null | sed -nE 's/^ *([0-9]+) +[1-9][0-9]* /\\1 /p; 1p'; true",
        )

    @reading
    def process(self, output: list[str]) -> dict[str, DiskSpace]:
        return parse_disk_free(self._paths, output)


class FileSystems(FactBase[list[DiskSpace]]):
    """The local file systems that keep files, without those of the firmware and of containers."""

    @staticmethod
    def default() -> list[DiskSpace]:
        return []

    def command(self) -> str:
        kinds = " ".join(f"-x {kind}" for kind in ("devtmpfs", "efivarfs", "overlay", "squashfs", "tmpfs", "vfat"))
        return f"df -B1 --local {kinds} --output=size,avail,target 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> list[DiskSpace]:
        rows = [line.split(None, 2) for line in output[1:]]
        known = [row for row in rows if row[0].isdigit() and row[1].isdigit()]
        return [DiskSpace(mount, int(size), int(free)) for size, free, mount in known]


class FileSystemLabels(FactBase[list[str]]):
    """The labels of file systems, with special characters escaped as udev does."""

    @staticmethod
    def default() -> list[str]:
        return []

    def command(self) -> str:
        return f"find /dev/disk/by-label -mindepth 1 -printf '%f\\0' {ONE_LINE_EACH}"

    @reading
    def process(self, output: list[str]) -> list[str]:
        return list(output)
