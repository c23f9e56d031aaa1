"""The kernel: which one runs, which one boots next, its arguments, and the parameters of its modules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.boot_loader import kernel_arguments
from rigup.facts.reading import ONE_LINE_EACH, Value, reading

IMAGE = "/boot/vmlinuz-"
INITRD = "/boot/initrd.img-"
NVIDIA_PARAMS = "/proc/driver/nvidia/params"
TRUTH = {"Y": "1", "N": "0"}


@dataclass(frozen=True)
class KernelStateValue(Value):
    """The running `release` and its `arguments`, the kernels in /boot, oldest first, and those with an initrd."""

    release: str
    arguments: tuple[str, ...]
    installed: tuple[str, ...]
    initrds: frozenset[str]

    @property
    def newest(self) -> str:
        """The kernel that boots next unless another was chosen; the running one if /boot has none."""
        return self.installed[-1] if self.installed else self.release


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


def version_key(release: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts kernel releases by their numbers: 6.1.0-9 before 6.1.0-30."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", release)]


def parse_kernel_state(lines: list[str]) -> KernelStateValue:
    """Parse `uname -r`, /proc/cmdline, and the names of the images and initrds in /boot."""
    release, cmdline, *files = lines
    installed = [name.removeprefix(IMAGE) for name in files if name.startswith(IMAGE)]
    return KernelStateValue(
        release=release.strip(),
        arguments=kernel_arguments(cmdline),
        installed=tuple(sorted(installed, key=version_key)),
        initrds=frozenset(name.removeprefix(INITRD) for name in files if name.startswith(INITRD)),
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
        return f"uname -r; cat /proc/cmdline; find {IMAGE}* {INITRD}* -maxdepth 0 -print0 {ONE_LINE_EACH}"

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


def parse_boot_menu(lines: list[str]) -> list[list[str]]:
    """Parse the kernel arguments of each entry, from grub.cfg's `linux` lines, without recovery entries."""
    entries = [list(kernel_arguments(line)[2:]) for line in lines]
    return [words for words in entries if "single" not in words and "recovery" not in words]


class BootMenu(FactBase[list[list[str]]]):
    """The kernel arguments of each entry of the GRUB menu; empty if there is no menu."""

    @staticmethod
    def default() -> list[list[str]]:
        return []

    def command(self) -> str:
        return r"grep -E '^\s*linux\s' /boot/grub/grub.cfg 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> list[list[str]]:
        return parse_boot_menu(output)


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
