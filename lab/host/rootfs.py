"""The disk of a bare lab host: a minimal Debian like a cloud image, cached as a tar whose name is a hash of its inputs.

As a program this is mmdebstrap's hook, which turns the fresh installation into the lab's.
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

from lab.locking import exclusive
from lab.mirror import kernel, ubuntu
from lab.mirror.distributions import RELEASES
from lab.settings import CACHE, MIRROR_URL

GUEST = Path(__file__).parent / "guest"

PACKAGES = (
    "ca-certificates dbus grub2-common initramfs-tools iproute2 iputils-ping kmod libpam-systemd linux-base netbase "
    "openssh-server procps sudo systemd systemd-sysv udev"
)
# What Ubuntu's server images have in addition, as far as rigup can meet it.
_UBUNTU_PACKAGES = "apparmor curl iptables lsb-release needrestart python3 unattended-upgrades wget"

# Files copied unchanged: name in guest/, path on the host, mode. Those of one release are in guest/RELEASE/ by path.
_FILES = (
    ("lab-hardware", "usr/lib/lab/lab-hardware", 0o755),
    ("settle-sysctl", "usr/lib/lab/settle-sysctl", 0o755),
    ("sysctl-keys", "usr/lib/lab/sysctl-keys", 0o644),
    ("lab-hardware.service", "usr/lib/systemd/system/lab-hardware.service", 0o644),
    ("systemd-sysctl.conf", "usr/lib/systemd/system/systemd-sysctl.service.d/lab.conf", 0o644),
    ("systemd-modules-load.conf", "usr/lib/systemd/system/systemd-modules-load.service.d/lab.conf", 0o644),
    ("dpkg.cfg", "etc/dpkg/dpkg.cfg.d/lab", 0o644),
    ("locale", "etc/default/locale", 0o644),
)
_DEBIAN_FILES = (("grub", "etc/default/grub", 0o644), ("sudoers", "etc/sudoers.d/90-ops", 0o440))

# Programs that cannot work on a lab host; a diversion keeps the stand-in when its package is upgraded. The program
# itself is then below _REAL.
_DIVERTED = (("grub-mkconfig", "grub-common"), ("lsmod", "kmod"))
_REAL = "/usr/lib/lab/real"

# How many checkouts with different disks can share a cache.
_KEPT_DISKS = 3

# They would change a host's files at any time.
_TIMERS = ("apt-daily", "apt-daily-upgrade", "dpkg-db-backup", "e2scrub_all", "fstrim")


def _guest_files(release: str) -> list[Path]:
    """Return the guest's files: those of all releases, and those of one."""
    return [path for path in sorted([*GUEST.iterdir(), *(GUEST / release).rglob("*")]) if path.is_file()]


def recipe(release: str, debs: list[Path]) -> str:
    """Return the hash that names the cached disk: it covers this file, the guest's files and the lab's packages."""
    digest = hashlib.sha256(release.encode())
    for path in [Path(__file__), *_guest_files(release), *sorted(debs)]:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _own_packages(release: str, directory: Path) -> list[Path]:
    """Build the lab's packages that a bare host has: its kernel, and on Ubuntu what Debian cannot provide."""
    if RELEASES[release].family == "ubuntu":
        return ubuntu.build(directory)
    return kernel.build(directory)


def archive(release: str) -> Path:
    """Return where the disk of a release is cached, whether it exists or not."""
    debs = _own_packages(release, CACHE / "kernel-packages")
    return CACHE / "rootfs" / f"{release}-{recipe(release, debs)}.tar"


def build(release: str, say: Callable[[str], None]) -> Path:
    """Return the tar of the bare disk of a release; build it if the cache lacks it (some 40 s).

    Raises CalledProcessError when a tool fails; its output is then in the log next to the tar.
    """
    tar = archive(release)
    with exclusive(tar.parent / f"{release}.lock"):
        if tar.exists():
            return tar
        say(f"building the bare {release} disk with mmdebstrap (once; log: {tar.with_suffix('.log')})")
        beside = tar.with_suffix(".new.tar")
        with tar.with_suffix(".log").open("wb") as log:
            subprocess.run(_mmdebstrap(release, beside), check=True, stdout=log, stderr=log, env=_environment())
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
    package = str(Path(__file__).parents[2])
    keep = {
        key: os.environ[key] for key in ("RIGUP_LAB_CACHE", "RIGUP_LAB_STATE", "HOME", "TMPDIR") if key in os.environ
    }
    return keep | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": package}


def _mmdebstrap(release: str, tar: Path) -> list[str]:
    hook = shlex.join([sys.executable, "-m", "lab.host.rootfs"])
    base, ubuntu_too = RELEASES[release].base, RELEASES[release].family == "ubuntu"
    return [
        "mmdebstrap",
        "--variant=minbase",
        f"--include={PACKAGES}",
        *([f"--include={_UBUNTU_PACKAGES}"] if ubuntu_too else []),
        f'--customize-hook={hook} "$1" {release}',
        base,
        str(tar),
        f"deb {MIRROR_URL}/debian {base} main",
        f"deb {MIRROR_URL}/debian {base}-updates main",
        f"deb {MIRROR_URL}/debian-security {base}-security main",
    ]


def _kernel_preferences() -> str:
    # Debian's metapackages of the same name depend on a kernel that a lab host does not run.
    names = "linux-image-amd64 linux-headers-amd64"
    return f"Package: {names}\nPin: version {kernel.package_version()}\nPin-Priority: 1001\n"


def customize(root: Path, release: str) -> None:
    """Turn a fresh minimal Debian under `root` into the disk of a bare lab host with that release.

    Raises CalledProcessError when a program inside fails.
    """

    def inside(*argv: str) -> None:
        subprocess.run(["chroot", str(root), *argv], check=True)

    def divert(where: str) -> None:
        (root / f"{_REAL}{where}".lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        inside("dpkg-divert", "--local", "--rename", "--divert", f"{_REAL}{where}", "--add", where)

    distribution = RELEASES[release]
    debian = distribution.family == "debian"
    for name, where, mode in (*_FILES, *(_DEBIAN_FILES if debian else ())):
        place(root / where, (GUEST / name).read_text(), mode)
    for name, package in _DIVERTED:
        # dpkg-divert wants the path in the package, /sbin/lsmod or /usr/sbin/lsmod.
        for where in (root / f"var/lib/dpkg/info/{package}.list").read_text().splitlines():
            if where.endswith(f"bin/{name}"):
                divert(where)
                place(root / where.lstrip("/"), (GUEST / name).read_text(), 0o755)
    (root / "usr/lib/lab-hardware").mkdir()
    (root / "etc/apt/sources.list").unlink(missing_ok=True)
    if debian:
        place(root / "etc/apt/preferences.d/lab-kernel", _kernel_preferences())
    else:
        _dress(root, release, divert)
        # It starts the server at the first connection.
        inside("systemctl", "disable", "ssh.service")
        inside("systemctl", "enable", "ssh.socket")
    inside("useradd", "--create-home", "--shell", "/bin/bash", "--groups", "sudo", distribution.logins[0])
    inside("systemctl", "enable", "lab-hardware.service")
    inside("systemctl", "disable", *[f"{timer}.timer" for timer in _TIMERS if _has_unit(root, f"{timer}.timer")])
    _install_packages(root, release)
    inside("update-grub")
    for stale in ("etc/hostname", "etc/resolv.conf"):
        (root / stale).unlink(missing_ok=True)
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()


def _dress(root: Path, release: str, divert: Callable[[str], None]) -> None:
    """Write the files of one release to the disk, in place of Debian's."""
    owned = {
        line for listing in (root / "var/lib/dpkg/info").glob("*.list") for line in listing.read_text().split("\n")
    }
    for file in _guest_files(release):
        if not file.is_relative_to(GUEST / release):
            continue
        where = file.relative_to(GUEST / release)
        if f"/{where}" in owned:
            divert(f"/{where}")
        mode = 0o755 if os.access(file, os.X_OK) else 0o440 if "sudoers.d" in where.parts else 0o644
        place(root / where, file.read_text(), mode)
    default = root / "etc/dpkg/origins/default"
    default.unlink()
    default.symlink_to(RELEASES[release].family)


def _install_packages(root: Path, release: str) -> None:
    with tempfile.TemporaryDirectory(dir=root / "root") as scratch:
        debs = [deb for deb in _own_packages(release, Path(scratch)) if "linux-headers-" not in deb.name]
        names = [f"/root/{Path(scratch).name}/{deb.name}" for deb in debs]
        subprocess.run(["chroot", str(root), "dpkg", "--install", *names], check=True)


def _has_unit(root: Path, unit: str) -> bool:
    return any((root / directory / unit).exists() for directory in ("usr/lib/systemd/system", "lib/systemd/system"))


def place(path: Path, content: str, mode: int = 0o644) -> None:
    """Write a file of a host's disk, in place of whatever is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.touch(mode=mode)
    path.write_text(content)
    path.chmod(mode)


def extract(tar: Path, root: Path) -> None:
    """Unpack a disk into `root`, which must not exist; a failure leaves nothing behind."""
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
    customize(Path(sys.argv[1]), sys.argv[2])
