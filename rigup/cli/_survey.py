"""Look at hosts that rigup has never seen, for `rigup init`."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rigup.cli._facts import Facts
from rigup.config.inventory import Host
from rigup.distros.table import distro_id
from rigup.errors import RigupError
from rigup.facts.hardware import DiskSpace, FileSystems, PciDevices
from rigup.facts.system import MemoryTotal, OsRelease, Privilege
from rigup.hardware.cards import CARDS, Card, described
from rigup.preflight.hardware import nvidia_gpus
from rigup.ssh.client import Client, Unreachable
from rigup.text import printable, size

PRIVILEGES = {"root": "root", "sudo": "sudo without a password"}


@dataclass(frozen=True)
class Seen:
    """What a host is. `problems` say what a deploy would refuse, with remedies; `cards` are the supported ones."""

    system: str
    gpus: str
    memory: int
    login: str
    disks: tuple[DiskSpace, ...]
    cards: tuple[Card, ...]
    problems: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """What is to be said about the host."""
        free = ", ".join(f"{size(disk.available)} on {disk.mount}" for disk in self.disks) or "unknown"
        words = [self.system, self.gpus, f"{size(self.memory, binary=True)} of memory", f"login: {self.login}"]
        return [_one_line(line) for line in ("; ".join(words), f"free space: {free}", *self.problems)]


def _one_line(text: str) -> str:
    """Return text of a host for one line of a file or of a terminal."""
    return " ".join(printable(text).split())


def look_at(hosts: Iterable[Host]) -> dict[str, Seen | str]:
    """Look at all hosts in parallel. Returns for each what it is, or why it could not be looked at."""
    chosen = list(hosts)
    with ThreadPoolExecutor(max_workers=len(chosen)) as pool:
        return dict(zip((host.name for host in chosen), pool.map(_look, chosen), strict=True))


def _look(host: Host) -> Seen | str:
    try:
        # Without sudo: a host whose sudo asks for a password is to be described, too.
        with Client(host, sudo=False) as client:
            facts = Facts(client)
            release, privilege = facts.add(OsRelease()), facts.add(Privilege())
            memory, pci, disks = facts.add(MemoryTotal()), facts.add(PciDevices()), facts.add(FileSystems())
            facts.read()
            devices = [gpu.device for gpu in nvidia_gpus(pci())]
            return Seen(
                system=release().get("PRETTY_NAME") or "an unknown system",
                gpus=_counted(devices),
                memory=memory(),
                login=PRIVILEGES.get(privilege(), "no root"),
                disks=tuple(disks()),
                cards=tuple(CARDS[device] for device in devices if device in CARDS),
                problems=tuple(_problems(release(), privilege(), devices)),
            )
    except Unreachable as error:
        return _one_line(error.why)
    except Exception as error:
        # A host may answer anything.
        return _one_line(f"it answered something unexpected ({type(error).__name__}: {error})")


def _counted(devices: list[int]) -> str:
    kinds = [
        f"{devices.count(device)} x {CARDS[device].name if device in CARDS else described(device)}"
        for device in dict.fromkeys(devices)
    ]
    return ", ".join(kinds) or "no NVIDIA GPU"


def _problems(release: dict[str, str], privilege: str, devices: list[int]) -> list[str]:
    found = []
    try:
        distro_id(release)
    except RigupError as error:
        found.append(str(error))
    if privilege not in PRIVILEGES:
        found.append("a deploy needs root, or sudo without a password")
    if other := [device for device in dict.fromkeys(devices) if device not in CARDS]:
        found.append(f"not supported: {', '.join(map(described, other))}")
    return found
