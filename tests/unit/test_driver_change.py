"""From one driver to another: the step `driver`, with the real apt deciding what every transaction does."""

from __future__ import annotations

import fnmatch
import re
import shlex
import shutil
from pathlib import Path

import pytest

from lab.mirror.keys import Key
from rigup.config.settings import Settings
from rigup.distros.apt_sources import repositories
from rigup.distros.driver import driver_packages
from rigup.facts.packages import parse_removals
from rigup.lock.apt import choose_driver, parse_index
from rigup.lock.lockfile import KeyLock, Lock
from rigup.lock.packages import driver_group, driver_install
from tasks.context import Context
from tasks.driver import driver
from tests.unit.deploys import Actor, Outcome, Said
from tests.unit.private_apt import apt_for
from tests.unit.sample import plan
from tests.unit.test_operations_units import shown

pytestmark = pytest.mark.skipif(
    not (shutil.which("apt-get") and shutil.which("gpg")), reason="needs Debian's apt-get, and gpg"
)


class Rig:
    """A host whose apt is real; what dpkg would then do is done to its package database alone."""

    def __init__(self, directory: Path, cuda: Path, key: Key, distro: str):
        self.distro, self.repository = distro, cuda / distro
        self.apt = apt_for(directory, self.repository, key)
        self.transactions: list[str] = []

    def context(self, settings: Settings) -> Context:
        index = parse_index((self.repository / "Packages").read_text())
        table = driver_packages(self.distro, settings.driver_branch)
        chosen = choose_driver(index, table, settings.driver_version, "the mirror")
        key_url = repositories(self.distro, settings)["cuda"].key_url
        lock = Lock(
            packages={self.distro: {driver_group(settings): chosen}},
            keys={key_url: KeyLock(sha256="0" * 64, fingerprints=("0" * 40,))},
        )
        return Context(plan(), settings, lock, self.distro, gpus=4)

    def deploys(self, context: Context) -> Outcome:
        actor = Actor().answers("systemctl show", shown("active", "exited")).answers("--simulate", self._simulates)
        actor.answers("--unit=rigup-apt.service", self._transacts).answers("apt-cache madison", self._offers)
        actor.answers("dpkg-query", self._lists).answers("dpkg -l", self._knows)
        return actor.answers("command -v curl", ["/usr/bin/curl"]).walks(driver, context)

    def becomes(self, settings: Settings) -> dict[str, str]:
        """The host's packages after the step, which must end well."""
        outcome = self.deploys(self.context(settings))
        assert not outcome.failed, outcome.told
        return self.apt.installed()

    def _simulates(self, command: str) -> Said:
        _, *arguments = shlex.split(command)
        done = self.apt.run(*arguments)
        return Said(done.stdout.splitlines(), done.stderr.splitlines(), done.returncode == 0)

    def _transacts(self, command: str) -> Said:
        arguments = command.partition(" /usr/bin/apt-get ")[2]
        done = self.apt.run("--simulate", *shlex.split(arguments))
        assert done.returncode == 0, done.stderr
        packages = self.apt.installed() | dict(re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+)", done.stdout, re.M))
        gone = parse_removals(done.stdout.splitlines())
        self.apt.now_has(self.repository, {name: each for name, each in packages.items() if name not in gone})
        self.transactions.append(arguments)
        return Said()

    def _offers(self, command: str) -> Said:
        done = self.apt.run(*shlex.split(command.partition("2>")[0])[1:], program="apt-cache")
        return Said(done.stdout.splitlines())

    def _lists(self, command: str) -> Said:
        asked = shlex.split(command.partition("2>")[0])[4:]
        there = self.apt.installed().items()
        wanted = [(name, each) for name, each in there if any(fnmatch.fnmatch(name, pattern) for pattern in asked)]
        return Said([f"ii \t{name}\t{version}" for name, version in wanted])

    def _knows(self, command: str) -> Said:
        return Said([f"ii  {name}  {version}  amd64  x" for name, version in self.apt.installed().items()])


def driver_of(distro: str, branch: int, version: str | None = None) -> Settings:
    return Settings.from_data({"driver_branch": branch, **({"driver_version": version} if version else {})})


@pytest.mark.parametrize(
    ("distro", "before", "after", "version"),
    [
        ("debian13", (595, "595.71.05"), (595, None), "595.91.07"),
        ("debian13", (595, None), (595, "595.71.05"), "595.71.05"),
        ("debian13", (595, None), (610, None), "610.57.04"),
        ("debian12", (610, None), (595, None), "595.91.07"),
        ("debian12", (580, None), (595, None), "595.91.07"),
        ("ubuntu2404", (580, None), (595, None), "595.91.07"),
        ("ubuntu2404", (595, None), (580, None), "580.173.02"),
        ("ubuntu2404", (610, None), (595, "595.71.05"), "595.71.05"),
    ],
)
def test_a_host_comes_from_any_driver_to_the_locked_one(
    cuda: Path, key: Key, tmp_path: Path, distro: str, before: tuple[int, str], after: tuple[int, str], version: str
) -> None:
    rig = Rig(tmp_path, cuda, key, distro)
    old, new = driver_of(distro, *before), driver_of(distro, *after)
    first = rig.becomes(old)
    found = rig.becomes(new)

    context = rig.context(new)
    wanted = driver_install(context.lock, distro, new)
    assert wanted.version == version
    named = {**wanted.pin, **wanted.packages}
    assert {name: found.get(name) for name in named} == named
    # Nothing of the old driver is left, least of all its pin, which would hold its branch.
    assert {name for name in found if name.startswith("nvidia-driver-pinning-")} == set(wanted.pin)
    assert not [name for name in found if f"-{before[0]}" in name and before[0] != after[0]]
    assert first != found

    rig.transactions.clear()
    assert rig.becomes(new) == found
    assert rig.transactions == []


def test_a_desktop_on_the_old_driver_is_left_for_its_owner_to_decide(cuda: Path, key: Key, tmp_path: Path) -> None:
    rig = Rig(tmp_path, cuda, key, "ubuntu2404")
    desktop = rig.apt.would_install("nvidia-driver-580-open")
    rig.apt.now_has(rig.repository, desktop)

    outcome = rig.deploys(rig.context(driver_of("ubuntu2404", 595)))

    assert outcome.failed
    assert "would remove nvidia-driver-580-open; nothing was changed" in outcome.told
    assert desktop.items() <= rig.apt.installed().items()
