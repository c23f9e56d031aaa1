"""What the journal, the kernel, the driver and the file systems say about a failure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.facts.reading import Value, reading

LINES = 2000
JOURNALCTL = f"journalctl --no-pager --quiet --output=short-unix --lines={LINES}"

# Time, host, program. systemd's lines keep its name, since it speaks about the unit.
_LINE = re.compile(r"(\d{1,12}\.\d{1,9}) \S+ (?:(?!systemd)[\w@./-]+(?:\[\d+\])?: )?(.*)")
_XID = re.compile(r"Xid \(PCI:([0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2})(?:\.[0-7])?\): (\d{1,4}),")
_DISK = re.compile(r"(\S+) +(\d+) +\d+ +(\d+) +\d+% +(/.*)")


@dataclass(frozen=True)
class JournalLine(Value):
    """A line of the journal, and when it was written (seconds since 1970)."""

    at: float
    text: str


def parse_journal(lines: list[str]) -> list[JournalLine]:
    """Parse `journalctl --output=short-unix`. Further lines of a message have its time."""
    found: list[JournalLine] = []
    for line in lines:
        if match := _LINE.fullmatch(line):
            found.append(JournalLine(float(match[1]), match[2]))
        elif found:
            found.append(JournalLine(found[-1].at, line.strip()))
    return found


def parse_full_disks(lines: list[str]) -> list[str]:
    """Return the lines of `df -P` about file systems that are full, without those that always are."""
    found = []
    for line in lines:
        match = _DISK.fullmatch(line)
        if match and int(match[2]) > 0 == int(match[3]) and (match[1].startswith("/dev/") or match[4] == "/dev/shm"):
            found.append(line)
    return [line for line in found if not line.startswith("/dev/loop")]


class UnitJournal(FactBase[list[JournalLine]]):
    """The last lines that `unit` logged, and systemd about it."""

    @staticmethod
    def default() -> list[JournalLine]:
        return []

    def command(self, unit: str) -> StringCommand:
        return StringCommand(JOURNALCTL, "--unit", QuoteString(unit), "2>/dev/null || true")

    @reading
    def process(self, output: list[str]) -> list[JournalLine]:
        return parse_journal(output)


class KernelErrors(FactBase[list[JournalLine]]):
    """What the kernel has logged since it booted about the GPUs, and about programs that it killed for their memory."""

    @staticmethod
    def default() -> list[JournalLine]:
        return []

    def command(self) -> str:
        return f"{JOURNALCTL} --dmesg --grep='NVRM|Xid|oom-kill|[Oo]ut of memory' 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> list[JournalLine]:
        return parse_journal(output)


@dataclass(frozen=True)
class Xid(Value):
    """An error that the driver has reported about the card at a PCI address (as in sysfs): how often, and last when."""

    address: str
    number: int
    count: int
    last: float


def parse_xids(lines: list[str]) -> list[Xid]:
    """Count the errors in `journalctl --output=short-unix`, by card and number.

    `NVRM: Xid (PCI:0000:41:00): 79, pid=4711, ...`; the function is 0 (NVIDIA, Xid errors).
    """
    found: dict[tuple[str, int], Xid] = {}
    for line in parse_journal(lines):
        if match := _XID.search(line.text):
            key = (f"{match[1].lower()}.0", int(match[2]))
            found[key] = Xid(*key, found[key].count + 1 if key in found else 1, line.at)
    return sorted(found.values(), key=lambda xid: (xid.address, xid.number))


class Xids(FactBase[list[Xid]]):
    """The errors of the cards since the host booted."""

    @staticmethod
    def default() -> list[Xid]:
        return []

    def command(self) -> str:
        return f"{JOURNALCTL} --dmesg --grep='NVRM: Xid' 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> list[Xid]:
        return parse_xids(output)


class FullDisks(FactBase[list[str]]):
    """The lines of `df` about file systems without space."""

    @staticmethod
    def default() -> list[str]:
        return []

    def command(self) -> str:
        return "df -P --local 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> list[str]:
        return parse_full_disks(output)


class DriverReport(FactBase[list[str]]):
    """What `nvidia-smi` prints, errors included. It can hang when a card is lost."""

    @staticmethod
    def default() -> list[str]:
        return []

    def command(self) -> str:
        return "timeout 8 nvidia-smi 2>&1 || true"

    @reading
    def process(self, output: list[str]) -> list[str]:
        return output
