"""The operating system of a host: distribution, architecture, init, privileges, memory, users."""

from __future__ import annotations

import shlex

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.facts.reading import reading


def parse_os_release(lines: list[str]) -> dict[str, str]:
    """Parse the assignments of os-release(5), without quotes."""
    values: dict[str, str] = {}
    for line in lines:
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            values[key.strip()] = "".join(shlex.split(value))
    return values


def parse_meminfo(lines: list[str]) -> int:
    """Parse the installed memory in bytes, from the `MemTotal` line of /proc/meminfo (which counts in KiB)."""
    for line in lines:
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no MemTotal line in /proc/meminfo")


class OsRelease(FactBase[dict[str, str]]):
    """The assignments of /etc/os-release (`ID`, `VERSION_ID`, `VERSION_CODENAME`, `PRETTY_NAME`, ...)."""

    @staticmethod
    def default() -> dict[str, str]:
        return {}

    def command(self) -> str:
        return "cat /etc/os-release 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> dict[str, str]:
        return parse_os_release(output)


class Architecture(FactBase[str]):
    """The machine's architecture as the kernel names it, such as `x86_64`."""

    @staticmethod
    def default() -> str:
        return ""

    def command(self) -> str:
        return "uname -m"

    @reading
    def process(self, output: list[str]) -> str:
        return output[0].strip()


class InitSystem(FactBase[str]):
    """The name of process 1; `systemd` where units can be started."""

    @staticmethod
    def default() -> str:
        return ""

    def command(self) -> str:
        return "cat /proc/1/comm 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> str:
        return output[0].strip()


class Container(FactBase[str]):
    """The container that this system runs in, as systemd-detect-virt(1) names it, such as `lxc`; empty if in none."""

    @staticmethod
    def default() -> str:
        return ""

    def command(self) -> str:
        return "systemd-detect-virt --container 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> str:
        return output[0].strip().replace("none", "")


class Privilege(FactBase[str]):
    """How the login user becomes root: `root` (is root), `sudo` (without a password), or `none`.

    Read it with `_sudo=False`: with a sudo that does not work, reading it would fail.
    """

    @staticmethod
    def default() -> str:
        return "none"

    def command(self) -> str:
        root = '[ "$(id -u)" = 0 ] && echo root'
        return f"{root} || (sudo -n true >/dev/null 2>&1 && echo sudo) || echo none"

    @reading
    def process(self, output: list[str]) -> str:
        return output[0].strip()


class MemoryTotal(FactBase[int]):
    """Installed memory in bytes."""

    @staticmethod
    def default() -> int:
        return 0

    def command(self) -> str:
        return "cat /proc/meminfo"

    @reading
    def process(self, output: list[str]) -> int:
        return parse_meminfo(output)


class UserExists(FactBase[bool]):
    """Whether `user` exists; pyinfra's `Users` reads all users, which takes a third of a second."""

    @staticmethod
    def default() -> bool:
        return False

    def command(self, user: str) -> StringCommand:
        return StringCommand("getent passwd --", QuoteString(user), "|| true")

    @reading
    def process(self, output: list[str]) -> bool:
        return bool(output)
