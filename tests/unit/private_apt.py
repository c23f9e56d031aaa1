"""The real apt with its own sources, lists, preferences and package database."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.mirror.debfile import Package
from lab.mirror.keys import Key

# What apt must find in the distribution to install the lab's packages.
DISTRIBUTION = tuple(
    Package(name, "9.9-1", "stands for the distribution's own")
    for name in ("python3", "passwd", "kmod", "make", "patch", "util-linux", "fakeroot", "sudo")
)

# NVIDIA's repositories contain their own dkms.
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
        """Return what `apt-get install` would install, with versions. Raises AssertionError with apt's message."""
        done = self.run("install", "--simulate", "--no-install-recommends", *packages)
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(re.findall(r"^Inst (\S+) \((\S+)", done.stdout, re.MULTILINE))

    def refusal(self, *packages: str) -> str:
        """Return apt's message when it refuses to install. Raises AssertionError when it does not refuse."""
        done = self.run("install", "--simulate", "--no-install-recommends", *packages)
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def pin(self, deb: Path) -> None:
        """Install the preferences that a package ships, replacing those of another."""
        unpacked = self.directory / "unpacked"
        subprocess.run(["dpkg-deb", "--extract", str(deb), str(unpacked)], check=True)
        (shipped,) = (unpacked / "etc/apt/preferences.d").iterdir()
        (self.directory / "preferences" / f"{shipped.name}.pref").write_bytes(shipped.read_bytes())

    def installed(self) -> dict[str, str]:
        """Return the packages in the database, by name."""
        text = (self.directory / "status").read_text()
        return dict(re.findall(r"^Package: (\S+)\n(?:.+\n)*?Version: (\S+)$", text, re.MULTILINE))

    def now_has(self, repository: Path, packages: Mapping[str, str]) -> None:
        """Put exactly these packages of the repository into the package database, and install their pin."""
        stanzas = (repository / "Packages").read_text().split("\n\n")
        found = {tuple(re.findall(r"^(?:Package|Version): (\S+)", each, re.MULTILINE)): each for each in stanzas}
        chosen = [found[name, version].strip() for name, version in packages.items()]
        text = "".join(f"{stanza}\nStatus: install ok installed\n\n" for stanza in chosen)
        (self.directory / "status").write_text(text)
        for name, version in packages.items():
            if name.startswith("nvidia-driver-pinning-"):
                self.pin(repository / f"{name}_{version}_all.deb")


def apt_for(directory: Path, repository: Path, key: Key) -> Apt:
    """Return an apt whose only source is a flat repository."""
    apt = Apt.make(directory / "apt", f"deb [signed-by={key.keyring}] file:{repository} ./")
    done = apt.update()
    assert done.returncode == 0, done.stderr
    return apt
