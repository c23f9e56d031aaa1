"""What deploys have added to a host, and what of it still exists."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup import paths as host_paths
from rigup.facts.reading import ONE_LINE_EACH, Value, reading
from rigup.ledger import OWN_DIRECTORIES, Ledger, backup_of, parse

# Where else something of ours could be.
SEARCHED = ("/etc", "/usr/local", "/var/lib", "/var/cache", "/run", "/opt")
# What an interrupted write leaves next to its file, which may not be in the ledger yet.
STAGED = ".rigup-new.*"
TABLE = "table inet rigup"
# Starts the line before the output of each of several commands.
PART = "--- "


class HostLedger(FactBase[Ledger]):
    """The host's ledger; empty if nothing was deployed."""

    @staticmethod
    def default() -> Ledger:
        return Ledger()

    def command(self) -> StringCommand:
        return StringCommand("cat --", QuoteString(host_paths.LEDGER), "2>/dev/null || true")

    @reading
    def process(self, output: list[str]) -> Ledger:
        return parse(output)


@dataclass(frozen=True)
class RemainsValue(Value):
    """What still exists of what is in a ledger; `named` are paths that only have our name, so may belong to others."""

    packages: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    named: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """Return a phrase for each thing of ours, such as `user rigup-fetch`."""
        kinds = (("package", self.packages), ("user", self.users), ("unit", self.units), ("", self.paths))
        return [f"{kind} {name}".strip() for kind, names in kinds for name in names]


def parse_remains(lines: list[str]) -> RemainsValue:
    """Parse the output of the commands of `Remains`, each after a line `--- PART`."""
    parts: dict[str, list[str]] = {}
    here: list[str] = []
    for line in lines:
        if line.startswith(PART):
            here = parts.setdefault(line.removeprefix(PART), [])
        elif line.strip():
            here.append(line)
    packages = (line.split() for line in parts.get("packages", []))
    tables = [f"nftables: {TABLE}"] if TABLE in parts.get("tables", []) else []
    paths = dict.fromkeys([*tables, *parts.get("paths", [])])
    return RemainsValue(
        packages=tuple(dict.fromkeys(name for status, name in packages if status != "not-installed")),
        users=tuple(line.partition(":")[0] for line in parts.get("users", [])),
        units=tuple(line.split()[0] for line in parts.get("units", [])),
        paths=tuple(paths),
        named=tuple(path for path in parts.get("named", []) if path not in paths),
    )


def _pattern(text: str) -> str:
    """Quote a glob pattern, except for its asterisks."""
    return "*".join(shlex.quote(part) if part else "" for part in text.split("*"))


class Remains(FactBase[RemainsValue]):
    """Which of these packages (installed, or with configuration left), users, paths and units exist.

    `links` are patterns of further paths. Everything in the usual directories with `rigup` in its name is included.
    """

    @staticmethod
    def default() -> RemainsValue:
        return RemainsValue()

    def command(
        self,
        packages: Sequence[str],
        users: Sequence[str],
        paths: Sequence[str],
        units: Sequence[str],
        links: Sequence[str],
    ) -> StringCommand:
        find = ("find", *SEARCHED, "-xdev -maxdepth 5 -name")
        listing = "systemctl list-units --all --plain --no-legend --no-pager --full --"
        asked: list[tuple[str, list[str | QuoteString]]] = [
            ("units", [listing, *map(QuoteString, units)]),
            ("tables", ["nft list tables"]),
            ("paths", ["find", *map(_pattern, links), *map(QuoteString, paths), "-maxdepth 0 -print0", ONE_LINE_EACH]),
            ("paths", [*find, f"'{STAGED}' -prune -print0", ONE_LINE_EACH]),
            ("named", [*find, "'*rigup*' -prune -print0", ONE_LINE_EACH]),
        ]
        # Without names these two would list everything.
        if packages:
            form = "'${db:Status-Status} ${Package}\\n'"
            asked.append(("packages", ["dpkg-query -W -f", form, "--", *map(QuoteString, packages)]))
        if users:
            asked.append(("users", ["getent passwd --", *map(QuoteString, users)]))
        parts = (StringCommand(f"echo '{PART}{part}';", *command, "2>/dev/null;") for part, command in asked)
        return StringCommand(*parts, "true")

    @reading
    def process(self, output: list[str]) -> RemainsValue:
        return parse_remains(output)


def remains_of(ledger: Ledger) -> dict[str, list[str]]:
    """Return the arguments of `Remains` for everything in a ledger, except files of others with keys of ours."""
    written = [path for path, sums in ledger.files.items() if sums != {""}]
    backups = map(backup_of, (*ledger.files, *ledger.keys))
    return {
        "packages": sorted(ledger.packages),
        "users": sorted(ledger.users),
        "paths": sorted({*OWN_DIRECTORIES, *written, *backups}),
        "units": [*ledger.units, *ledger.commands],
        "links": links_of(ledger),
    }


def links_of(ledger: Ledger) -> list[str]:
    """Return shell patterns of what activates our units besides their files: boot links, and units on trial."""
    directories = (f"{host_paths.SYSTEM_UNITS}/*.wants", host_paths.TRIAL_UNITS)
    return ["*".join(map(shlex.quote, f"{place}/{unit}".split("*"))) for unit in ledger.units for place in directories]


def parse_sums(lines: list[str]) -> dict[str, str]:
    """Parse `sha256sum`: path to sum."""
    return {path: sums for sums, _, path in (line.partition("  ") for line in lines) if path}


class Sums(FactBase[dict[str, str]]):
    """The SHA-256 of each existing file, and of its backup from before our first write (below BEFORE)."""

    @staticmethod
    def default() -> dict[str, str]:
        return {}

    def command(self, paths: Sequence[str]) -> StringCommand:
        both = [QuoteString(f"{top}{path}") for path in paths for top in ("", host_paths.BEFORE)]
        return StringCommand("sha256sum -z --", *both, ONE_LINE_EACH) if both else StringCommand("true")

    @reading
    def process(self, output: list[str]) -> dict[str, str]:
        return parse_sums(output)
