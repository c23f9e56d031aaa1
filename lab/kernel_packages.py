"""The lab's kernel packages: what Debian's `linux-image-*` and `linux-headers-*` leave on a host, without a kernel.

Lab hosts run on the kernel of the machine below, so no Debian package matches `uname -r`. These do: names, file layout,
dependencies and maintainer scripts are those of Debian's kernel packages; what is inside the files is a stand-in.
"""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab.kernel_module import module_image
from lab.settings import KVER

SCRIPTS = Path(__file__).parent / "kernel_scripts"
"""Maintainer scripts; @KVER@ stands for the kernel's release."""

_CONFIG = """\
# Linux kernel configuration of the lab's stand-in: what initramfs-tools and DKMS look at
CONFIG_MODULES=y
CONFIG_MODULE_UNLOAD=y
CONFIG_BLK_DEV_INITRD=y
CONFIG_RD_GZIP=y
CONFIG_RD_XZ=y
CONFIG_RD_ZSTD=y
CONFIG_TMPFS=y
CONFIG_DEVTMPFS=y
"""


@dataclass(frozen=True)
class _Package:
    name: str
    version: str
    section: str
    summary: str
    depends: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    scripts: tuple[str, ...] = ()
    script_source: str = ""


def package_name(prefix: str, kver: str = KVER) -> str:
    """The name of a kernel package, for example `linux-image-6.18.44`: lower case and without `_`, as Debian wants."""
    return f"{prefix}-{kver.lower().replace('_', '-')}"


def package_version(kver: str = KVER) -> str:
    """The version of the packages in Debian's form, for example 6.18.44-1 for any 6.18.44 kernel."""
    match = re.match(r"\d+\.\d+(\.\d+)?", kver)
    return f"{match[0] if match else '0'}-1"


def _module(name: str, kver: str, *more: tuple[str, str]) -> bytes:
    return module_image(
        [
            ("license", "GPL"),
            ("description", "stand-in of the lab"),
            *more,
            ("depends", ""),
            ("intree", "Y"),
            ("name", name),
            ("vermagic", f"{kver} SMP preempt mod_unload "),
        ]
    )


def _image(kver: str) -> _Package:
    modules = {
        "drivers/gpu/drm/nouveau/nouveau": (("alias", "pci:v000010DEd*sv*sd*bc03sc*i*"), ("parm", "modeset:int")),
        "drivers/gpu/drm/ast/ast": (("alias", "pci:v00001A03d00002000sv*sd*bc03sc*i*"),),
        "drivers/net/ethernet/intel/ixgbe/ixgbe": (("alias", "pci:v00008086d00001563sv*sd*bc*sc*i*"),),
    }
    tree = f"lib/modules/{kver}"
    files = {f"{tree}/kernel/{path}.ko": _module(path.rsplit("/", 1)[1], kver, *more) for path, more in modules.items()}
    files[f"{tree}/modules.order"] = "".join(f"kernel/{path}.o\n" for path in modules).encode()
    files[f"{tree}/modules.builtin"] = b"kernel/fs/ext4/ext4.ko\nkernel/fs/overlayfs/overlay.ko\n"
    files[f"{tree}/modules.builtin.modinfo"] = b"ext4.license=GPL\0overlay.license=GPL\0"
    files[f"boot/vmlinuz-{kver}"] = f"the lab's stand-in for a kernel image, {kver}\n".encode()
    files[f"boot/System.map-{kver}"] = b"ffffffff81000000 T _text\n"
    files[f"boot/config-{kver}"] = _CONFIG.encode()
    return _Package(
        package_name("linux-image", kver),
        package_version(kver),
        "kernel",
        f"Linux {kver}, the lab's stand-in",
        depends="kmod, linux-base, initramfs-tools",
        files=files,
        scripts=("postinst", "postrm", "prerm"),
        script_source="image",
    )


def _headers(kver: str) -> _Package:
    source = f"usr/src/linux-headers-{kver}"
    makefile = f"# Kernel build directory of the lab's stand-in\nKERNELRELEASE = {kver}\n"
    release = f'#define UTS_RELEASE "{kver}"\n'
    return _Package(
        package_name("linux-headers", kver),
        package_version(kver),
        "kernel",
        f"Header files for Linux {kver}, the lab's stand-in",
        files={
            f"{source}/Makefile": makefile.encode(),
            f"{source}/.config": _CONFIG.encode(),
            f"{source}/Module.symvers": b"",
            f"{source}/include/config/kernel.release": f"{kver}\n".encode(),
            f"{source}/include/generated/utsrelease.h": release.encode(),
        },
        links={f"lib/modules/{kver}/build": f"/{source}", f"lib/modules/{kver}/source": f"/{source}"},
        scripts=("postinst",),
        script_source="headers",
    )


def _meta(prefix: str, summary: str, kver: str) -> _Package:
    version = package_version(kver)
    depends = f"{package_name(prefix, kver)} (= {version})"
    return _Package(f"{prefix}-amd64", version, "kernel", summary, depends=depends)


def packages(kver: str = KVER) -> list[_Package]:
    """The four packages for a kernel release."""
    return [
        _image(kver),
        _meta("linux-image", "Linux for 64-bit PCs (meta-package), the lab's stand-in", kver),
        _headers(kver),
        _meta("linux-headers", "Header files for Linux amd64 (meta-package), the lab's stand-in", kver),
    ]


def _control(package: _Package) -> str:
    fields = {
        "Package": package.name,
        "Source": "linux",
        "Version": package.version,
        "Architecture": "amd64",
        "Maintainer": "rigup lab <lab@rigup.invalid>",
        "Section": package.section,
        "Priority": "optional",
        "Depends": package.depends,
        "Description": package.summary,
    }
    return "".join(f"{key}: {value}\n" for key, value in fields.items() if value)


def _assemble(package: _Package, kver: str, tree: Path) -> None:
    for name, content in package.files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name, target in package.links.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
    control = tree / "DEBIAN"
    control.mkdir()
    (control / "control").write_text(_control(package))
    for script in package.scripts:
        text = (SCRIPTS / f"{package.script_source}.{script}").read_text().replace("@KVER@", kver)
        (control / script).write_text(text)
    for path in [tree, *tree.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or (path.parent == control and path.name != "control") else 0o644)


def build(dest: Path, kver: str = KVER) -> list[Path]:
    """Build the kernel packages into a directory, the same bytes every time; returns their paths.

    Raises CalledProcessError when dpkg-deb fails and FileNotFoundError when it is missing.
    """
    dest.mkdir(parents=True, exist_ok=True)
    built = []
    for package in packages(kver):
        deb = dest / f"{package.name}_{package.version}_amd64.deb"
        # Beside the result, so that two builds at once never meet in a half-written file.
        with tempfile.TemporaryDirectory(prefix=".new-", dir=dest) as scratch:
            tree = Path(scratch) / "tree"
            tree.mkdir()
            _assemble(package, kver, tree)
            beside = Path(scratch) / deb.name
            subprocess.run(
                ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", str(tree), str(beside)],
                check=True,
                stdout=subprocess.DEVNULL,
                # dpkg-deb clamps every time stamp to this, which makes the package reproducible.
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SOURCE_DATE_EPOCH": "1767225600"},
            )
            beside.replace(deb)
        built.append(deb)
    return built
