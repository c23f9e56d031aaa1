"""NVIDIA's container toolkit repository: four packages, always of one version."""

from collections.abc import Mapping

from lab.mirror.debfile import File, Package
from lab.mirror.parts import program, standin, unit, unit_scripts

URL = "https://nvidia.github.io/libnvidia-container/stable/deb"
VERSIONS = ("1.17.8", "1.19.1", "1.20.1")
_SHARED = "usr/lib/lab-standins"


def packages() -> list[Package]:
    """Return the packages of all versions."""
    return [package for version in VERSIONS for package in _packages(version)]


def _packages(version: str) -> list[Package]:
    same = f"(= {version}-1)"

    def package(
        name: str, summary: str, depends: str, *files: File, scripts: Mapping[str, str] | None = None
    ) -> Package:
        relations = {"Depends": depends}
        return Package(name, f"{version}-1", summary, "amd64", "utils", "", relations, files, scripts or {})

    refresh = ["nvidia-cdi-refresh.path", "nvidia-cdi-refresh.service"]
    if tuple(map(int, version.split("."))) < (1, 18):
        refresh = []
    base = [
        program("usr/bin/nvidia-ctk", "nvidia_ctk.py"),
        program("usr/bin/nvidia-container-runtime", "nvidia_container_runtime.py"),
        standin(f"{_SHARED}/lab_gpu.py", "lab_gpu.py"),
        program("usr/lib/systemd/system-generators/lab-device-cgroup", "device_cgroup_generator"),
        File(f"{_SHARED}/toolkit-version", f"{version}\n".encode()),
        standin("etc/nvidia-container-runtime/config.toml", "etc/config.toml"),
        *(unit(name) for name in refresh),
    ]
    if refresh:
        base.append(standin("etc/nvidia-container-toolkit/nvidia-cdi-refresh.env", "etc/nvidia-cdi-refresh.env"))
    library = File("usr/lib/x86_64-linux-gnu/nvidia/libnvidia-container.so.1", b"the lab's libnvidia-container\n")
    return [
        package(
            "nvidia-container-toolkit-base",
            "NVIDIA container toolkit, base, the lab's stand-in",
            "python3",
            *base,
            scripts=unit_scripts(refresh) if refresh else None,
        ),
        package(
            "nvidia-container-toolkit",
            "NVIDIA container toolkit, the lab's stand-in",
            f"nvidia-container-toolkit-base {same}, libnvidia-container-tools {same}, util-linux",
            program("usr/bin/nvidia-container-runtime-hook", "nvidia_container_runtime_hook.py"),
            File("usr/bin/nvidia-container-toolkit", link="nvidia-container-runtime-hook"),
        ),
        package(
            "libnvidia-container-tools",
            "NVIDIA container runtime library (command-line tools), the lab's stand-in",
            f"libnvidia-container1 {same}, nvidia-container-toolkit-base {same}",
        ),
        package("libnvidia-container1", "NVIDIA container runtime library", "", library),
    ]


def list_file() -> str:
    """Return nvidia-container-toolkit.list as NVIDIA publishes it; users add `signed-by` themselves."""
    return f"deb {URL}/$(ARCH) /\n#deb {URL.replace('stable', 'experimental')}/$(ARCH) /\n"
