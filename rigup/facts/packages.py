"""What dpkg has installed and what apt could install."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.distros.apt_sources import source_uris
from rigup.facts.reading import Value, reading

__all__ = [
    "AptSources",
    "AptVersions",
    "BrokenPackages",
    "Conffiles",
    "DpkgTrouble",
    "InstalledVersions",
    "parse_apt_sources",
    "parse_apt_versions",
    "parse_broken_packages",
    "parse_edited",
    "parse_installed_versions",
]

UPDATES = "/var/lib/dpkg/updates/"
# Second letter of dpkg-query's status: not installed, only its configuration left, installed.
SETTLED = "nci"


@dataclass(frozen=True)
class DpkgTrouble(Value):
    """What an interrupted dpkg left: packages in half states, and journal entries that lock apt out until replayed."""

    packages: Mapping[str, str] = field(default_factory=dict)
    journal: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.packages or self.journal)


def parse_installed_versions(lines: list[str]) -> dict[str, str]:
    """`{package: version}` of those fully installed, from `dpkg-query` lines `STATUS PACKAGE VERSION`."""
    versions = {}
    for line in lines:
        status, package, version = [*line.split("\t"), "", ""][:3]
        if status[1:2] == "i" and version:
            versions[package] = version
    return versions


def parse_broken_packages(lines: list[str]) -> DpkgTrouble:
    """From dpkg's journal files and `dpkg-query` lines `STATUS PACKAGE`."""
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
    """`{package: versions, apt's order}` from `apt-cache madison` lines `PACKAGE | VERSION | SOURCE`."""
    versions: dict[str, list[str]] = {}
    for line in lines:
        fields = [part.strip() for part in line.split("|")]
        if len(fields) >= 3 and fields[1] not in versions.setdefault(fields[0], []):
            versions[fields[0]].append(fields[1])
    return versions


def parse_apt_sources(lines: list[str]) -> dict[str, set[str]]:
    """`{path: addresses of repositories}` from `grep -H` lines of apt's source files."""
    texts: dict[str, str] = {}
    for line in lines:
        path, _, text = line.partition(":")
        texts[path] = f"{texts.get(path, '')}{text}\n"
    return {path: source_uris(path, text) for path, text in texts.items()}


class AptSources(FactBase[dict[str, set[str]]]):
    """The repositories' addresses in each of apt's source files, as `rigup.distros.driver.source_uris` has them."""

    @staticmethod
    def default() -> dict[str, set[str]]:
        return {}

    def command(self) -> str:
        place = "/etc/apt/sources.list"
        return f"grep -H '' {place} {place}.d/*.list {place}.d/*.sources 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> dict[str, set[str]]:
        return parse_apt_sources(output)


def parse_edited(lines: list[str]) -> set[str]:
    """The files that are not what they were, from what `md5sum --check` says; a missing one is none."""
    return {line.removesuffix(": FAILED") for line in lines if line.endswith(": FAILED")}


class Conffiles(FactBase[set[str]]):
    """The configuration files of these packages that somebody has edited since dpkg put them there."""

    @staticmethod
    def default() -> set[str]:
        return set()

    def command(self, packages: Sequence[str]) -> StringCommand:
        if not packages:
            return StringCommand("true")
        return StringCommand(
            "dpkg-query -W -f '${Conffiles}\\n' --",
            *(QuoteString(name) for name in packages),
            # From ` PATH SUM`, with `obsolete` behind it or not, to what md5sum checks.
            "2>/dev/null | sed -nE 's#^ (/.*) ([0-9a-f]{32})( .*)?$#\\2  \\1#p'",
            "| LC_ALL=C md5sum --check --quiet 2>/dev/null || true",
        )

    @reading
    def process(self, output: list[str]) -> set[str]:
        return parse_edited(output)


class InstalledVersions(FactBase[dict[str, str]]):
    """`{package: version}` of those of `names` that are installed; the others are left out."""

    @staticmethod
    def default() -> dict[str, str]:
        return {}

    def command(self, names: Sequence[str]) -> StringCommand:
        # Without a name dpkg-query lists every package there is.
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


class BrokenPackages(FactBase[DpkgTrouble]):
    """What an interrupted dpkg left behind; falsy when all is well."""

    @staticmethod
    def default() -> DpkgTrouble:
        return DpkgTrouble()

    def command(self) -> str:
        query = "dpkg-query -W -f '${db:Status-Abbrev}\\t${Package}\\n' 2>/dev/null"
        return f"ls -1d {UPDATES}[0-9]* 2>/dev/null; {query} | grep -v '^.[nci] ' || true"

    @reading
    def process(self, output: list[str]) -> DpkgTrouble:
        return parse_broken_packages(output)


class AptVersions(FactBase[dict[str, list[str]]]):
    """`{package: versions}` that apt's present lists offer for `names`, the best source first."""

    @staticmethod
    def default() -> dict[str, list[str]]:
        return {}

    def command(self, names: Sequence[str]) -> StringCommand:
        return StringCommand("apt-cache madison", *(QuoteString(name) for name in names), "2>/dev/null || true")

    @reading
    def process(self, output: list[str]) -> dict[str, list[str]]:
        return parse_apt_versions(output)
