"""NVIDIA's driver packages by distribution and driver version.

Names and dependencies are the real ones; the compute packages install no kernel module.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.mirror import kernel_module
from lab.mirror.debfile import File, Package
from lab.mirror.distributions import Distribution
from lab.mirror.parts import program, script, standin, text_of, unit, unit_scripts

_LIBRARY = "usr/lib/x86_64-linux-gnu/nvidia"
_OPEN, _PROPRIETARY = "Dual MIT/GPL", "NVIDIA"


def packages(distribution: Distribution) -> list[Package]:
    """Return the packages of a distribution's driver versions, and the pins of versions and branches."""
    ubuntu = distribution.family == "ubuntu"
    found: list[Package] = []
    for driver in distribution.drivers:
        branch = int(driver.split(".")[0])
        found += (_debian if not ubuntu else _ubuntu if branch >= 590 else _ubuntu_580)(driver)
    suffix = "-1ubuntu1" if ubuntu else "-1"
    branches = sorted({driver.split(".")[0] for driver in distribution.drivers})
    return found + [_pin(branch, f"{branch}{suffix}", f"{branch}.") for branch in branches]


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
            "daemon that keeps the NVIDIA driver initialized, the lab's stand-in",
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
            "utility that loads NVIDIA's kernel modules and creates device nodes, the lab's stand-in",
            "python3",
            source="nvidia-modprobe",
            files=(program("usr/bin/nvidia-modprobe", "nvidia_modprobe.py"),),
        )

    def dkms(self, name: str, license: str, depends: str, provides: str, conflicts: str = "") -> Package:
        source = f"usr/src/nvidia-{self.driver}"
        return self.package(
            name,
            f"NVIDIA kernel modules (DKMS, license {license}), the lab's stand-in",
            # Drivers from 570.148.08 on need a newer dkms than bookworm's 3.0.10.
            "dkms (>= 3.1.8), python3",
            depends,
            source="nvidia-kmod-open" if license == _OPEN else "nvidia-kmod",
            files=(
                standin(f"{source}/dkms.conf", "etc/dkms.conf", LICENSE=license, VERSION=self.driver),
                standin(f"{source}/build_modules.py", "build_modules.py"),
                File(f"{source}/kernel_module.py", Path(kernel_module.__file__).read_bytes()),
            ),
            scripts={
                name: script(text_of(f"maintainer/modules.{name}", VERSION=self.driver))
                for name in ("postinst", "prerm")
            },
            relations={"Provides": provides, "Conflicts": ", ".join(filter(None, (conflicts, provides)))},
        )

    def kernel_common(self, name: str, modprobe: str, conf: str = "nvidia-graphics-drivers.conf") -> Package:
        blacklist = standin(f"usr/lib/modprobe.d/{conf}", "etc/nvidia-blacklists-nouveau.conf")
        return self.package(name, "NVIDIA driver, files for the kernel modules", modprobe, files=(blacklist,))

    def meta(self, name: str, *depends: str, source: str = "nvidia-open") -> Package:
        return self.package(name, "NVIDIA driver metapackage", *depends, source=source, architecture="all")


def _debian(driver: str) -> list[Package]:
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
        make.kernel_common("nvidia-kernel-support", "nvidia-modprobe (>= {v})", conf="nvidia-blacklists-nouveau.conf"),
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
        *(
            make.dkms(
                name,
                license,
                "nvidia-kernel-support (= {v}), firmware-nvidia-gsp (= {v})",
                provides="nvidia-kernel",
                conflicts=f"{other}, nvidia-open-kernel-dkms",
            )
            for name, license, other in (
                ("nvidia-kernel-open-dkms", _OPEN, "nvidia-kernel-dkms"),
                ("nvidia-kernel-dkms", _PROPRIETARY, "nvidia-kernel-open-dkms"),
            )
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


def _ubuntu(driver: str) -> list[Package]:
    """Return the packages for Ubuntu from 590 on: no version in the names."""
    make = _Maker(driver, "1ubuntu1")
    smi = program("usr/bin/nvidia-smi", "nvidia_smi.py")
    return [
        make.package(
            "libnvidia-compute", "NVIDIA compute libraries", "libnvidia-cfg1 (= {v})", files=(make.library(),)
        ),
        make.package("libnvidia-cfg1", "NVIDIA configuration library"),
        make.package("nvidia-firmware", "firmware of the GPUs' system processor"),
        make.kernel_common("nvidia-kernel-common", "nvidia-modprobe (>= {v})"),
        make.package(
            "nvidia-utils", "NVIDIA driver support binaries", "python3, libnvidia-compute (= {v})", files=(smi,)
        ),
        *(
            make.dkms(
                name,
                license,
                "nvidia-kernel-common (= {v}), nvidia-firmware (= {v})",
                provides="nvidia-dkms-kernel",
                conflicts=other,
            )
            for name, license, other in (
                ("nvidia-dkms-open", _OPEN, "nvidia-dkms"),
                ("nvidia-dkms", _PROPRIETARY, "nvidia-dkms-open"),
            )
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


def _ubuntu_580(driver: str) -> list[Package]:
    """Return the packages for Ubuntu before 590: the branch is in the names."""
    make = _Maker(driver, "1ubuntu1")
    smi = program("usr/bin/nvidia-smi", "nvidia_smi.py")
    firmware = f"nvidia-firmware-580-{driver}"
    return [
        make.package("libnvidia-compute-580", "NVIDIA compute libraries", files=(make.library(),)),
        make.package(
            "nvidia-utils-580", "NVIDIA driver support binaries", "python3, libnvidia-compute-580 (= {v})", files=(smi,)
        ),
        make.package(firmware, "firmware of the GPUs' system processor"),
        make.kernel_common("nvidia-kernel-common-580", "nvidia-modprobe"),
        make.dkms(
            "nvidia-dkms-580-open",
            _OPEN,
            f"nvidia-kernel-common-580 (= {{v}}), {firmware} (= {{v}})",
            provides="nvidia-dkms-kernel",
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
        dict.fromkeys(("Provides", "Conflicts", "Replaces"), "nvidia-driver-pinning"),
        (standin("etc/apt/preferences.d/nvidia-driver-pin", "etc/nvidia-driver-pin", VERSION=f"{pinned}*"),),
    )
