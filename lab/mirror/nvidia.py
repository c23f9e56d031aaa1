"""NVIDIA's CUDA repository of each distribution: its keyring, drivers, CUDA toolkits and metapackages.

The names and dependencies include the real pitfalls: metapackages depend on `>=`, so that only a pin keeps a branch;
names without a version mean the newest branch; `cuda` installs a driver too.
"""

from lab.mirror import driver
from lab.mirror.debfile import File, Package
from lab.mirror.keys import Key
from lab.mirror.parts import program, script, standin, text_of

URL = "https://developer.download.nvidia.com/compute/cuda/repos"
BRANCHES = {
    "debian12": ("580.173.02", "595.71.05", "595.91.07", "610.57.04"),
    # NVIDIA published no 580 for Debian 13 (cuda-repo-management issues 38 and 40).
    "debian13": ("595.71.05", "595.91.07", "610.57.04"),
    "ubuntu2404": ("580.173.02", "595.71.05", "595.91.07", "610.57.04"),
}
# The repository's key, next to its packages (README of NVIDIA/cuda-repo-management).
KEY_FILES = {"debian12": "3bf863cc.pub", "debian13": "8793F200.pub", "ubuntu2404": "3bf863cc.pub"}
# Per series: the version, and the oldest driver that it requires.
TOOLKITS = {
    "13-0": ("13.0.3", "580.65.06"),
    "13-1": ("13.1.2", "590.44.01"),
    "13-2": ("13.2.1", "595.45.04"),
    "13-3": ("13.3.1", "610.43.02"),
    "13-4": ("13.4.2", "610.43.02"),
}


def packages(distro: str, key: Key, dkms: Package) -> list[Package]:
    """Return everything in the CUDA repository of a distribution. `dkms` is the repository's own."""
    everything = [_keyring(distro, key), dkms, *driver.packages(distro, BRANCHES[distro])]
    for series, (version, oldest_driver) in TOOLKITS.items():
        everything += _toolkit(series, version, oldest_driver)
    return everything + _metapackages()


def _package(
    name: str,
    version: str,
    summary: str,
    depends: str = "",
    files: tuple[File, ...] = (),
    scripts: dict[str, str] | None = None,
    architecture: str = "amd64",
) -> Package:
    relations = {"Depends": depends}
    section = "multiverse/devel"
    return Package(name, f"{version}-1", summary, architecture, section, "cuda", relations, files, scripts or {})


def _toolkit(series: str, version: str, oldest_driver: str) -> list[Package]:
    """Return a CUDA toolkit that contains only nvcc, and the metapackages around it."""
    release = series.replace("-", ".")
    major, minor = release.split(".")
    tree = f"usr/local/cuda-{release}"
    values = {"RELEASE": release, "MAJOR": major, "PRIORITY": f"{major}{minor}"}
    config = f"cuda-toolkit-{series}-config-common"
    common = "cuda-toolkit-config-common, cuda-toolkit-13-config-common"
    links = {name: script(text_of(f"maintainer/alternatives.{name}", **values)) for name in ("postinst", "prerm")}
    nvcc = program(f"{tree}/bin/nvcc", "nvcc", RELEASE=release, VERSION=f"{version}0")
    manifest = File(f"{tree}/version.json", f'{{\n   "cuda" : {{\n      "version" : "{version}"\n   }}\n}}\n'.encode())
    both = f"cuda-runtime-{series} (>= {version}), cuda-toolkit-{series} (>= {version})"
    return [
        _package(config, version, f"common files of CUDA {release}", common, scripts=links, architecture="all"),
        _package(f"cuda-nvcc-{series}", version, "CUDA compiler, the lab's stand-in", config, (nvcc,)),
        _package(
            f"cuda-toolkit-{series}",
            version,
            f"CUDA toolkit {release}",
            f"cuda-nvcc-{series} (>= {version})",
            (manifest,),
        ),
        _package(f"cuda-runtime-{series}", version, f"CUDA runtime {release}", f"cuda-drivers (>= {oldest_driver})"),
        _package(f"cuda-{series}", version, f"CUDA {release} with a driver", both),
    ]


def _metapackages() -> list[Package]:
    newest, (version, _) = list(TOOLKITS.items())[-1]
    toolkit = f"cuda-toolkit-{newest} (>= {version})"
    return [
        _package(name, version, summary, depends, architecture="all")
        for name, summary, depends in (
            ("cuda-toolkit-config-common", "common files of CUDA", ""),
            ("cuda-toolkit-13-config-common", "common files of CUDA 13", ""),
            ("cuda-toolkit", "the newest CUDA toolkit", toolkit),
            ("cuda-toolkit-13", "the newest CUDA 13 toolkit", toolkit),
            ("cuda", "the newest CUDA with the newest driver", f"cuda-{newest} (>= {version})"),
        )
    ]


def _keyring(distro: str, key: Key) -> Package:
    """Return cuda-keyring as NVIDIA ships it: its apt source names NVIDIA's own server."""
    ring = "usr/share/keyrings/cuda-archive-keyring.gpg"
    line = f"deb [signed-by=/{ring}] {URL}/{distro}/x86_64/ /\n"
    files = [
        File(f"etc/apt/sources.list.d/cuda-{distro}-x86_64.list", line.encode()),
        File(ring, key.keyring.read_bytes()),
    ]
    if distro.startswith("ubuntu"):
        files.append(standin("etc/apt/preferences.d/cuda-repository-pin-600", "etc/cuda-repository-pin-600"))
    summary = "GPG keyring for the CUDA repository"
    return Package("cuda-keyring", "1.1-1", summary, "all", "multiverse/misc", files=tuple(files))
