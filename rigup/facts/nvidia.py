"""NVIDIA's driver, whose loaded module, modules on disk and userspace can differ, and its GPUs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pyinfra.api.facts import FactBase

from rigup.facts.reading import Value, reading

GPU_LINE = re.compile(r"GPU (\d+): (.+) \(UUID: (\S+)\)")
SMI_VERSION = re.compile(r"NVIDIA-SMI version\s*: (\S+)")


@dataclass(frozen=True)
class DriverStateValue(Value):
    """Versions such as `595.71.05`.

    `loaded` and `userspace` are None if there is none; `on_disk` has the version that each kernel would load.
    `open_module` says whether the open flavor is loaded, which Blackwell needs.
    """

    loaded: str | None = None
    open_module: bool = False
    on_disk: Mapping[str, str] = field(default_factory=dict)
    userspace: str | None = None
    nouveau: bool = False


@dataclass(frozen=True)
class Gpu(Value):
    """One line of `nvidia-smi -L`."""

    index: int
    name: str
    uuid: str


def parse_driver_state(lines: list[str]) -> DriverStateValue:
    """Parse /proc/driver/nvidia/version, nouveau's directory, `nvidia-smi --version`, and modules with versions."""
    loaded = userspace = None
    open_module = nouveau = False
    modules: dict[str, str] = {}
    path = ""
    for line in lines:
        if line.startswith("NVRM version:"):
            numbers = re.search(r"\s(\d+\.[\d.]+)\s", f"{line} ")
            loaded = numbers.group(1) if numbers else None
            open_module = "Open Kernel Module" in line
        elif match := SMI_VERSION.match(line):
            userspace = match.group(1)
        elif line == "/sys/module/nouveau":
            nouveau = True
        elif line.startswith("/"):
            path = line
        elif path and line.strip():
            modules[path], path = line.strip(), ""
    return DriverStateValue(loaded, open_module, _by_kernel(modules), userspace, nouveau)


def _by_kernel(modules: Mapping[str, str]) -> dict[str, str]:
    """Return the module that each kernel would load: depmod searches `updates` first (depmod.d(5))."""
    chosen: dict[str, str] = {}
    for path in sorted(modules, key=lambda name: "/updates/" in name):
        kernel = path.partition("/modules/")[2].partition("/")[0]
        chosen[kernel] = modules[path]
    return chosen


def parse_gpu_list(lines: list[str]) -> list[Gpu]:
    """Parse `nvidia-smi -L`, without its error messages."""
    matches = (GPU_LINE.match(line.strip()) for line in lines)
    return [Gpu(int(match[1]), match[2], match[3]) for match in matches if match]


def parse_cdi_devices(lines: list[str]) -> list[str]:
    """Parse `nvidia-ctk cdi list`, without its log lines."""
    return sorted(line.strip() for line in lines if line.startswith("nvidia.com/"))


class DriverState(FactBase[DriverStateValue]):
    """Which driver is loaded, which one each installed kernel would load, and which one the userspace belongs to."""

    @staticmethod
    def default() -> DriverStateValue:
        return DriverStateValue()

    def command(self) -> str:
        return (
            "cat /proc/driver/nvidia/version 2>/dev/null; ls -d /sys/module/nouveau 2>/dev/null; "
            "nvidia-smi --version 2>/dev/null; "
            "find /lib/modules/ -name 'nvidia.ko*' -print -exec /sbin/modinfo -F version {} ';' 2>/dev/null || true"
        )

    @reading
    def process(self, output: list[str]) -> DriverStateValue:
        return parse_driver_state(output)


class GpuList(FactBase[list[Gpu]]):
    """The GPUs that the driver lists."""

    @staticmethod
    def default() -> list[Gpu]:
        return []

    def command(self) -> str:
        return "nvidia-smi -L 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> list[Gpu]:
        return parse_gpu_list(output)


class CdiDevices(FactBase[list[str]]):
    """The names by which containers can request GPUs, such as `nvidia.com/gpu=all`."""

    @staticmethod
    def default() -> list[str]:
        return []

    def command(self) -> str:
        return "nvidia-ctk cdi list 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> list[str]:
        return parse_cdi_devices(output)


# nvml.h, nvmlClocksEventReasons. An idle card and clocks that someone has set are not listed.
THROTTLES = {
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x20: "heat",
    0x40: "heat (hardware)",
    0x80: "power brake",
}
USE_FIELDS = (
    "index,memory.used,memory.total,utilization.gpu,temperature.gpu,power.draw,enforced.power.limit,"
    "clocks_event_reasons.active,pci.bus_id,name"
)


@dataclass(frozen=True)
class PowerLimit(Value):
    """The power limit of one GPU in watts."""

    index: int
    uuid: str
    watts: float


def parse_power_limits(lines: list[str]) -> list[PowerLimit]:
    """Parse `nvidia-smi --query-gpu`, without its error messages. Cards without limits say `[N/A]`."""
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    return [
        PowerLimit(int(index), uuid, float(watts))
        for index, uuid, watts in (row for row in rows if len(row) == 3 and row[0].isdigit())
        if watts.replace(".", "", 1).isdigit()
    ]


class GpuPower(FactBase[list[PowerLimit]]):
    """The power limits of the GPUs."""

    @staticmethod
    def default() -> list[PowerLimit]:
        return []

    def command(self) -> str:
        return "nvidia-smi --query-gpu=index,uuid,power.limit --format=csv,noheader,nounits 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> list[PowerLimit]:
        return parse_power_limits(output)


@dataclass(frozen=True)
class GpuUseValue(Value):
    """What one GPU does. What the card does not report is None.

    `used` and `total` are memory in MiB, `busy` is in percent, `temperature` in degrees Celsius, `watts` and
    `watt_limit` in watts. `throttled` says what holds its clocks down. `address` is the PCI address as in sysfs.
    """

    index: int
    used: int
    total: int
    busy: int | None = None
    temperature: int | None = None
    watts: float | None = None
    watt_limit: float | None = None
    throttled: tuple[str, ...] = ()
    address: str = ""
    name: str = ""


def parse_gpu_use(lines: list[str]) -> list[GpuUseValue]:
    """Parse `nvidia-smi --query-gpu=USE_FIELDS`, without its error messages and cards without memory of their own."""
    found = []
    for line in lines:
        cells = [cell.strip() for cell in line.split(",", USE_FIELDS.count(","))]
        if len(cells) <= USE_FIELDS.count(","):
            continue
        index, used, total, busy, temperature = (_number(cell) for cell in cells[:5])
        watts, limit = (float(cell) if re.fullmatch(r"\d{1,6}(\.\d{1,6})?", cell) else None for cell in cells[5:7])
        reasons = int(cells[7], 16) if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", cells[7]) else 0
        if index is not None and used is not None and total is not None:
            throttled = tuple(words for bit, words in THROTTLES.items() if reasons & bit)
            address = _sysfs_address(cells[8])
            found.append(GpuUseValue(index, used, total, busy, temperature, watts, limit, throttled, address, cells[9]))
    return found


def _number(cell: str) -> int | None:
    return int(cell) if re.fullmatch(r"\d{1,9}", cell) else None


def _sysfs_address(bus: str) -> str:
    """Return an address as sysfs has it, with a domain of four digits: 00000000:C1:00.0 is 0000:c1:00.0."""
    domain, _, rest = bus.partition(":")
    return f"{int(domain, 16):04x}:{rest.lower()}" if re.fullmatch("[0-9A-Fa-f]{1,8}", domain) else ""


class GpuUse(FactBase[list[GpuUseValue]]):
    """Memory, utilization, temperature and power of the GPUs, and what holds them down."""

    @staticmethod
    def default() -> list[GpuUseValue]:
        return []

    def command(self) -> str:
        return f"nvidia-smi --query-gpu={USE_FIELDS} --format=csv,noheader,nounits 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> list[GpuUseValue]:
        return parse_gpu_use(output)


@dataclass(frozen=True)
class Card(Value):
    """A GPU as the driver names it, its PCI address as in sysfs, and whether it is in MIG mode or will be.

    `watts` are the lowest and the highest power limit that the card accepts, None if it accepts none.
    """

    index: int
    name: str
    address: str
    mig: bool
    watts: tuple[int, int] | None = None


def parse_cards(lines: list[str]) -> list[Card]:
    """Parse `nvidia-smi --query-gpu`, without its error messages. Cards say `[N/A]` for what they do not have."""
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    return [
        Card(int(index), name, _sysfs_address(bus), "Enabled" in modes, _range(limits))
        for index, name, bus, *modes, low, high in (row for row in rows if len(row) == 7 and row[0].isdigit())
        for limits in ((low, high),)
    ]


def _range(limits: tuple[str, str]) -> tuple[int, int] | None:
    """Return the whole watts within two limits such as `150.00 W`."""
    low, high = (re.fullmatch(r"(\d{1,6})(\.\d{1,6})? W", limit) for limit in limits)
    return (math.ceil(float(f"{low[1]}{low[2] or ''}")), int(high[1])) if low and high else None


class Cards(FactBase[list[Card]]):
    """The GPUs with their names, MIG modes and power ranges; empty without a driver."""

    @staticmethod
    def default() -> list[Card]:
        return []

    def command(self) -> str:
        fields = "index,name,pci.bus_id,mig.mode.current,mig.mode.pending,power.min_limit,power.max_limit"
        return f"nvidia-smi --query-gpu={fields} --format=csv,noheader 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> list[Card]:
        return parse_cards(output)
