"""What NVIDIA's CUDA repositories hold: names, versions and dependencies by distribution and driver branch.

The layout and the traps are the real ones: metapackages depend on `>=`, so that only a pin keeps a branch; the
compute packages bring no kernel module; unversioned names mean the newest branch; `cuda` brings a driver along.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lab.kernel_module import __file__ as kernel_module_file
from lab.mirror.debfile import File, Package
from lab.mirror.keys import Key
from lab.mirror.parts import program, script, standin, text_of, unit, unit_scripts

URL = "https://developer.download.nvidia.com/compute/cuda/repos"
BRANCHES = {
    "debian12": ("580.173.02", "595.71.05", "595.91.07", "610.57.04"),
    # NVIDIA published no 580 for Debian 13 (cuda-repo-management issues 38 and 40).
    "debian13": ("595.71.05", "595.91.07", "610.57.04"),
    "ubuntu2404": ("580.173.02", "595.71.05", "595.91.07", "610.57.04"),
}
TOOLKITS = {"13-0": "13.0.3", "13-1": "13.1.2", "13-2": "13.2.1", "13-3": "13.3.1", "13-4": "13.4.2"}
# The oldest driver each CUDA release asks for, of those that the lab's repositories have.
_RUNTIME_DRIVER = {
    "13-0": "580.65.06",
    "13-1": "590.44.01",
    "13-2": "595.45.04",
    "13-3": "610.43.02",
    "13-4": "610.43.02",
}
_LIBRARY = "usr/lib/x86_64-linux-gnu/nvidia"
_OPEN, _PROPRIETARY = "Dual MIT/GPL", "NVIDIA"


@dataclass(frozen=True)
class _Maker:
    """Makes the packages of one driver version for one distribution."""

    driver: str
    revision: str

    @property
    def version(self) -> str:
        return f"{self.driver}-{self.revision}"

    def package(
        self,
        name: str,
        summary: str,
        *depends: str,
        source: str = "nvidia-graphics-drivers",
        files: tuple[File, ...] = (),
        scripts: Mapping[str, str] | None = None,
        architecture: str = "amd64",
        relations: Mapping[str, str] | None = None,
    ) -> Package:
        """Relations may say {v} for this version."""
        fields = {"Depends": ", ".join(depends), **(relations or {})}
        filled = {key: value.replace("{v}", self.version) for key, value in fields.items() if value}
        return Package(name, self.version, summary, architecture, "", source, filled, files, scripts or {})

    def library(self) -> File:
        return File(f"{_LIBRARY}/libnvidia-ml.so.{self.driver}", f"the lab's NVML, {self.driver}\n".encode())

    def persistenced(self, name: str = "nvidia-persistenced", source: str = "nvidia-persistenced") -> Package:
        account = text_of("maintainer/account.postinst", ACCOUNT="nvidia-persistenced")
        return self.package(
            name,
            "daemon that keeps the NVIDIA driver initialised, the lab's stand-in",
            "python3, passwd",
            source=source,
            files=(
                program("usr/bin/nvidia-persistenced", "nvidia_persistenced.py"),
                unit("nvidia-persistenced.service"),
            ),
            scripts=unit_scripts(["nvidia-persistenced.service"], [account]),
        )

    def modprobe(self) -> Package:
        return self.package(
            "nvidia-modprobe",
            "utility that loads NVIDIA's kernel modules and makes device nodes, the lab's stand-in",
            "python3",
            source="nvidia-modprobe",
            files=(program("usr/bin/nvidia-modprobe", "nvidia_modprobe.py"),),
        )

    def dkms(self, name: str, licence: str, *depends: str, relations: Mapping[str, str]) -> Package:
        source = f"usr/src/nvidia-{self.driver}"
        with open(kernel_module_file, "rb") as module:
            writer = File(f"{source}/kernel_module.py", module.read())
        return self.package(
            name,
            f"NVIDIA kernel modules (DKMS, licence {licence}), the lab's stand-in",
            # Drivers from 570.148.08 on need a newer dkms than bookworm's 3.0.10.
            "dkms (>= 3.1.8), python3",
            *depends,
            source="nvidia-kmod-open" if licence == _OPEN else "nvidia-kmod",
            files=(
                standin(f"{source}/dkms.conf", "etc/dkms.conf", VERSION=self.driver, LICENCE=licence),
                standin(f"{source}/build_modules.py", "build_modules.py"),
                writer,
            ),
            scripts={
                "postinst": script(text_of("maintainer/modules.postinst", VERSION=self.driver)),
                "prerm": script(text_of("maintainer/modules.prerm", VERSION=self.driver)),
            },
            relations=relations,
        )

    def meta(self, name: str, *depends: str, source: str = "nvidia-open") -> Package:
        return self.package(name, "NVIDIA driver metapackage", *depends, source=source, architecture="all")


def _nouveau(name: str) -> File:
    return standin(f"usr/lib/modprobe.d/{name}", "etc/nvidia-blacklists-nouveau.conf")


def _debian_driver(driver: str) -> list[Package]:
    make = _Maker(driver, "1")
    smi = program("usr/bin/nvidia-smi", "nvidia_smi.py")
    return [
        make.package(
            "libcuda1", "NVIDIA CUDA driver library", "libnvidia-ml1 (= {v}), libnvidia-ptxjitcompiler1 (= {v})"
        ),
        make.package("libnvidia-ml1", "NVIDIA management library", files=(make.library(),)),
        make.package("libnvidia-ptxjitcompiler1", "NVIDIA PTX compiler"),
        make.package("libnvidia-nvvm4", "NVIDIA NVVM compiler"),
        make.package("firmware-nvidia-gsp", "firmware of the GPUs' system processor", architecture="all"),
        make.package(
            "nvidia-kernel-support",
            "NVIDIA kernel module support files",
            "nvidia-modprobe (>= {v})",
            files=(_nouveau("nvidia-blacklists-nouveau.conf"),),
        ),
        make.package(
            "nvidia-driver-cuda",
            "NVIDIA driver, compute part, without a kernel module",
            "libcuda1 (= {v}), libnvidia-ml1 (= {v}), libnvidia-nvvm4 (= {v}), nvidia-modprobe (>= {v}), python3",
            files=(smi,),
            # nvidia-smi is a package of its own in Debian's archive.
            relations={"Recommends": "nvidia-persistenced", "Conflicts": "nvidia-smi"},
        ),
        make.package("nvidia-driver-libs", "NVIDIA driver, display libraries", "libnvidia-ml1 (= {v})"),
        make.package(
            "nvidia-driver",
            "NVIDIA driver, display part",
            "nvidia-driver-libs (= {v}), nvidia-kernel-open-dkms (= {v}) | nvidia-kernel-dkms (= {v})",
        ),
        make.dkms(
            "nvidia-kernel-open-dkms",
            _OPEN,
            "nvidia-kernel-support (= {v}), firmware-nvidia-gsp (= {v})",
            relations={
                "Provides": "nvidia-kernel",
                "Conflicts": "nvidia-kernel-dkms, nvidia-open-kernel-dkms, nvidia-kernel",
            },
        ),
        make.dkms(
            "nvidia-kernel-dkms",
            _PROPRIETARY,
            "nvidia-kernel-support (= {v}), firmware-nvidia-gsp (= {v})",
            relations={
                "Provides": "nvidia-kernel",
                "Conflicts": "nvidia-kernel-open-dkms, nvidia-open-kernel-dkms, nvidia-kernel",
            },
        ),
        make.persistenced(),
        make.modprobe(),
        make.meta(
            "nvidia-open", "nvidia-driver (>= {v}), nvidia-driver-cuda (>= {v}), nvidia-kernel-open-dkms (>= {v})"
        ),
        make.meta(
            "cuda-drivers",
            "nvidia-driver (>= {v}), nvidia-driver-cuda (>= {v}), nvidia-kernel-dkms (>= {v})",
            source="cuda-drivers",
        ),
        _pin(driver, f"{driver}-1", driver),
    ]


def _ubuntu_driver(driver: str) -> list[Package]:
    """Ubuntu from 590 on: no version in the names."""
    make = _Maker(driver, "1ubuntu1")
    smi = program("usr/bin/nvidia-smi", "nvidia_smi.py")
    return [
        make.package(
            "libnvidia-compute", "NVIDIA compute libraries", "libnvidia-cfg1 (= {v})", files=(make.library(),)
        ),
        make.package("libnvidia-cfg1", "NVIDIA configuration library"),
        make.package("nvidia-firmware", "firmware of the GPUs' system processor"),
        make.package(
            "nvidia-kernel-common",
            "NVIDIA driver, what goes with the kernel modules",
            "nvidia-modprobe (>= {v})",
            files=(_nouveau("nvidia-graphics-drivers.conf"),),
        ),
        make.package(
            "nvidia-utils", "NVIDIA driver support binaries", "python3, libnvidia-compute (= {v})", files=(smi,)
        ),
        make.dkms(
            "nvidia-dkms-open",
            _OPEN,
            "nvidia-kernel-common (= {v}), nvidia-firmware (= {v})",
            relations={"Provides": "nvidia-dkms-kernel", "Conflicts": "nvidia-dkms, nvidia-dkms-kernel"},
        ),
        make.dkms(
            "nvidia-dkms",
            _PROPRIETARY,
            "nvidia-kernel-common (= {v}), nvidia-firmware (= {v})",
            relations={"Provides": "nvidia-dkms-kernel", "Conflicts": "nvidia-dkms-open, nvidia-dkms-kernel"},
        ),
        make.meta("nvidia-headless-no-dkms-open", "libnvidia-compute (= {v}), nvidia-kernel-common (= {v})"),
        make.meta("nvidia-headless-open", "nvidia-headless-no-dkms-open (= {v}), nvidia-dkms-open (= {v})"),
        make.meta(
            "nvidia-driver-open",
            "nvidia-headless-open (= {v}), nvidia-utils (= {v}), nvidia-persistenced (>= {v})",
        ),
        make.meta("nvidia-driver", "nvidia-utils (= {v}), nvidia-dkms (= {v}), nvidia-persistenced (>= {v})"),
        make.meta("nvidia-open", "nvidia-driver-open (>= {v})"),
        make.meta("cuda-drivers", "nvidia-driver (>= {v})", source="cuda-drivers"),
        make.persistenced(),
        make.modprobe(),
        _pin(driver, f"{driver}-1ubuntu1", driver),
    ]


def _ubuntu_driver_580(driver: str) -> list[Package]:
    """Ubuntu before 590: the branch is in the names."""
    make = _Maker(driver, "1ubuntu1")
    smi = program("usr/bin/nvidia-smi", "nvidia_smi.py")
    firmware = f"nvidia-firmware-580-{driver}"
    return [
        make.package("libnvidia-compute-580", "NVIDIA compute libraries", files=(make.library(),)),
        make.package(
            "nvidia-utils-580", "NVIDIA driver support binaries", "python3, libnvidia-compute-580 (= {v})", files=(smi,)
        ),
        make.package(firmware, "firmware of the GPUs' system processor"),
        make.package(
            "nvidia-kernel-common-580",
            "NVIDIA driver, what goes with the kernel modules",
            "nvidia-modprobe",
            files=(_nouveau("nvidia-graphics-drivers.conf"),),
        ),
        make.dkms(
            "nvidia-dkms-580-open",
            _OPEN,
            f"nvidia-kernel-common-580 (= {{v}}), {firmware} (= {{v}})",
            relations={"Provides": "nvidia-dkms-kernel", "Conflicts": "nvidia-dkms-kernel"},
        ),
        make.persistenced("nvidia-compute-utils-580", "nvidia-graphics-drivers"),
        make.meta(
            "nvidia-headless-no-dkms-580-open",
            "libnvidia-compute-580 (= {v}), nvidia-kernel-common-580 (= {v}), nvidia-compute-utils-580 (= {v})",
        ),
        make.meta("nvidia-headless-580-open", "nvidia-headless-no-dkms-580-open (= {v}), nvidia-dkms-580-open (= {v})"),
        make.meta("nvidia-driver-580-open", "nvidia-headless-580-open (= {v}), nvidia-utils-580 (= {v})"),
        make.meta("nvidia-open-580", "nvidia-driver-580-open (>= {v})"),
        _pin(driver, f"{driver}-1ubuntu1", driver),
    ]


def _pin(name: str, version: str, pinned: str) -> Package:
    return Package(
        f"nvidia-driver-pinning-{name}",
        version,
        f"pins NVIDIA's driver packages to {pinned}",
        "all",
        "admin",
        "nvidia-driver-pinning",
        {
            "Provides": "nvidia-driver-pinning",
            "Conflicts": "nvidia-driver-pinning",
            "Replaces": "nvidia-driver-pinning",
        },
        (standin("etc/apt/preferences.d/nvidia-driver-pin", "etc/nvidia-driver-pin", VERSION=f"{pinned}*"),),
    )


def _toolkit(series: str, version: str) -> list[Package]:
    """A CUDA toolkit with nothing in it but nvcc, and the metapackages around it."""
    release = series.replace("-", ".")
    major, minor = release.split(".")
    full = f"{version}-1"
    tree = f"usr/local/cuda-{release}"
    values = {"RELEASE": release, "MAJOR": major, "PRIORITY": f"{major}{minor}"}

    def package(name: str, summary: str, depends: str = "", files: tuple[File, ...] = ()) -> Package:
        relations = {"Depends": depends} if depends else {}
        return Package(name, full, summary, "amd64", "multiverse/devel", "cuda", relations, files)

    config = Package(
        f"cuda-toolkit-{series}-config-common",
        full,
        f"common files of CUDA {release}",
        "all",
        "multiverse/devel",
        "cuda",
        {"Depends": "cuda-toolkit-config-common, cuda-toolkit-13-config-common"},
        scripts={
            "postinst": script(text_of("maintainer/alternatives.postinst", **values)),
            "prerm": script(text_of("maintainer/alternatives.prerm", **values)),
        },
    )
    nvcc = program(f"{tree}/bin/nvcc", "nvcc", RELEASE=release, VERSION=f"{version}0")
    manifest = File(f"{tree}/version.json", f'{{\n   "cuda" : {{\n      "version" : "{version}"\n   }}\n}}\n'.encode())
    runtime = f"cuda-drivers (>= {_RUNTIME_DRIVER[series]})"
    return [
        config,
        package(f"cuda-nvcc-{series}", "CUDA compiler, the lab's stand-in", config.name, (nvcc,)),
        package(f"cuda-toolkit-{series}", f"CUDA toolkit {release}", f"cuda-nvcc-{series} (>= {version})", (manifest,)),
        package(f"cuda-runtime-{series}", f"CUDA runtime {release}", runtime),
        package(
            f"cuda-{series}",
            f"CUDA {release} with a driver",
            f"cuda-runtime-{series} (>= {version}), cuda-toolkit-{series} (>= {version})",
        ),
    ]


def _cuda_metas() -> list[Package]:
    newest = list(TOOLKITS)[-1]
    version = TOOLKITS[newest]

    def package(name: str, summary: str, depends: str) -> Package:
        relations = {"Depends": depends} if depends else {}
        return Package(name, f"{version}-1", summary, "all", "multiverse/devel", "cuda", relations)

    return [
        package("cuda-toolkit-config-common", "common files of CUDA", ""),
        package("cuda-toolkit-13-config-common", "common files of CUDA 13", ""),
        package("cuda-toolkit", "the newest CUDA toolkit", f"cuda-toolkit-{newest} (>= {version})"),
        package("cuda-toolkit-13", "the newest CUDA 13 toolkit", f"cuda-toolkit-{newest} (>= {version})"),
        package("cuda", "the newest CUDA with the newest driver", f"cuda-{newest} (>= {version})"),
    ]


def keyring(distro: str, key: Key) -> Package:
    """cuda-keyring as NVIDIA ships it for a distribution: its list names NVIDIA's own server."""
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


def packages(distro: str, key: Key, dkms: Package) -> list[Package]:
    """Everything in the CUDA repository of a distribution. `dkms` is the repository's own."""
    everything = [keyring(distro, key), dkms]
    for driver in BRANCHES[distro]:
        if distro.startswith("debian"):
            everything += _debian_driver(driver)
        elif int(driver.split(".")[0]) < 590:
            everything += _ubuntu_driver_580(driver)
        else:
            everything += _ubuntu_driver(driver)
    suffix = "-1ubuntu1" if distro.startswith("ubuntu") else "-1"
    for branch in sorted({driver.split(".")[0] for driver in BRANCHES[distro]}):
        everything.append(_pin(branch, f"{branch}{suffix}", f"{branch}."))
    for series, version in TOOLKITS.items():
        everything += _toolkit(series, version)
    return everything + _cuda_metas()
