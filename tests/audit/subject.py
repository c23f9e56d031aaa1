"""A host under audit: what it shall be, by plan and lock, and how it is asked what it is."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, TypeVar

import testinfra
from testinfra.host import Host as Testinfra

from rigup.catalog.loader import Catalog, default_catalog
from rigup.config.inventory import Host
from rigup.config.settings import Settings
from rigup.distros.driver import DriverInstall
from rigup.distros.table import distro_id
from rigup.errors import RigupError
from rigup.lock import lockfile as locks
from rigup.lock.lockfile import Lock
from rigup.lock.packages import driver_install, locked_packages
from rigup.plan.host import plan_host
from rigup.plan.model import Plan
from rigup.resources import FILES
from rigup.ssh import testinfra_backend

PROGRAMS = "/usr/local/lib/rigup"
UNITS = "/etc/systemd/system"
ABSENT = "nothing"
YOU = "you"
GPU_FIELDS = ("name", "driver_version", "persistence_mode")
# What an endpoint's unit may not do, whatever it runs, as `systemctl show` says it.
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


class Deviation(AssertionError):
    """A host is not what its plan says."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"expected: {expected}\nfound:    {found}")
        self.expected, self.found = expected, found


@dataclass(frozen=True)
class About:
    """What is known of a check before it is made.

    `severity` is critical (it does not serve, or will not after the next boot), major or minor; `settings` are the
    keys of the inventory that it comes from; `root` says that only root can see it, `deep` that it takes its time.
    `repair` are the steps of the deploy that make what is checked, where they are not the one that the check's file is
    named for; or YOU, where no step does.
    """

    severity: Literal["critical", "major", "minor"]
    settings: tuple[str, ...]
    root: bool
    deep: bool
    repair: tuple[str, ...]


Check = TypeVar("Check", bound=Callable[..., None])


def check(
    severity: Literal["critical", "major", "minor"],
    *settings: str,
    root: bool = False,
    deep: bool = False,
    repair: tuple[str, ...] = (),
) -> Callable[[Check], Check]:
    """Mark a function as a check of the audit; see `About`."""

    def mark(function: Check) -> Check:
        function.about = About(severity, settings, root, deep, repair)  # type: ignore[attr-defined]
        return function

    return mark


def expect(expected: object, found: object) -> None:
    """Raise Deviation, saying both, unless they are equal. Of mappings only what differs is shown."""
    if expected == found:
        return
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        keys = [key for key in {**expected, **found} if expected.get(key, ABSENT) != found.get(key, ABSENT)]
        expected = "; ".join(f"{key}: {_shown(expected.get(key, ABSENT))}" for key in keys)
        found = "; ".join(f"{key}: {_shown(found.get(key, ABSENT))}" for key in keys)
    raise Deviation(_shown(expected), _shown(found))


def veiled(values: Mapping[str, str]) -> dict[str, str]:
    """Environment variables, told apart without being told: any may be a secret."""
    return {name: f"sha256 {hashlib.sha256(value.encode()).hexdigest()[:8]}" for name, value in values.items()}


def expect_none(expected: str, deviations: Iterable[str]) -> None:
    """Raise Deviation, saying what is expected instead, unless there are no deviations."""
    found = list(deviations)
    if found:
        raise Deviation(expected, ", ".join(found))


def expect_at_least(what: str, floor: str, found: str) -> None:
    """Raise Deviation unless a version, numbers and dots at its start, is not below the floor."""
    numbers = [[int(part) for part in re.findall(r"\d+", re.split(r"[-~+]", version)[0])] for version in (floor, found)]
    if numbers[1] < numbers[0]:
        raise Deviation(f"{what} {floor} or newer", found if any(numbers[1]) else "none")


def expect_files(rig: Subject, directory: str, *names: str) -> None:
    """Raise Deviation unless these files of a directory on the host are the ones in `files/`."""
    wanted = {name: hashlib.sha256((FILES / name).read_bytes()).hexdigest() for name in names}
    listed = rig.said("cd %s && sha256sum -- *.py *.service *.timer 2>/dev/null || true", directory).splitlines()
    found = {name: digest for digest, _, name in (line.partition("  ") for line in listed)}
    expect(wanted, {name: found.get(name, "no such file") for name in wanted})


def expect_repository(rig: Subject, url: str, key: str) -> None:
    """Raise Deviation unless apt reads packages from `url`, signed by a file whose path holds `key`."""
    # Debian 12's apt does not tell the key, but where the entry stands.
    form = "$(REPO_URI) $(SOURCESENTRY)"
    listed = [line.split() for line in rig.said("apt-get indextargets --format %s", form).splitlines()]
    entries = {words[1].rpartition(":")[0] for words in listed if words and words[0].rstrip("/") == url.rstrip("/")}
    texts = [rig.text(path) or "" for path in sorted(entries)]
    keys = {key for text in texts for key in re.findall(r"(?i)signed-by[=:]\s*([^\s\]]+)", text) or ["any key"]}
    if not any(key in path for path in keys):
        raise Deviation(f"{url} by a key of its own ({key})", ", ".join(sorted(keys)) or "apt does not know it")


def expect_text(what: str, expected: str, found: str | None) -> None:
    """Raise Deviation, naming the first line that differs, unless the texts are equal."""
    if expected == found:
        return
    if found is None:
        raise Deviation(what, "no such file")
    ours, theirs = expected.splitlines(), found.splitlines()
    for number in range(max(len(ours), len(theirs))):
        line = ours[number] if number < len(ours) else "the end"
        other = theirs[number] if number < len(theirs) else "the end"
        if line != other:
            raise Deviation(f"{what}, line {number + 1}: {line.strip()}", other.strip())
    raise Deviation(f"{what} as planned", "other line ends")


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value or "nothing"
    if isinstance(value, list | tuple | set):
        return ", ".join(map(str, value)) or "nothing"
    return str(value)


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

    # What it shall be

    @cached_property
    def lock(self) -> Lock:
        path = testinfra_backend.inventory().lock
        if not path.exists():
            raise RigupError(f"{path} is not there yet: nothing was deployed from this inventory")
        return locks.read(path)

    @cached_property
    def plan(self) -> Plan:
        return plan_host(self.name, self.settings, catalog(), self.lock)

    @cached_property
    def driver(self) -> DriverInstall:
        return driver_install(self.lock, self.distro, self.settings)

    def locked(self, group: str) -> dict[str, str]:
        """The apt versions of `docker`, `toolkit` or `cuda`."""
        return dict(locked_packages(self.lock, self.distro, self.settings).get(group, {}))

    # What it is

    @cached_property
    def is_root(self) -> bool:
        """Whether the login is root, or became root by sudo."""
        return self.said("id -u") == "0"

    @cached_property
    def os_release(self) -> dict[str, str]:
        lines = (self.text("/etc/os-release") or "").splitlines()
        return {key: "".join(shlex.split(value)) for key, _, value in (line.partition("=") for line in lines) if value}

    @cached_property
    def distro(self) -> str:
        return distro_id(self.os_release)

    @cached_property
    def installed(self) -> dict[str, str]:
        """All packages that dpkg holds installed, with their versions."""
        listed = self.said("dpkg-query -W -f '${binary:Package}\\t${Version}\\t${db:Status-Status}\\n'")
        packages = {}
        for line in listed.splitlines():
            name, version, status = line.split("\t")
            if status == "installed":
                packages[name.split(":")[0]] = version
        return packages

    def versions(self, names: Mapping[str, str]) -> dict[str, str]:
        """The installed versions of these packages, to hold against the locked ones."""
        return {name: self.installed.get(name, "not installed") for name in names}

    @cached_property
    def kernel(self) -> str:
        return self.said("uname -r")

    @cached_property
    def gpus_on_the_bus(self) -> int:
        """NVIDIA's display and 3D controllers, whether or not a driver knows them."""
        listed = self.said(
            "cd /sys/bus/pci/devices && for d in *; do cat $d/vendor $d/class | tr '\\n' ' '; echo; done"
        )
        return sum(line.startswith("0x10de 0x03") for line in listed.splitlines())

    def said(self, command: str, *arguments: str) -> str:
        """What a command prints, without white space around it; nothing where it fails."""
        result = self.host.run(command, *arguments)
        return str(result.stdout).strip() if result.rc == 0 else ""

    def text(self, path: str) -> str | None:
        """A file's text; None where there is none."""
        result = self.host.run("cat -- %s", path)
        return str(result.stdout) if result.rc == 0 else None

    def json(self, command: str, *arguments: str) -> Any:
        """What a command prints, read as JSON; None where it fails or prints none."""
        try:
            return json.loads(self.said(command, *arguments))
        except ValueError:
            return None

    def unit(self, name: str) -> dict[str, str]:
        """The properties of a unit that checks ask about, as systemd has them in effect; "" for what is not set."""
        shown = self.said(f"systemctl show --property={','.join(PROPERTIES)} -- %s", name)
        # A command's argument may hold a line break.
        parts = re.split(rf"^({'|'.join(PROPERTIES)})=", shown, flags=re.MULTILINE)
        found = {key: value.strip() for key, value in zip(parts[1::2], parts[2::2], strict=True)}
        return dict.fromkeys(PROPERTIES, "") | found

    def gpus(self, field: str) -> list[str]:
        """What nvidia-smi says about each GPU; all fields are asked for at once."""
        shown = self.said(f"nvidia-smi --query-gpu={','.join(GPU_FIELDS)} --format=csv,noheader")
        return [line.split(", ")[GPU_FIELDS.index(field)] for line in shown.splitlines()]
