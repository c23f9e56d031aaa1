#!/usr/bin/env python3
"""The lab's nvidia-smi: describes the simulated hardware, in the formats and with the exit codes of the real one.

Its version is that of the installed driver library; the kernel module's comes from /proc. If they differ or one is
missing, it fails as the real one does. In a container it shows the GPUs that the container was given.
"""

import fnmatch
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

ROOT = Path(os.environ.get("LAB_ROOT", "/"))
HARDWARE = ROOT / "usr/lib/lab-hardware/lab.json"
LIBRARIES = ROOT / "usr/lib/x86_64-linux-gnu/nvidia"
MODULE_VERSION = ROOT / "proc/driver/nvidia/version"
KERNELS_OWN = ROOT / "usr/lib/lab-hardware/proc-driver/nvidia/version"
"""The source of MODULE_VERSION, for units with a private /proc, where a real kernel would still show it."""
STATE = ROOT / "run/lab-gpu-state.json"
"""Persistence mode and power limits; reset at boot, as on a real card."""
PERSISTENCED = ROOT / "run/nvidia-persistenced"
CONTAINER = ROOT / "run/lab-gpu"
"""In a container: the module's version, the hardware, and one file per visible GPU."""
DEVICE_CGROUP = CONTAINER / "device-cgroup"
"""In a container that got its GPUs from the hook; empty once the host's systemd was reloaded."""

CUDA_VERSIONS = {580: "13.0", 590: "13.1", 595: "13.2", 610: "13.3", 615: "13.4"}
Gpu = dict[str, Any]


class World(NamedTuple):
    """The versions of library and module, the visible GPUs and their settings."""

    library: str
    module: str
    gpus: list[Gpu]
    state: dict[str, Any]

    @property
    def cuda(self) -> str:
        return CUDA_VERSIONS.get(int(self.library.split(".")[0]), "N/A")


def fail(status: int, *lines: str) -> NoReturn:
    print(*lines, sep="\n")
    sys.exit(status)


def read_world() -> World:
    names = sorted(path.name.removeprefix("libnvidia-ml.so.") for path in LIBRARIES.glob("libnvidia-ml.so.*.*"))
    if not names:
        fail(
            12,
            "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system. Please make sure that the NVIDIA Display "
            "Driver is properly installed and present in your system.",
            "Please also try adding directory that contains libnvidia-ml.so to your system PATH.",
        )
    contained = CONTAINER.is_dir()
    if DEVICE_CGROUP.is_dir() and not (DEVICE_CGROUP / "lab-device-cgroup").exists():
        fail(255, "Failed to initialize NVML: Unknown Error")
    try:
        loaded = MODULE_VERSION if MODULE_VERSION.exists() else KERNELS_OWN
        text = (CONTAINER / "version" if contained else loaded).read_text()
        hardware = json.loads((CONTAINER / "lab.json" if contained else HARDWARE).read_text())
    except FileNotFoundError:
        fail(
            9,
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
            "NVIDIA driver is installed and running.",
            "",
        )
    # "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  595.91.07  Release Build  (...)"
    module = text.splitlines()[0].split("x86_64")[1].split()[0]
    library = names[-1]
    if module != library:
        major_minor = ".".join(library.split(".")[:2])
        fail(18, "Failed to initialize NVML: Driver/library version mismatch", f"NVML library version: {major_minor}")
    gpus = hardware["gpus"]
    if contained:
        given = {path.name for path in (CONTAINER / "gpus").glob("GPU-*")}
        gpus = [gpu for gpu in gpus if gpu["uuid"] in given]
        # A container numbers its GPUs from 0, as the real driver does with the device nodes it can open.
        gpus = [{**gpu, "index": index} for index, gpu in enumerate(gpus)]
    return World(library, module, gpus, read_state())


def read_state() -> dict[str, Any]:
    try:
        return dict(json.loads(STATE.read_text()))
    except FileNotFoundError:
        return {}


def write_state(state: dict[str, Any]) -> None:
    beside = STATE.with_suffix(".new")
    beside.write_text(json.dumps(state))
    beside.replace(STATE)


def bus_id(gpu: Gpu) -> str:
    """Return `0000:01:00.0` in nvidia-smi's format, with an eight-digit domain and in upper case."""
    domain, _, rest = gpu["bdf"].partition(":")
    return f"{int(domain, 16):08X}:{rest.upper()}"


def persistence(world: World, gpu: Gpu) -> bool:
    return bool(world.state.get("persistence", {}).get(gpu["uuid"], False)) or persistenced_runs()


def mig(world: World, gpu: Gpu) -> str:
    return "Enabled" if world.state.get("mig", {}).get(gpu["uuid"]) else "Disabled"


def persistenced_runs() -> bool:
    """Whether nvidia-persistenced runs and keeps the mode on; its files remain after it was killed."""
    try:
        process = (PERSISTENCED / "nvidia-persistenced.pid").read_text().strip()
    except FileNotFoundError:
        return False
    return (PERSISTENCED / "persistence-mode").exists() and Path("/proc", process).exists()


def power_limit(world: World, gpu: Gpu) -> float:
    return float(world.state.get("power_limit", {}).get(gpu["uuid"], gpu["power_limit_w"]["default"]))


Reader = Callable[[World, Gpu], Any]


class Field(NamedTuple):
    """A property of --query-gpu: its value, unit and aliases."""

    read: Reader
    unit: str = ""
    aliases: tuple[str, ...] = ()


def constant(value: Any) -> Reader:
    return lambda _world, _gpu: value


def limit(name: str) -> Reader:
    return lambda _world, gpu: f"{gpu['power_limit_w'][name]:.2f}"


def optional(name: str, default: Any) -> Reader:
    return lambda _world, gpu: gpu.get(name, default)


FIELDS: dict[str, Field] = {
    "timestamp": Field(lambda _w, _g: time.strftime("%Y/%m/%d %H:%M:%S.000")),
    "driver_version": Field(lambda world, _g: world.module),
    "count": Field(lambda world, _g: len(world.gpus)),
    "index": Field(lambda _w, gpu: gpu["index"]),
    "name": Field(lambda _w, gpu: gpu["name"], aliases=("gpu_name",)),
    "uuid": Field(lambda _w, gpu: gpu["uuid"], aliases=("gpu_uuid",)),
    "serial": Field(lambda _w, gpu: gpu["serial"], aliases=("gpu_serial",)),
    "pci.bus_id": Field(lambda _w, gpu: bus_id(gpu), aliases=("gpu_bus_id",)),
    "pci.domain": Field(lambda _w, gpu: f"0x{int(gpu['bdf'][:4], 16):04X}"),
    "pci.bus": Field(lambda _w, gpu: f"0x{int(gpu['bdf'][5:7], 16):02X}"),
    "pci.device": Field(lambda _w, gpu: f"0x{int(gpu['bdf'][8:10], 16):02X}"),
    "pci.device_id": Field(lambda _w, gpu: f"0x{gpu['device_id'][2:].upper()}10DE"),
    "pci.sub_device_id": Field(lambda _w, gpu: f"0x{gpu['subsystem_id'][2:].upper()}10DE"),
    "pcie.link.gen.current": Field(optional("link_generation", 1), aliases=("pcie.link.gen.gpucurrent",)),
    "pcie.link.gen.max": Field(lambda _w, gpu: gpu["pcie"]["generation"]),
    "pcie.link.gen.gpumax": Field(lambda _w, gpu: gpu["pcie"]["generation"]),
    "pcie.link.width.current": Field(lambda _w, gpu: gpu["pcie"]["width"]),
    "pcie.link.width.max": Field(lambda _w, gpu: gpu["pcie"]["width"]),
    "display_mode": Field(constant("Requested functionality has been deprecated")),
    "display_attached": Field(constant("No")),
    "display_active": Field(constant("Disabled")),
    "persistence_mode": Field(lambda world, gpu: "Enabled" if persistence(world, gpu) else "Disabled"),
    "accounting.mode": Field(constant("Disabled")),
    "vbios_version": Field(lambda _w, gpu: gpu["vbios"].upper()),
    "fan.speed": Field(optional("fan", 30), "%"),
    "pstate": Field(optional("pstate", "P8")),
    "memory.total": Field(lambda _w, gpu: gpu["memory_mib"], "MiB"),
    "memory.reserved": Field(lambda _w, gpu: gpu["reserved_mib"], "MiB"),
    "memory.used": Field(constant(0), "MiB"),
    "memory.free": Field(lambda _w, gpu: gpu["memory_mib"] - gpu["reserved_mib"], "MiB"),
    "compute_mode": Field(constant("Default")),
    "compute_cap": Field(lambda _w, gpu: gpu["compute_capability"]),
    "utilization.gpu": Field(constant(0), "%"),
    "utilization.memory": Field(constant(0), "%"),
    "ecc.mode.current": Field(constant("Enabled")),
    "ecc.mode.pending": Field(constant("Enabled")),
    "ecc.errors.corrected.volatile.total": Field(constant(0)),
    "ecc.errors.corrected.aggregate.total": Field(constant(0)),
    "ecc.errors.uncorrected.volatile.total": Field(constant(0)),
    "ecc.errors.uncorrected.aggregate.total": Field(constant(0)),
    "retired_pages.pending": Field(constant("[N/A]")),
    "remapped_rows.pending": Field(constant("No")),
    "remapped_rows.failure": Field(constant("No")),
    "temperature.gpu": Field(optional("temperature", 26)),
    "power.management": Field(constant("Enabled")),
    "power.draw": Field(optional("power_draw", "12.00"), "W"),
    "power.limit": Field(lambda world, gpu: f"{power_limit(world, gpu):.2f}", "W"),
    "enforced.power.limit": Field(lambda world, gpu: f"{power_limit(world, gpu):.2f}", "W"),
    "power.default_limit": Field(limit("default"), "W"),
    "power.min_limit": Field(limit("min"), "W"),
    "power.max_limit": Field(limit("max"), "W"),
    "clocks.current.graphics": Field(optional("clock", 180), "MHz", ("clocks.gr",)),
    "clocks.current.sm": Field(optional("clock", 180), "MHz", ("clocks.sm",)),
    "clocks.current.memory": Field(constant(405), "MHz", ("clocks.mem",)),
    "clocks.max.sm": Field(constant(3090), "MHz"),
    "clocks.max.memory": Field(constant(14001), "MHz", ("clocks.max.mem",)),
    "clocks_event_reasons.active": Field(constant("0x0000000000000001"), aliases=("clocks_throttle_reasons.active",)),
    "mig.mode.current": Field(lambda world, gpu: mig(world, gpu)),
    "mig.mode.pending": Field(lambda world, gpu: mig(world, gpu)),
    "hostname": Field(lambda _w, _g: os.uname().nodename),
}
# Valid properties that the simulated cards lack: the real one also answers [N/A] to those.
# fmt: off
SILENT = (
    "pci.baseClass", "pci.subClass", "pcie.link.gen.hostmax", "addressing_mode", "accounting.buffer_size",
    "driver_model.*", "inforom.*", "gpu_recovery_action", "gom.*", "gpu_operation_mode.*", "clocks_event_reasons.*",
    "clocks_throttle_reasons.*", "clocks_event_reasons_counters.*", "utilization.*", "encoder.stats.*",
    "dramEncryption.mode.*", "ecc.errors.*", "retired_pages.*", "remapped_rows.*", "temperature.*", "power.draw.*",
    "gpu.power.*", "module.*", "power_smoothing.*", "clocks.*", "gsp.mode.*", "c2c.mode", "protected_memory.*",
    "fabric.*", "platform.*", "vgpu_driver_capability.*", "vgpu_device_capability.*",
)
# fmt: on
ALIASES = {alias: name for name, field in FIELDS.items() for alias in field.aliases}


def find_field(asked: str) -> tuple[str, Field]:
    name = ALIASES.get(asked, asked)
    if name in FIELDS:
        return name, FIELDS[name]
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in SILENT):
        return name, Field(constant("[N/A]"))
    fail(2, f'Field "{asked}" is not a valid field to query.', "")


def query_gpus(world: World, asked: list[str], formats: list[str]) -> None:
    columns = [find_field(name) for name in asked]
    units = "nounits" not in formats
    if "noheader" not in formats:
        print(", ".join(f"{name} [{field.unit}]" if field.unit and units else name for name, field in columns))
    for gpu in world.gpus:
        values = []
        for _name, field in columns:
            value = str(field.read(world, gpu))
            values.append(f"{value} {field.unit}" if field.unit and units and value != "[N/A]" else value)
        print(", ".join(values))


def show_table(world: World) -> None:
    def line(text: str) -> None:
        print(f"|{text}|")

    rule = f"+{'-' * 41}+{'-' * 24}+{'-' * 22}+"
    print(time.strftime("%a %b %e %H:%M:%S %Y") + " " * 7)
    print(f"+{'-' * 89}+")
    line(f" NVIDIA-SMI {world.library:<22} Driver Version: {world.module:<14} CUDA Version: {world.cuda:<9}")
    print(rule)
    line(" GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC ")
    line(" Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. ")
    line(f"{'':41}|{'':24}|{'MIG M. ':>22}")
    line(f"{'=' * 41}+{'=' * 24}+{'=' * 22}")
    for gpu in world.gpus:
        name = gpu["name"] if len(gpu["name"]) <= 27 else f"{gpu['name'][:24]}..."
        mode = "On" if persistence(world, gpu) else "Off"
        fan = gpu.get("fan", 30)
        draw = float(gpu.get("power_draw", "12.00"))
        line(f"{gpu['index']:>4}  {name:<27}{mode:>6}  |   {bus_id(gpu)} Off |{0:>21} ")
        used = f"{draw:.0f}W / {power_limit(world, gpu):>4.0f}W "
        line(
            f"{fan if fan == 'N/A' else f'{fan}%':>4} {gpu.get('temperature', 26):>4}C {gpu.get('pstate', 'P8'):>5}"
            f"{used:>25}|{0:>8}MiB / {gpu['memory_mib']:>6}MiB |{0:>7}% {'Default':>12} "
        )
        line(f"{'':41}|{'':24}|{'Disabled ':>22}")
        print(rule)
    print()
    print(f"+{'-' * 89}+")
    line(f"{' Processes:':<89}")
    line("  GPU   GI   CI              PID   Type   Process name                        GPU Memory ")
    line(f"{'        ID   ID                                                               Usage':<89}")
    print(f"|{'=' * 89}|")
    line(f"{'  No running processes found':<89}")
    print(f"+{'-' * 89}+")


PEER_LEGEND = """
Legend:

  X    = Self
  OK   = Status Ok
  CNS  = Chipset not supported
  GNS  = GPU not supported
  TNS  = Topology not supported
  NS   = Not supported
  U    = Unknown
"""
TOPOLOGY_LEGEND = """
Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NODE = Connection traversing PCIe as well as the interconnect between PCIe Host Bridges within a NUMA node
  PHB  = Connection traversing PCIe as well as a PCIe Host Bridge (typically the CPU)
  PXB  = Connection traversing multiple PCIe bridges (without traversing the PCIe Host Bridge)
  PIX  = Connection traversing at most a single PCIe bridge
  NV#  = Connection traversing a bonded set of # NVLinks
"""


def show_topology(world: World, arguments: list[str]) -> None:
    heads = [f"GPU{gpu['index']}" for gpu in world.gpus]
    if arguments in (["-m"], ["--matrix"]):
        print("\t\x1b[4m" + "\t".join([*heads, "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"]) + "\x1b[0m")
        for row, gpu in zip(heads, world.gpus, strict=True):
            links = "\t".join(
                " X " if row == column else link(gpu, other) for column, other in zip(heads, world.gpus, strict=True)
            )
            print(f"{row}\t{links}\t{gpu.get('cpus', cpus())}\t{gpu['numa_node']}\t\tN/A")
        print(TOPOLOGY_LEGEND, end="")
    elif len(arguments) == 2 and arguments[0] == "-p2p" and arguments[1] in ("r", "w", "n", "a", "p"):
        print(" \t\x1b[4m" + "".join(f"{head}\t" for head in heads) + "\x1b[0m")
        # No NVLink between these cards; PCIe reads and writes work.
        status = "NS" if arguments[1] == "n" else "OK"
        for row in heads:
            print(f" {row}\t" + "".join("X\t" if row == column else f"{status}\t" for column in heads))
        print(PEER_LEGEND, end="")
    else:
        fail(1, "Invalid combination of input arguments. Please run 'nvidia-smi topo -h' for help.", "")


def link(gpu: Gpu, other: Gpu) -> str:
    return "NODE" if gpu["numa_node"] == other["numa_node"] else "SYS"


def cpus() -> str:
    last = (os.cpu_count() or 1) - 1
    return f"0-{last}" if last else "0"


def set_persistence(world: World, value: str) -> None:
    if value not in ("0", "1", "DISABLED", "ENABLED"):
        fail(2, f'"{value}" is not a valid value for the persistence mode.')
    wanted = value in ("1", "ENABLED")
    require_root()
    modes = world.state.setdefault("persistence", {})
    word = "Enabled" if wanted else "Disabled"
    for gpu in world.gpus:
        if persistence(world, gpu) == wanted:
            print(f"Persistence mode is already {word} for GPU {bus_id(gpu)}.")
        else:
            modes[gpu["uuid"]] = wanted
            print(f"{word} persistence mode for GPU {bus_id(gpu)}.")
    write_state(world.state)
    print("All done.")


def set_mig(world: World, value: str) -> None:
    if value not in ("0", "1"):
        fail(2, f'"{value}" is not a valid value for the MIG mode.')
    require_root()
    modes = world.state.setdefault("mig", {})
    for gpu in world.gpus:
        modes[gpu["uuid"]] = value == "1"
        print(f"{mig(world, gpu)} MIG Mode for GPU {bus_id(gpu)}")
    write_state(world.state)
    print("All done.")


def set_power_limit(world: World, value: str) -> None:
    try:
        watts = float(value)
    except ValueError:
        fail(2, f'"{value}" is not a valid power limit.')
    for gpu in world.gpus:
        low, high = gpu["power_limit_w"]["min"], gpu["power_limit_w"]["max"]
        if not low <= watts <= high:
            fail(
                2,
                f"Provided power limit {watts:.2f} W is not a valid power limit which should be between "
                f"{low:.2f} W and {high:.2f} W for GPU {bus_id(gpu)}",
                "Terminating early due to previous errors.",
            )
    require_root()
    limits = world.state.setdefault("power_limit", {})
    for gpu in world.gpus:
        before = power_limit(world, gpu)
        limits[gpu["uuid"]] = watts
        print(f"Power limit for GPU {bus_id(gpu)} was set to {watts:.2f} W from {before:.2f} W.")
    write_state(world.state)
    print("All done.")


def require_root() -> None:
    if os.geteuid() != 0:
        fail(4, "Insufficient permissions")


def select(world: World, wanted: str) -> World:
    """Return the world with only the GPUs named by index, UUID, serial or bus id, separated by commas."""
    chosen = []
    for word in wanted.split(","):
        known = [gpu for gpu in world.gpus if word in (str(gpu["index"]), gpu["uuid"], gpu["serial"], bus_id(gpu))]
        if not known:
            fail(6, "No devices were found")
        chosen += known
    return world._replace(gpus=chosen)


VALUED = ("-i", "--id", "-pm", "--persistence-mode", "-pl", "--power-limit", "-mig", "--query-gpu")
PLAIN = ("-L", "--list-gpus", "--version", "-h", "--help")


def parse(arguments: list[str]) -> dict[str, str]:
    """Return options with their values, short and long names as given."""
    options: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name in PLAIN and not equals:
            options[name] = ""
        elif name in (*VALUED, "--format") and equals:
            options[name] = value
        elif name in VALUED and (following := next(words, None)) is not None:
            options[name] = following
        else:
            fail(1, f"Invalid combination of input arguments. Please run '{Path(sys.argv[0]).name} -h' for help.", "")
    return options


def choose(options: dict[str, str], *names: str) -> str | None:
    return next((options[name] for name in names if name in options), None)


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["topo"]:
        return show_topology(read_world(), arguments[1:])
    options = parse(arguments)
    if choose(options, "-h", "--help") is not None:
        return print(
            f"{__doc__}\nOptions: {' '.join((*PLAIN, *VALUED))} --format=csv[,noheader][,nounits] topo -m|-p2p"
        )
    world = read_world()
    if choose(options, "--version") is not None:
        print(f"NVIDIA-SMI version  : {world.library}\nNVML version        : {'.'.join(world.library.split('.')[:2])}")
        return print(f"DRIVER version      : {world.module}\nCUDA Version        : {world.cuda}")
    listing = choose(options, "-L", "--list-gpus") is not None
    wanted = choose(options, "-i", "--id")
    if wanted is not None:
        if listing and "--list-gpus" in options:
            fail(1, "ERROR: Option -i is not valid for this command. Please run 'nvidia-smi -h' for help.", "", "")
        world = select(world, wanted)
    if not world.gpus:
        fail(6, "No devices were found")
    formats = options.get("--format", "").split(",")
    if "--query-gpu" in options and formats[0] != "csv":
        fail(1, "\"--format=\" switch is missing. Please run 'nvidia-smi -h' for help.", "")
    if listing:
        for gpu in world.gpus:
            print(f"GPU {gpu['index']}: {gpu['name']} (UUID: {gpu['uuid']})")
    elif (value := choose(options, "-pm", "--persistence-mode")) is not None:
        set_persistence(world, value)
    elif (value := choose(options, "-mig")) is not None:
        set_mig(world, value)
    elif (value := choose(options, "-pl", "--power-limit")) is not None:
        set_power_limit(world, value)
    elif "--query-gpu" in options:
        query_gpus(world, [name.strip() for name in options["--query-gpu"].split(",")], formats)
    else:
        show_table(world)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
