"""The kernel step: headers, module options and boot arguments."""

from __future__ import annotations

from rigup.audit.check import check
from rigup.audit.expect import expect, expect_file, expect_none
from rigup.audit.subject import Subject
from rigup.boot_loader import INITRD, READ_NEXT, kernel_arguments, next_boot, release_in
from rigup.distros.table import header_packages
from rigup.errors import RigupError
from rigup.paths import GRUB_CONFIG, MODPROBE_CONFIG

TRUTH = {"Y": "1", "N": "0"}


def plain(value: object) -> str:
    """Return 1 and 0 for Y and N, which is how the kernel shows options that people write as 1 and 0."""
    return TRUTH.get(str(value), str(value))


@check("critical")
def test_kernel_headers(rig: Subject) -> None:
    """The driver is compiled against headers: the running kernel needs its own, and the next kernel must get some."""
    try:
        headers = header_packages(rig.distro, rig.kernel, rig.installed)
    except RigupError as error:
        expect_none("headers for the running kernel", [error.message])
        return
    needed = (headers.package, *headers.metas)
    missing = [name for name in needed if name not in rig.installed]
    expect_none(f"{', '.join(needed)} installed", [f"{name} is not" for name in missing])


@check("major", "modprobe_options", repair=("reboot",))
def test_kernel_module_options(rig: Subject) -> None:
    """The module options must be in effect in the loaded modules."""
    expected, found = {}, {}
    for module, options in rig.settings.modprobe_options.items():
        for option, value in options.items():
            name = f"{module}.{option}"
            expected[name] = plain(value)
            loaded = rig.text(f"/sys/module/{module}/parameters/{option}")
            found[name] = plain(loaded.strip()) if loaded is not None else "the module is not loaded"
    expect(expected, found)


@check("major", "modprobe_options")
def test_kernel_module_options_kept(rig: Subject) -> None:
    """The module options must survive a reboot."""
    # Other words than `options` run commands as root.
    lines = [
        f"options {module} {' '.join(f'{option}={value}' for option, value in sorted(given.items()))}\n"
        for module, given in sorted(rig.settings.modprobe_options.items())
    ]
    expect_file(rig, MODPROBE_CONFIG, "".join(lines))
    configured = [
        line.split() for line in rig.output("/sbin/modprobe --showconfig").splitlines() if line.startswith("options ")
    ]
    expected, found = {}, {}
    for module, options in rig.settings.modprobe_options.items():
        given = dict(word.partition("=")[::2] for words in configured if words[1] == module for word in words[2:])
        for option, value in options.items():
            expected[f"{module} {option}"] = plain(value)
            found[f"{module} {option}"] = plain(given.get(option, "nothing"))
    expect(expected, found)


@check("critical")
def test_kernel_next(rig: Subject) -> None:
    """The kernel that boots next must have a driver and an initrd, or a reboot loses the GPUs."""
    listed = rig.names("find /boot/ -mindepth 1 -maxdepth 1 -printf '%f\\0' | sort -zV")
    kernels = [release for name in listed if (release := release_in(name))]
    following = next_boot(rig.output(READ_NEXT).splitlines(), {*kernels, rig.kernel}).release
    booting = following or (kernels[-1] if kernels else rig.kernel)
    modules = rig.names("find /lib/modules/%s -name 'nvidia.ko*' -print0", booting)
    lacking = [] if modules else [f"no NVIDIA module for {booting}"]
    if kernels and any(release_in(name, INITRD) for name in listed) and f"{INITRD}{booting}" not in listed:
        lacking.append(f"no initrd for {booting}")
    expect_none(f"a driver and an initrd for {booting}", lacking)


@check("critical", "kernel_args", repair=("reboot",))
def test_kernel_args(rig: Subject) -> None:
    """The running kernel must have been booted with these arguments."""
    running = kernel_arguments(rig.text("/proc/cmdline") or "")
    missing = [argument for argument in rig.settings.kernel_args if argument not in running]
    expect_none(" ".join(rig.settings.kernel_args), [f"booted without {argument}" for argument in missing])


@check("critical", "kernel_args", root=True)
def test_kernel_args_kept(rig: Subject) -> None:
    """The arguments must survive a reboot: every entry of GRUB's menu needs them."""
    # Root's shell reads this file at every update of the menu.
    line = f'GRUB_CMDLINE_LINUX_DEFAULT="${{GRUB_CMDLINE_LINUX_DEFAULT}} {" ".join(rig.settings.kernel_args)}"\n'
    expect_file(rig, GRUB_CONFIG, line if rig.settings.kernel_args else "")
    menu = rig.text("/boot/grub/grub.cfg") or ""
    entries = [kernel_arguments(line) for line in menu.splitlines() if line.split()[:1] == ["linux"]]
    normal = [words for words in entries if "single" not in words and "recovery" not in words]
    if not normal:
        expect_none("an entry in /boot/grub/grub.cfg", ["no entry"])
    missing = {argument for words in normal for argument in rig.settings.kernel_args if argument not in words}
    expect_none(" ".join(rig.settings.kernel_args), [f"an entry without {argument}" for argument in sorted(missing)])
