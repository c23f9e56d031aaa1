"""The lab's kernel packages: what Debian's `linux-image-*` and `linux-headers-*` install on a host, without a kernel.

Lab hosts run on the kernel of the machine below, so no Debian package matches `uname -r`. These do: names, file layout,
dependencies and maintainer scripts are those of Debian's kernel packages; the files' content is a stand-in.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from lab.mirror import debfile
from lab.mirror.debfile import File, Package
from lab.mirror.kernel_module import module_image
from lab.mirror.parts import text_of
from lab.settings import KVER

_CONFIG = b"""\
# Linux kernel configuration of the lab's stand-in: the options that initramfs-tools and DKMS read
CONFIG_MODULES=y
CONFIG_MODULE_UNLOAD=y
CONFIG_BLK_DEV_INITRD=y
CONFIG_RD_GZIP=y
CONFIG_RD_XZ=y
CONFIG_RD_ZSTD=y
CONFIG_TMPFS=y
CONFIG_DEVTMPFS=y
"""
# Path below kernel/, and the fields that depmod and modinfo read.
_MODULES = {
    "drivers/gpu/drm/nouveau/nouveau": (("alias", "pci:v000010DEd*sv*sd*bc03sc*i*"), ("parm", "modeset:int")),
    "drivers/gpu/drm/ast/ast": (("alias", "pci:v00001A03d00002000sv*sd*bc03sc*i*"),),
    "drivers/net/ethernet/intel/ixgbe/ixgbe": (("alias", "pci:v00008086d00001563sv*sd*bc*sc*i*"),),
}


def package_name(prefix: str, kver: str) -> str:
    """Return the name of a kernel package, such as `linux-image-6.18.44`: lower case, no `_`, as Debian requires."""
    return f"{prefix}-{kver.lower().replace('_', '-')}"


def package_version(kver: str = KVER) -> str:
    """Return the version of the packages in Debian's form, for example 6.18.44-1 for any 6.18.44 kernel."""
    match = re.match(r"\d+\.\d+(\.\d+)?", kver)
    return f"{match[0] if match else '0'}-1"


def _module(name: str, kver: str, own: Iterable[tuple[str, str]]) -> bytes:
    head = [("license", "GPL"), ("description", "stand-in of the lab")]
    vermagic = ("vermagic", f"{kver} SMP preempt mod_unload ")
    return module_image([*head, *own, ("depends", ""), ("intree", "Y"), ("name", name), vermagic])


def module_files(kver: str) -> tuple[File, ...]:
    """Return the files of a kernel's modules."""
    tree = f"lib/modules/{kver}"
    modules = [
        File(f"{tree}/kernel/{path}.ko", _module(path.rsplit("/", 1)[1], kver, own)) for path, own in _MODULES.items()
    ]
    return (
        *modules,
        File(f"{tree}/modules.order", "".join(f"kernel/{path}.o\n" for path in _MODULES).encode()),
        File(f"{tree}/modules.builtin", b"kernel/fs/ext4/ext4.ko\nkernel/fs/overlayfs/overlay.ko\n"),
        File(f"{tree}/modules.builtin.modinfo", b"ext4.license=GPL\0overlay.license=GPL\0"),
    )


def boot_files(kver: str) -> tuple[File, ...]:
    """Return the files of a kernel in /boot."""
    return (
        File(f"boot/vmlinuz-{kver}", f"the lab's stand-in for a kernel image, {kver}\n".encode()),
        File(f"boot/System.map-{kver}", b"ffffffff81000000 T _text\n"),
        File(f"boot/config-{kver}", _CONFIG),
    )


def headers_files(kver: str) -> tuple[File, ...]:
    """Return the build directory of a kernel."""
    source = f"usr/src/linux-headers-{kver}"
    makefile = f"# Kernel build directory of the lab's stand-in\nKERNELRELEASE = {kver}\n"
    return (
        File(f"{source}/Makefile", makefile.encode()),
        File(f"{source}/.config", _CONFIG),
        File(f"{source}/Module.symvers"),
        File(f"{source}/include/config/kernel.release", f"{kver}\n".encode()),
        File(f"{source}/include/generated/utsrelease.h", f'#define UTS_RELEASE "{kver}"\n'.encode()),
        File(f"lib/modules/{kver}/build", link=f"/{source}"),
        File(f"lib/modules/{kver}/source", link=f"/{source}"),
    )


def scripts(kind: str, kver: str) -> dict[str, str]:
    """Return the maintainer scripts of `linux-image` or `linux-headers`."""
    names = {"linux-image": ("postinst", "postrm", "prerm"), "linux-headers": ("postinst",)}[kind]
    return {name: text_of(f"maintainer/{kind}.{name}", KVER=kver) for name in names}


def packages(kver: str = KVER) -> list[Package]:
    """Return the image and headers packages of a kernel release, each with its metapackage."""
    version = package_version(kver)

    def package(name: str, summary: str, depends: str, files: tuple[File, ...] = (), kind: str = "") -> Package:
        text = f"{summary}, the lab's stand-in"
        filled = scripts(kind, kver) if kind else {}
        return Package(name, version, text, "amd64", "kernel", "linux", {"Depends": depends}, files, filled)

    image, headers = package_name("linux-image", kver), package_name("linux-headers", kver)
    needed = "kmod, linux-base, initramfs-tools"
    return [
        package(image, f"Linux {kver}", needed, (*module_files(kver), *boot_files(kver)), "linux-image"),
        package("linux-image-amd64", "Linux for 64-bit PCs (meta-package)", f"{image} (= {version})"),
        package(headers, f"Header files for Linux {kver}", "", headers_files(kver), "linux-headers"),
        package("linux-headers-amd64", "Header files for Linux amd64 (meta-package)", f"{headers} (= {version})"),
    ]


def build(directory: Path, kver: str = KVER) -> list[Path]:
    """Write the kernel packages into a directory, the same bytes every time; return their paths."""
    return [debfile.write(package, directory) for package in packages(kver)]
