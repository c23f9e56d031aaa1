"""The disk of a bare lab host: a minimal Debian as a cloud image brings it, kept as a tar named by its recipe.

Run as a program it is mmdebstrap's hook, which turns the fresh installation into the lab's.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from lab import kernel_packages
from lab.locking import exclusive
from lab.settings import CACHE, MIRROR_URL

GUEST = Path(__file__).parent / "guest"

PACKAGES = (
    "ca-certificates",
    "dbus",
    "grub2-common",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "kmod",
    "libpam-systemd",
    "linux-base",
    "netbase",
    "openssh-server",
    "procps",
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
)

# Files placed as they are: name in lab/guest, place on the host, mode.
_FILES = (
    ("lab-hardware", "usr/lib/lab/lab-hardware", 0o755),
    ("settle-sysctl", "usr/lib/lab/settle-sysctl", 0o755),
    ("sysctl-keys", "usr/lib/lab/sysctl-keys", 0o644),
    ("lab-hardware.service", "usr/lib/systemd/system/lab-hardware.service", 0o644),
    ("systemd-sysctl.conf", "usr/lib/systemd/system/systemd-sysctl.service.d/lab.conf", 0o644),
    ("systemd-modules-load.conf", "usr/lib/systemd/system/systemd-modules-load.service.d/lab.conf", 0o644),
    ("grub", "etc/default/grub", 0o644),
    ("dpkg.cfg", "etc/dpkg/dpkg.cfg.d/lab", 0o644),
    ("sudoers", "etc/sudoers.d/90-ops", 0o440),
    ("locale", "etc/default/locale", 0o644),
)

# Programs that cannot do their work on a lab host; a diversion keeps the stand-in when its package is upgraded.
_DIVERTED = (("grub-mkconfig", "grub-common"), ("lsmod", "kmod"))

# So many checkouts with different recipes can share a cache.
_KEPT_DISKS = 3

# They would change a host's files at a time of their own choosing.
_TIMERS = ("apt-daily", "apt-daily-upgrade", "dpkg-db-backup", "e2scrub_all", "fstrim")


def recipe(release: str, kernel_debs: list[Path]) -> str:
    """What names the cached disk: changes with this file, the files of the guest and the kernel packages."""
    digest = hashlib.sha256(release.encode())
    for path in [Path(__file__), *sorted(GUEST.iterdir()), *sorted(kernel_debs)]:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def archive(release: str) -> Path:
    """Where the disk of a release is cached, whether it is there or not."""
    kernel_debs = kernel_packages.build(CACHE / "kernel-packages")
    return CACHE / "rootfs" / f"{release}-{recipe(release, kernel_debs)}.tar"


def build(release: str, say: Callable[[str], None], debian: str = MIRROR_URL) -> Path:
    """The tar of the bare disk of a release, made when it is not in the cache (some 40 s).

    `debian` is the base under which /debian and /debian-security are. Raises CalledProcessError when a tool fails; its
    output is in the log beside the cache then.
    """
    tar = archive(release)
    with exclusive(tar.parent / f"{release}.lock"):
        if tar.exists():
            return tar
        say(f"building the bare {release} disk with mmdebstrap (once; log: {tar.with_suffix('.log')})")
        beside = tar.with_suffix(".new.tar")
        with tar.with_suffix(".log").open("wb") as log:
            subprocess.run(_mmdebstrap(release, beside, debian), check=True, stdout=log, stderr=log, env=_environment())
        beside.replace(tar)
        _forget_old(tar)
    return tar


def _forget_old(tar: Path) -> None:
    release = tar.name.partition("-")[0]
    by_age = sorted(tar.parent.glob(f"{release}-*.tar"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in by_age[_KEPT_DISKS:]:
        old.unlink()
        old.with_suffix(".log").unlink(missing_ok=True)


def _environment() -> dict[str, str]:
    # The hook runs under this interpreter and must find this package.
    package = str(Path(__file__).parent.parent)
    keep = {
        key: os.environ[key] for key in ("RIGUP_LAB_CACHE", "RIGUP_LAB_STATE", "HOME", "TMPDIR") if key in os.environ
    }
    return keep | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": package}


def _mmdebstrap(release: str, tar: Path, debian: str) -> list[str]:
    hook = shlex.join([sys.executable, "-m", "lab.rootfs"])
    return [
        "mmdebstrap",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        f'--customize-hook={hook} "$1"',
        release,
        str(tar),
        f"deb {debian}/debian {release} main",
        f"deb {debian}/debian {release}-updates main",
        f"deb {debian}/debian-security {release}-security main",
    ]


def _sources(release: str) -> str:
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    stanzas = (
        (f"{MIRROR_URL}/debian", f"{release} {release}-updates"),
        (f"{MIRROR_URL}/debian-security", f"{release}-security"),
    )
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {keyring}\n"
        for uri, suites in stanzas
    )


def name_mirror(root: Path) -> None:
    """Write the apt sources of the disk under `root`: this lab's mirror, which the cached disk does not know."""
    directory = root / "etc/apt/sources.list.d"
    (directory / "debian.sources").write_text(_sources(_codename(root)))
    (directory / "lab-kernel.sources").write_text(f"Types: deb\nURIs: {MIRROR_URL}/kernel\nSuites: ./\nTrusted: yes\n")


def _kernel_preferences() -> str:
    # Debian's own metapackages of the same name lead to a kernel that a lab host does not run.
    names = "linux-image-amd64 linux-headers-amd64"
    return f"Package: {names}\nPin: version {kernel_packages.package_version()}\nPin-Priority: 1001\n"


def customise(root: Path) -> None:
    """Turn a fresh minimal Debian under `root` into the disk of a bare lab host.

    Raises CalledProcessError when a program inside fails.
    """

    def inside(*argv: str) -> None:
        subprocess.run(["chroot", str(root), *argv], check=True)

    def place(name: str, content: str, mode: int = 0o644) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(mode)

    for name, where, mode in _FILES:
        place(where, (GUEST / name).read_text(), mode)
    for name, package in _DIVERTED:
        # dpkg goes by the path in the package, /sbin/lsmod or /usr/sbin/lsmod.
        for where in (root / f"var/lib/dpkg/info/{package}.list").read_text().splitlines():
            if where.endswith(f"bin/{name}"):
                inside("dpkg-divert", "--local", "--rename", "--divert", f"{where}.real", "--add", where)
                place(where.lstrip("/"), (GUEST / name).read_text(), 0o755)
    (root / "usr/lib/lab-hardware").mkdir()
    (root / "etc/apt/sources.list").unlink(missing_ok=True)
    place("etc/apt/preferences.d/lab-kernel", _kernel_preferences())
    inside("useradd", "--create-home", "--shell", "/bin/bash", "--groups", "sudo", "ops")
    inside("systemctl", "enable", "lab-hardware.service")
    inside("systemctl", "disable", *[f"{timer}.timer" for timer in _TIMERS if _has_unit(root, f"{timer}.timer")])
    _install_kernel(root)
    inside("update-grub")
    for stale in ("etc/hostname", "etc/resolv.conf"):
        (root / stale).unlink(missing_ok=True)
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()


def _install_kernel(root: Path) -> None:
    with tempfile.TemporaryDirectory(dir=root / "root") as scratch:
        debs = [deb for deb in kernel_packages.build(Path(scratch)) if deb.name.startswith("linux-image-")]
        names = [f"/root/{Path(scratch).name}/{deb.name}" for deb in debs]
        subprocess.run(["chroot", str(root), "dpkg", "--install", *names], check=True)


def _codename(root: Path) -> str:
    for line in (root / "etc/os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    raise ValueError(f"{root}/etc/os-release names no VERSION_CODENAME")


def _has_unit(root: Path, unit: str) -> bool:
    return any((root / directory / unit).exists() for directory in ("usr/lib/systemd/system", "lib/systemd/system"))


def extract(tar: Path, root: Path) -> None:
    """Unpack a disk into `root`, which must not exist; on failure nothing is left of it."""
    root.mkdir(mode=0o755)
    try:
        subprocess.run(
            ["tar", "--extract", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", str(root), "-f", str(tar)],
            check=True,
        )
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise


if __name__ == "__main__":
    customise(Path(sys.argv[1]))
