"""What dpkg has installed, and what apt can install."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.distros.apt_sources import source_uris
from rigup.facts.reading import ONE_LINE_EACH, Value, reading, texts_by_path

UPDATES = "/var/lib/dpkg/updates/"
REMOVAL = re.compile(r"^(?:Remv|Purg) (\S+)")
# Second letter of dpkg-query's status: not installed, only its configuration left, installed.
SETTLED = "nci"


@dataclass(frozen=True)
class DpkgTrouble(Value):
    """What an interrupted dpkg left: half-installed packages, and journal entries that block apt until replayed."""

    packages: Mapping[str, str] = field(default_factory=dict)
    journal: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.packages or self.journal)


def parse_installed_versions(lines: list[str]) -> dict[str, str]:
    """Parse `{package: version}` of fully installed packages, from `dpkg-query` lines `STATUS PACKAGE VERSION`."""
    versions = {}
    for line in lines:
        status, package, version = [*line.split("\t"), "", ""][:3]
        if status[1:2] == "i" and version:
            versions[package] = version
    return versions


def parse_broken_packages(lines: list[str]) -> DpkgTrouble:
    """Parse dpkg's journal files and `dpkg-query` lines `STATUS PACKAGE`."""
    packages: dict[str, str] = {}
    journal: list[str] = []
    for line in lines:
        if line.startswith(UPDATES):
            journal.append(line)
            continue
        status, _, package = line.partition("\t")
        if status[1:2] not in SETTLED or status[2:3].strip():
            packages[package] = status.strip()
    return DpkgTrouble(packages, tuple(journal))


def parse_apt_versions(lines: list[str]) -> dict[str, list[str]]:
    """Parse `{package: versions}`, in apt's order, from `apt-cache madison` lines `PACKAGE | VERSION | SOURCE`."""
    versions: dict[str, list[str]] = {}
    for line in lines:
        fields = [part.strip() for part in line.split("|")]
        if len(fields) >= 3 and fields[1] not in versions.setdefault(fields[0], []):
            versions[fields[0]].append(fields[1])
    return versions


def parse_apt_sources(lines: list[str]) -> dict[str, set[str]]:
    """Parse `{path: repository addresses}` from `grep -H` lines of apt's source files."""
    return {path: source_uris(path, text) for path, text in texts_by_path(lines).items()}


class AptSources(FactBase[dict[str, set[str]]]):
    """The repository addresses in each of apt's source files, as `rigup.distros.apt_sources.source_uris` has them."""

    @staticmethod
    def default() -> dict[str, set[str]]:
        return {}

    def command(self) -> str:
        path = "/etc/apt/sources.list"
        return f"grep -H '' {path} {path}.d/*.list {path}.d/*.sources 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> dict[str, set[str]]:
        return parse_apt_sources(output)


def parse_removals(lines: Collection[str]) -> list[str]:
    """Return the packages that `apt-get --simulate` would remove."""
    return sorted({match[1].split(":")[0] for line in lines if (match := REMOVAL.match(line))})


class Removals(FactBase[list[str]]):
    """All packages that apt would remove with `names`, these included; empty if apt refuses."""

    @staticmethod
    def default() -> list[str]:
        return []

    def command(self, names: Sequence[str]) -> StringCommand:
        if not names:
            return StringCommand("true")
        packages = (QuoteString(name) for name in names)
        return StringCommand("apt-get --quiet=2 --simulate remove", *packages, "2>/dev/null || true")

    @reading
    def process(self, output: list[str]) -> list[str]:
        return parse_removals(output)


class AptErrors(FactBase[list[str]]):
    """Why apt refuses every transaction, in its words: source files that it cannot read. Empty if it does not.

    apt-get(8), `indextargets`, reads these files and nothing else, which takes a hundredth of a simulation.
    """

    @staticmethod
    def default() -> list[str]:
        return []

    def command(self) -> str:
        return "apt-get indextargets 2>&1 >/dev/null | grep '^E: ' || true"

    @reading
    def process(self, output: list[str]) -> list[str]:
        return list(dict.fromkeys(line.removeprefix("E: ") for line in output))


def parse_edited(lines: list[str]) -> set[str]:
    """Parse the changed files from `md5sum --check`, without missing ones."""
    return {line.removesuffix(": FAILED") for line in lines if line.endswith(": FAILED")}


class Conffiles(FactBase[set[str]]):
    """The configuration files of these packages that were edited since dpkg installed them."""

    @staticmethod
    def default() -> set[str]:
        return set()

    def command(self, packages: Sequence[str]) -> StringCommand:
        if not packages:
            return StringCommand("true")
        return StringCommand(
            "dpkg-query -W -f '${Conffiles}\\n' --",
            *(QuoteString(name) for name in packages),
            # Converts ` PATH SUM`, with or without `obsolete` after it, to the format of md5sum.
            "2>/dev/null | sed -nE 's#^ (/.*) ([0-9a-f]{32})( .*)?$#\\2  \\1#p'",
            "| md5sum --check --quiet 2>/dev/null || true",
        )

    @reading
    def process(self, output: list[str]) -> set[str]:
        return parse_edited(output)


class InstalledVersions(FactBase[dict[str, str]]):
    """`{package: version}` of the installed ones among `names`."""

    @staticmethod
    def default() -> dict[str, str]:
        return {}

    def command(self, names: Sequence[str]) -> StringCommand:
        # Without names dpkg-query lists all packages.
        if not names:
            return StringCommand("true")
        return StringCommand(
            "dpkg-query -W -f '${db:Status-Abbrev}\\t${Package}\\t${Version}\\n'",
            *(QuoteString(name) for name in names),
            "2>/dev/null || true",
        )

    @reading
    def process(self, output: list[str]) -> dict[str, str]:
        return parse_installed_versions(output)


def parse_held(lines: list[str]) -> dict[str, str]:
    """Parse `{package: version}` of packages on hold, "" if not installed, from lines `STATUS PACKAGE VERSION`."""
    rows = ([*line.split("\t"), "", ""][:3] for line in lines)
    return {package: version if status[1:2] == "i" else "" for status, package, version in rows if status[:1] == "h"}


class HeldPackages(FactBase[dict[str, str]]):
    """`{package: version}` of the packages on hold (`apt-mark hold`); the version is empty if it is not installed."""

    @staticmethod
    def default() -> dict[str, str]:
        return {}

    def command(self) -> str:
        query = "dpkg-query -W -f '${db:Status-Abbrev}\\t${Package}\\t${Version}\\n' 2>/dev/null"
        return f"{query} | grep '^h' || true"

    @reading
    def process(self, output: list[str]) -> dict[str, str]:
        return parse_held(output)


class BrokenPackages(FactBase[DpkgTrouble]):
    """What an interrupted dpkg left; falsy if nothing is broken."""

    @staticmethod
    def default() -> DpkgTrouble:
        return DpkgTrouble()

    def command(self) -> str:
        query = "dpkg-query -W -f '${db:Status-Abbrev}\\t${Package}\\n' 2>/dev/null"
        return f"find {UPDATES}[0-9]* -maxdepth 0 -print0 {ONE_LINE_EACH}; {query} | grep -v '^.[nci] ' || true"

    @reading
    def process(self, output: list[str]) -> DpkgTrouble:
        return parse_broken_packages(output)


class FailedBuilds(FactBase[list[str]]):
    """The modules that DKMS could not build the last time, as `MODULE VERSION`.

    Only a failed build leaves its log in the module's build directory (dkms(8)).
    """

    @staticmethod
    def default() -> list[str]:
        return []

    def command(self) -> str:
        return f"find /var/lib/dkms/*/*/build/make.log -maxdepth 0 -print0 {ONE_LINE_EACH}"

    @reading
    def process(self, output: list[str]) -> list[str]:
        return sorted({" ".join(line.split("/")[4:6]) for line in output})


class AptVersions(FactBase[dict[str, list[str]]]):
    """`{package: versions}` that apt's lists offer for `names`, the preferred source first."""

    @staticmethod
    def default() -> dict[str, list[str]]:
        return {}

    def command(self, names: Sequence[str]) -> StringCommand:
        return StringCommand("apt-cache madison", *(QuoteString(name) for name in names), "2>/dev/null || true")

    @reading
    def process(self, output: list[str]) -> dict[str, list[str]]:
        return parse_apt_versions(output)
