"""A host under audit: what it should be, by plan and lock, and commands that read what it is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any

import testinfra
from testinfra.host import Host as Testinfra

from rigup.catalog.loader import Catalog, default_catalog
from rigup.config.inventory import Host
from rigup.config.settings import Settings
from rigup.distros.driver import DriverInstall
from rigup.distros.table import distro_id
from rigup.errors import RigupError
from rigup.lock import lockfile
from rigup.lock.addresses import ip_of
from rigup.lock.lockfile import Lock
from rigup.lock.packages import driver_install, locked_packages
from rigup.paths import LEDGER, PLAN
from rigup.plan.balancer import Balancer, Member, balancer_of
from rigup.plan.host import plan_host
from rigup.plan.model import Plan
from rigup.ssh import testinfra_backend
from rigup.ssh.login import login_of
from rigup.text import from_json

GPU_FIELDS = ("name", "driver_version", "persistence_mode", "pci.device_id", "index", "uuid", "power.limit")

CONFINED = {
    "CapabilityBoundingSet": "",
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "PrivateTmp": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    "ProtectControlGroups": "yes",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
}
"""The restrictions of every endpoint's unit, as `systemctl show` prints them."""

PROPERTIES = (
    "ActiveState",
    "UnitFileState",
    "NeedDaemonReload",
    "FragmentPath",
    "DropInPaths",
    "User",
    "ExecStart",
    "ExecStartPost",
    "EnvironmentFiles",
    "Restart",
    "TimeoutStartUSec",
    "StartLimitIntervalUSec",
    "StartLimitBurst",
    "After",
    "Requires",
    "ProtectHome",
    *CONFINED,
)


@cache
def catalog() -> Catalog:
    return default_catalog()


class Subject:
    """One host of the inventory under audit."""

    def __init__(self, entry: Host) -> None:
        self.name = entry.name
        self.settings: Settings = entry.settings

    @classmethod
    @cache
    def of(cls, name: str) -> Subject:
        return cls(testinfra_backend.inventory().host(name))

    @cached_property
    def host(self) -> Testinfra:
        return testinfra.get_host(f"rig://{self.name}")

    # What it should be

    @cached_property
    def lock(self) -> Lock:
        path = testinfra_backend.inventory().lock
        if not path.exists():
            raise RigupError(f"{path} does not exist: nothing was deployed from this inventory", "deploy first")
        return lockfile.read(path)

    @cached_property
    def plan(self) -> Plan:
        return plan_host(self.name, self.settings, catalog(), self.lock)

    @cached_property
    def balancer(self) -> Balancer | None:
        """The load balancer of the inventory, if it has one."""
        inventory = testinfra_backend.inventory()
        if inventory.load_balancer is None:
            return None
        members = [Member(each.name, login_of(each).address, each.settings) for each in inventory.hosts.values()]
        return balancer_of(inventory.load_balancer, members, catalog(), self.lock.choices, ip_of)

    @cached_property
    def driver(self) -> DriverInstall:
        return driver_install(self.lock, self.distro, self.settings)

    def locked(self, group: str) -> dict[str, str]:
        """Return the locked apt versions of `docker`, `toolkit` or `cuda`."""
        return dict(locked_packages(self.lock, self.distro, self.settings).get(group, {}))

    # What it is

    @cached_property
    def is_root(self) -> bool:
        """Whether commands run as root, by login or through sudo."""
        return self.output("id -u") == "0"

    @cached_property
    def is_bare(self) -> bool:
        """Whether nothing is deployed on it, not even a part: it has neither a plan nor a ledger."""
        return int(self.host.run("test -e %s || test -e %s", PLAN, LEDGER).rc) == 1

    @cached_property
    def os_release(self) -> dict[str, str]:
        lines = (self.text("/etc/os-release") or "").splitlines()
        return {key: "".join(shlex.split(value)) for key, _, value in (line.partition("=") for line in lines) if value}

    @cached_property
    def distro(self) -> str:
        return distro_id(self.os_release)

    @cached_property
    def installed(self) -> dict[str, str]:
        """All installed packages, with their versions."""
        listed = self.output("dpkg-query -W -f '${binary:Package}\\t${Version}\\t${db:Status-Status}\\n'")
        packages = {}
        for line in listed.splitlines():
            name, version, status = line.split("\t")
            if status == "installed":
                packages[name.split(":")[0]] = version
        return packages

    def versions(self, names: Mapping[str, str]) -> dict[str, str]:
        """Return the installed versions of these packages, to compare with the locked ones."""
        return {name: self.installed.get(name, "not installed") for name in names}

    @cached_property
    def kernel(self) -> str:
        return self.output("uname -r")

    @cached_property
    def gpu_paths(self) -> list[str]:
        """The directory in sysfs of each NVIDIA display or 3D controller, with or without a driver."""
        listed = self.output("grep -lx 0x10de /sys/bus/pci/devices/*/vendor").splitlines()
        classes = self.output("grep -l '^0x03' /sys/bus/pci/devices/*/class").splitlines()
        found = {path.removesuffix("/vendor") for path in listed} & {path.removesuffix("/class") for path in classes}
        return self.output(f"readlink -f {' '.join(['/dev/null', *sorted(found)])}").splitlines()[1:]

    @property
    def gpus_on_the_bus(self) -> int:
        """The number of NVIDIA display and 3D controllers, with or without a driver."""
        return len(self.gpu_paths)

    def output(self, command: str, *arguments: str) -> str:
        """Return what a command prints, without surrounding whitespace; nothing if it fails."""
        result = self.host.run(command, *arguments)
        return str(result.stdout).strip() if result.rc == 0 else ""

    def names(self, command: str, *arguments: str) -> list[str]:
        """Return the names that a command prints, each followed by NUL; none if it fails."""
        return self.output(command, *arguments).split("\0")[:-1]

    def text(self, path: str) -> str | None:
        """Return a file's text, or None if there is no such file."""
        result = self.host.run("cat -- %s", path)
        return str(result.stdout) if result.rc == 0 else None

    def json(self, command: str, *arguments: str) -> Any:
        """Return what a command prints, parsed as JSON; None if it fails or prints something else."""
        try:
            return from_json(self.output(command, *arguments))
        except ValueError:
            return None

    def unit(self, name: str) -> dict[str, str]:
        """Return the PROPERTIES of a unit, as systemd has them in effect; "" for what is not set."""
        shown = self.output(f"systemctl show --property={','.join(PROPERTIES)} -- %s", name)
        # A command's argument may contain a line break.
        parts = re.split(rf"^({'|'.join(PROPERTIES)})=", shown, flags=re.MULTILINE)
        found = {key: value.strip() for key, value in zip(parts[1::2], parts[2::2], strict=True)}
        return dict.fromkeys(PROPERTIES, "") | found

    def gpus(self, field: str) -> list[str]:
        """Return one of GPU_FIELDS for each GPU, from nvidia-smi."""
        shown = self.output(f"nvidia-smi --query-gpu={','.join(GPU_FIELDS)} --format=csv,noheader")
        return [line.split(", ")[GPU_FIELDS.index(field)] for line in shown.splitlines()]
