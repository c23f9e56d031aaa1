"""The kernel: which one runs, which one boots next, its arguments, and the parameters of its modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.boot_loader import (
    GRUB_DEFAULTS,
    IMAGE,
    INITRD,
    READ_NEXT,
    NextBoot,
    kernel_arguments,
    next_boot,
    release_in,
    version_key,
)
from rigup.facts.reading import ONE_LINE_EACH, Value, reading, texts_by_path

FILES = " ".join(f"/boot/{prefix}*" for prefix in (IMAGE, INITRD))
END_OF_FILES = "--- next"
NVIDIA_PARAMS = "/proc/driver/nvidia/params"
# Without these no program uses a GPU for computing; modprobe takes both spellings.
DRIVER_MODULES = ("nvidia", "nvidia_uvm", "nvidia-uvm")
TRUTH = {"Y": "1", "N": "0"}


@dataclass(frozen=True)
class KernelStateValue(Value):
    """The running `release` and its `arguments`, the kernels in /boot, oldest first, and those with an initrd.

    `next_release` and `next_arguments` are what the boot loader says that it boots next, None if it does not.
    `systemd_boot` says whether systemd-boot has booted the machine: GRUB's menu then has no effect, installed or not.
    """

    release: str
    arguments: tuple[str, ...]
    installed: tuple[str, ...]
    initrds: frozenset[str]
    next_release: str | None = None
    next_arguments: tuple[str, ...] | None = None
    systemd_boot: bool = False

    @property
    def boots_next(self) -> str:
        """The kernel that boots next: by default the newest in /boot; the running one if /boot has none."""
        return self.next_release or (self.installed[-1] if self.installed else self.release)


@dataclass(frozen=True)
class ModuleParametersValue(Value):
    """Parameters of loaded modules as they are in effect: `{module: {parameter: value}}`.

    The NVIDIA module does not show its registry options (`NVreg_*`) in sysfs; they are included in `nvidia` all the
    same, under the names that modprobe.d uses.
    """

    parameters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def in_effect(self, module: str, parameter: str, expected: str | int) -> bool | None:
        """Return whether `expected` applies; None if the module is not loaded or does not show that parameter."""
        value = self.parameters.get(module, {}).get(parameter)
        return None if value is None else _plain(value) == _plain(str(expected))


def _plain(value: str) -> str:
    """Return a parameter's value without quotes, and Y and N as the numbers that modprobe.d uses."""
    value = value.strip().strip('"')
    return TRUTH.get(value, value)


def parse_kernel_state(lines: list[str]) -> KernelStateValue:
    """Parse `uname -r`, /proc/cmdline, the names of the images and initrds in /boot, and what boots next."""
    end = lines.index(END_OF_FILES) if END_OF_FILES in lines else len(lines)
    release, cmdline, *files = lines[:end]
    installed = {found for name in files if (found := release_in(name))}
    following: NextBoot = next_boot(lines[end + 1 :], {*installed, release.strip()})
    return KernelStateValue(
        release=release.strip(),
        arguments=kernel_arguments(cmdline),
        installed=tuple(sorted(installed, key=version_key)),
        initrds=frozenset(found for name in files if (found := release_in(name, INITRD))),
        next_release=following.release,
        next_arguments=following.arguments,
        systemd_boot=following.systemd_boot,
    )


def parse_module_parameters(lines: list[str]) -> ModuleParametersValue:
    """Parse `grep -H` lines of /sys/module/*/parameters/* and of /proc/driver/nvidia/params."""
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        path, _, value = line.partition(":")
        if path == NVIDIA_PARAMS:
            name, _, value = value.partition(":")
            found.setdefault("nvidia", {})[f"NVreg_{name.strip()}"] = _plain(value)
        else:
            module, _, name = path.split("/")[-3:]
            found.setdefault(module, {})[name] = _plain(value)
    return ModuleParametersValue(found)


class BootId(FactBase[str]):
    """The kernel's boot ID, which changes at every boot and only then."""

    @staticmethod
    def default() -> str:
        return ""

    def command(self) -> str:
        return "cat /proc/sys/kernel/random/boot_id"

    @reading
    def process(self, output: list[str]) -> str:
        return output[0].strip()


class KernelState(FactBase[KernelStateValue]):
    """The running kernel, its arguments, and the kernels that are installed."""

    @staticmethod
    def default() -> KernelStateValue:
        return KernelStateValue("", (), (), frozenset())

    def command(self) -> str:
        files = f"find {FILES} -maxdepth 0 -print0 {ONE_LINE_EACH}"
        return f"uname -r; cat /proc/cmdline; {files}; echo '{END_OF_FILES}'; {READ_NEXT}"

    @reading
    def process(self, output: list[str]) -> KernelStateValue:
        return parse_kernel_state(output)


class ModuleParameters(FactBase[ModuleParametersValue]):
    """The parameters that these modules were loaded with."""

    @staticmethod
    def default() -> ModuleParametersValue:
        return ModuleParametersValue()

    def command(self, modules: Sequence[str]) -> StringCommand:
        directories = [
            StringCommand("/sys/module/", QuoteString(name), "/parameters/*", _separator="") for name in modules
        ]
        return StringCommand("grep -H ''", *directories, NVIDIA_PARAMS, "2>/dev/null || true")

    @reading
    def process(self, output: list[str]) -> ModuleParametersValue:
        return parse_module_parameters(output)


class InitrdSizes(FactBase[dict[str, int]]):
    """The bytes of the initrd in /boot of each kernel that has one."""

    @staticmethod
    def default() -> dict[str, int]:
        return {}

    def command(self) -> str:
        return f"find /boot/{INITRD}* -maxdepth 0 -type f -printf '%s %p\\0' {ONE_LINE_EACH}"

    @reading
    def process(self, output: list[str]) -> dict[str, int]:
        sizes = (line.partition(" ") for line in output)
        return {kernel: int(size) for size, _, path in sizes if (kernel := release_in(path, INITRD))}


def parse_disabled(lines: list[str]) -> dict[str, list[str]]:
    """Parse the lines by path, from `grep -H` of modprobe.d, that keep a module from loading in any way."""
    found: dict[str, list[str]] = {}
    for line in lines:
        path, _, rule = line.partition(":")
        keyword, module, argument = (rule.split() + [""] * 3)[:3]
        program = argument.rpartition("/")[2]
        if module in DRIVER_MODULES and program in (("off",) if keyword == "alias" else ("true", "false")):
            found.setdefault(path, []).append(" ".join(rule.split()))
    return found


class DisabledModules(FactBase[dict[str, list[str]]]):
    """The lines of modprobe.d, by file, that keep the driver from loading.

    `blacklist` is not among them: it only keeps udev from loading a module, and the driver's own programs load it.
    """

    @staticmethod
    def default() -> dict[str, list[str]]:
        return {}

    def command(self) -> str:
        files = " ".join(
            f"{directory}/modprobe.d/*.conf" for directory in ("/etc", "/run", "/usr/local/lib", "/usr/lib")
        )
        return f"grep -HE '^[[:space:]]*(install|alias)[[:space:]]+nvidia' {files} 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> dict[str, list[str]]:
        return parse_disabled(output)


class GrubDefaults(FactBase[dict[str, str]]):
    """The texts of GRUB's default files by path; empty without GRUB."""

    @staticmethod
    def default() -> dict[str, str]:
        return {}

    def command(self) -> str:
        return f"grep -H '' {GRUB_DEFAULTS} {GRUB_DEFAULTS}.d/*.cfg 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> dict[str, str]:
        return texts_by_path(output)


class Outdated(FactBase[list[str]]):
    """Paths in `directory` matching the glob `pattern` that are not newer than `source`, sorted.

    Empty if there is no such path, or no `source` to be out of date with.
    """

    @staticmethod
    def default() -> list[str]:
        return []

    def command(self, directory: str, pattern: str, source: str) -> StringCommand:
        return StringCommand(
            "find",
            QuoteString(directory),
            "-maxdepth 1 -type f -name",
            QuoteString(pattern),
            "! -newer",
            QuoteString(source),
            "2>/dev/null || true",
        )

    def process(self, output: list[str]) -> list[str]:
        return sorted(line for line in output if line)
