"""The real apt in a private world: sources, lists, preferences and package database are its own."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lab.mirror.debfile import Package

# What the lab's packages need of a distribution, as far as apt must find it.
DISTRIBUTION = tuple(
    Package(name, "9.9-1", "stands for the distribution's own")
    for name in ("python3", "passwd", "kmod", "make", "patch", "util-linux", "fakeroot", "sudo")
)


@dataclass(frozen=True)
class Apt:
    """Runs apt-get with everything it reads and writes below a directory."""

    directory: Path

    @classmethod
    def make(cls, directory: Path, *sources: str) -> "Apt":
        for name in ("lists/partial", "cache/archives/partial", "etc/apt.conf.d", "preferences"):
            (directory / name).mkdir(parents=True)
        (directory / "status").touch()
        (directory / "sources.list").write_text("".join(f"{line}\n" for line in sources))
        settings = {
            "Dir::State": directory,
            "Dir::State::status": directory / "status",
            "Dir::Cache": directory / "cache",
            "Dir::Etc": directory / "etc",
            "Dir::Etc::sourcelist": directory / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferencesparts": directory / "preferences",
            "APT::Sandbox::User": "root",
            "APT::Architecture": "amd64",
            "Debug::NoLocking": "true",
        }
        (directory / "apt.conf").write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
        return cls(directory)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "APT_CONFIG": str(self.directory / "apt.conf"), "LANG": "C.UTF-8"}
        return subprocess.run(["apt-get", *arguments], capture_output=True, text=True, env=environment)

    def update(self) -> subprocess.CompletedProcess[str]:
        return self.run("update", "-o", "APT::Update::Error-Mode=any")

    def would_install(self, *packages: str) -> dict[str, str]:
        """What `apt-get install` would install, with versions; AssertionError with apt's words when it refuses."""
        done = self.run("install", "--simulate", "--no-install-recommends", *packages)
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(re.findall(r"^Inst (\S+) \((\S+)", done.stdout, re.MULTILINE))

    def refusal(self, *packages: str) -> str:
        """apt's words when it refuses to install. Raises AssertionError when it does not."""
        done = self.run("install", "--simulate", "--no-install-recommends", *packages)
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def pin(self, deb: Path) -> None:
        """Put the preferences that a package ships into force."""
        unpacked = self.directory / "unpacked"
        subprocess.run(["dpkg-deb", "--extract", str(deb), str(unpacked)], check=True)
        (shipped,) = (unpacked / "etc/apt/preferences.d").iterdir()
        (self.directory / "preferences" / f"{shipped.name}.pref").write_bytes(shipped.read_bytes())
