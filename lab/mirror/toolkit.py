"""What NVIDIA's container toolkit repository holds: four packages, always of one version."""

from lab.mirror.debfile import File, Package
from lab.mirror.parts import program, standin, unit, unit_scripts

URL = "https://nvidia.github.io/libnvidia-container/stable/deb"
VERSIONS = ("1.17.8", "1.19.1", "1.20.1")
_SHARED = "usr/lib/lab-standins"


def _base(version: str) -> Package:
    files = [
        program("usr/bin/nvidia-ctk", "nvidia_ctk.py"),
        program("usr/bin/nvidia-container-runtime", "nvidia_container_runtime.py"),
        standin(f"{_SHARED}/lab_gpu.py", "lab_gpu.py"),
        program("usr/lib/systemd/system-generators/lab-device-cgroup", "device_cgroup_generator"),
        File(f"{_SHARED}/toolkit-version", f"{version}\n".encode()),
        standin("etc/nvidia-container-runtime/config.toml", "etc/config.toml"),
    ]
    scripts: dict[str, str] = {}
    if tuple(map(int, version.split("."))) >= (1, 18):
        units = ["nvidia-cdi-refresh.path", "nvidia-cdi-refresh.service"]
        files += [unit(name) for name in units]
        files.append(standin("etc/nvidia-container-toolkit/nvidia-cdi-refresh.env", "etc/nvidia-cdi-refresh.env"))
        scripts = unit_scripts(units)
    summary = "NVIDIA container toolkit, base, the lab's stand-in"
    return _package("nvidia-container-toolkit-base", version, summary, "python3", tuple(files), scripts)


def _package(
    name: str,
    version: str,
    summary: str,
    depends: str,
    files: tuple[File, ...] = (),
    scripts: dict[str, str] | None = None,
) -> Package:
    relations = {"Depends": depends.replace("{v}", f"{version}-1")} if depends else {}
    return Package(name, f"{version}-1", summary, "amd64", "utils", "", relations, files, scripts or {})


def _packages(version: str) -> list[Package]:
    hook = program("usr/bin/nvidia-container-runtime-hook", "nvidia_container_runtime_hook.py")
    old_name = File("usr/bin/nvidia-container-toolkit", link="nvidia-container-runtime-hook")
    cli = program("usr/bin/nvidia-container-cli", "nvidia_container_cli.py")
    library = File("usr/lib/x86_64-linux-gnu/nvidia/libnvidia-container.so.1", b"the lab's libnvidia-container\n")
    return [
        _base(version),
        _package(
            "nvidia-container-toolkit",
            version,
            "NVIDIA container toolkit, the lab's stand-in",
            "nvidia-container-toolkit-base (= {v}), libnvidia-container-tools (= {v}), util-linux",
            (hook, old_name),
        ),
        _package(
            "libnvidia-container-tools",
            version,
            "NVIDIA container runtime library (command-line tools), the lab's stand-in",
            "libnvidia-container1 (= {v}), nvidia-container-toolkit-base (= {v})",
            (cli,),
        ),
        _package("libnvidia-container1", version, "NVIDIA container runtime library", "", (library,)),
    ]


def packages() -> list[Package]:
    """All packages of all versions."""
    return [package for version in VERSIONS for package in _packages(version)]


def list_file() -> str:
    """nvidia-container-toolkit.list as NVIDIA publishes it; users add `signed-by` themselves."""
    return f"deb {URL}/$(ARCH) /\n#deb {URL.replace('stable', 'experimental')}/$(ARCH) /\n"
