"""The real apt in a private world: sources, lists, preferences and package database are its own."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.mirror.debfile import Package
from lab.mirror.keys import Key

# What the lab's packages need of a distribution, as far as apt must find it.
DISTRIBUTION = tuple(
    Package(name, "9.9-1", "stands for the distribution's own")
    for name in ("python3", "passwd", "kmod", "make", "patch", "util-linux", "fakeroot", "sudo")
)

# NVIDIA's repositories bring a dkms of their own.
DKMS = Package("dkms", "1:3.4.0-1", "stands for the real one", "all", relations={"Depends": "kmod"})
CUDA = {"Origin": "NVIDIA", "Label": "NVIDIA CUDA"}


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

    def run(self, *arguments: str, program: str = "apt-get") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "APT_CONFIG": str(self.directory / "apt.conf"), "LANG": "C.UTF-8"}
        return subprocess.run([program, *arguments], capture_output=True, text=True, env=environment)

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
        """Put the preferences that a package ships into force, in place of another's."""
        unpacked = self.directory / "unpacked"
        subprocess.run(["dpkg-deb", "--extract", str(deb), str(unpacked)], check=True)
        (shipped,) = (unpacked / "etc/apt/preferences.d").iterdir()
        (self.directory / "preferences" / f"{shipped.name}.pref").write_bytes(shipped.read_bytes())

    def installed(self) -> dict[str, str]:
        """What the package database holds, by name."""
        text = (self.directory / "status").read_text()
        return dict(re.findall(r"^Package: (\S+)\n(?:.+\n)*?Version: (\S+)$", text, re.MULTILINE))

    def now_has(self, repository: Path, packages: Mapping[str, str]) -> None:
        """Have exactly these packages of the repository in the package database, and their pin in force."""
        stanzas = (repository / "Packages").read_text().split("\n\n")
        found = {tuple(re.findall(r"^(?:Package|Version): (\S+)", each, re.MULTILINE)): each for each in stanzas}
        chosen = [found[name, version].strip() for name, version in packages.items()]
        text = "".join(f"{stanza}\nStatus: install ok installed\n\n" for stanza in chosen)
        (self.directory / "status").write_text(text)
        for name, version in packages.items():
            if name.startswith("nvidia-driver-pinning-"):
                self.pin(repository / f"{name}_{version}_all.deb")


def apt_for(directory: Path, repository: Path, key: Key) -> Apt:
    """An apt whose one source is a flat repository."""
    apt = Apt.make(directory / "apt", f"deb [signed-by={key.keyring}] file:{repository} ./")
    done = apt.update()
    assert done.returncode == 0, done.stderr
    return apt
