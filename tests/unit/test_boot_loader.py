"""Which kernel boots next, from what boot loaders say on real systems."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from rigup.boot_loader import READ_NEXT, NextBoot, next_boot
from rigup.facts.kernel import InitrdSizes, KernelStateValue, parse_kernel_state

OLD, NEW = "6.8.0-45-generic", "6.8.0-51-generic"
# The header and the menu that Ubuntu 24.04's grub-mkconfig writes, shortened inside the entries.
CFG = """\
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="DEFAULT"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
function gfxmode {
    set gfxpayload="${1}"
    if [ "${1}" = "keep" ]; then
        set vt_handoff=vt.handoff=7
    fi
}
menuentry 'Ubuntu' --class ubuntu --class gnu-linux $menuentry_id_option 'gnulinux-simple-e33f' {
    recordfail
    load_video
    linux    /vmlinuz-6.8.0-51-generic root=/dev/mapper/ubuntu--vg-root ro  quiet splash iommu=pt $vt_handoff
    initrd    /initrd.img-6.8.0-51-generic
}
submenu 'Advanced options for Ubuntu' $menuentry_id_option 'gnulinux-advanced-e33f' {
    menuentry 'Ubuntu, with Linux 6.8.0-51-generic' $menuentry_id_option 'gnulinux-6.8.0-51-generic-advanced-e33f' {
        linux    /vmlinuz-6.8.0-51-generic root=/dev/mapper/ubuntu--vg-root ro  quiet splash $vt_handoff
    }
    menuentry 'Ubuntu, with Linux 6.8.0-51-generic (recovery mode)' --id 'gnulinux-6.8.0-51-generic-recovery-e33f' {
        linux    /vmlinuz-6.8.0-51-generic root=/dev/mapper/ubuntu--vg-root ro recovery nomodeset
    }
    menuentry 'Ubuntu, with Linux 6.8.0-45-generic' $menuentry_id_option 'gnulinux-6.8.0-45-generic-advanced-e33f' {
        linux    /vmlinuz-6.8.0-45-generic root=/dev/mapper/ubuntu--vg-root ro  quiet old $vt_handoff
    }
}
if [ "$grub_platform" = "efi" ]; then
    menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {
        fwsetup
    }
fi
"""
EMPTY_ENV = "# GRUB Environment Block\n" + "#" * 999 + "\n"


def boots(tmp_path: Path, default: str, environment: str = EMPTY_ENV, cfg: str = CFG) -> NextBoot:
    """Run the command of the fact on these files, and parse what it prints."""
    (tmp_path / "grub").mkdir()
    (tmp_path / "grub/grub.cfg").write_text(cfg.replace("DEFAULT", default))
    (tmp_path / "grub/grubenv").write_text(environment)
    command = READ_NEXT
    for place in ("/boot/grub/", "/etc/kernel/", "/sys/firmware/"):
        command = command.replace(place, f"{tmp_path}/{place.split('/')[-2]}/")
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert (done.returncode, done.stderr) == (0, "")
    return next_boot(done.stdout.splitlines(), {OLD, NEW})


ADVANCED = "Advanced options for Ubuntu"


@pytest.mark.parametrize(
    ("default", "release"),
    [
        ("0", NEW),
        ("1>2", OLD),
        ("1>0", NEW),
        ("1", NEW),
        (f"{ADVANCED}>Ubuntu, with Linux {OLD}", OLD),
        (f"gnulinux-advanced-e33f>gnulinux-{OLD}-advanced-e33f", OLD),
        (f"1>gnulinux-{OLD}-advanced-e33f", OLD),
        # GRUB does not look into submenus for a title, and boots the first entry instead of what it does not find.
        (f"Ubuntu, with Linux {OLD}", NEW),
        (f"{ADVANCED}>Ubuntu, with Linux 5.15.0-1-generic", NEW),
        ("7", NEW),
        ("", NEW),
        ("${saved_entry}", NEW),
        # No kernel of this host.
        ("uefi-firmware", None),
    ],
)
def test_grubs_default_is_found_in_its_menu(tmp_path: Path, default: str, release: str | None) -> None:
    assert boots(tmp_path, default).release == release


@pytest.mark.parametrize(
    ("environment", "release"),
    [
        ("saved_entry=1>2\n", OLD),
        (f"saved_entry={ADVANCED}>Ubuntu, with Linux {OLD}\n", OLD),
        ("saved_entry=0\n", NEW),
        # For one boot: grub-reboot.
        ("saved_entry=0\nnext_entry=1>2\n", OLD),
        ("saved_entry=1>2\nnext_entry=0\n", NEW),
        ("saved_entry=1>2\nnext_entry=\n", OLD),
    ],
)
def test_what_grub_remembers_counts(tmp_path: Path, environment: str, release: str) -> None:
    assert boots(tmp_path, "${saved_entry}", EMPTY_ENV.replace("\n", f"\n{environment}", 1)).release == release


def test_the_arguments_are_those_of_the_entry_that_boots(tmp_path: Path) -> None:
    found = boots(tmp_path, "1>2").arguments
    assert found == ("root=/dev/mapper/ubuntu--vg-root", "ro", "quiet", "old", "$vt_handoff")


def test_a_backup_that_comes_first_boots_its_kernel(tmp_path: Path) -> None:
    cfg = CFG.replace(f"/vmlinuz-{NEW} root", f"/vmlinuz-{OLD}.bak root", 1)
    assert boots(tmp_path, "0", cfg=cfg).release == OLD


def test_without_a_default_the_first_entry_boots(tmp_path: Path) -> None:
    cfg = f'menuentry "it\'s Debian" {{\n\tlinux\t/boot/vmlinuz-{OLD} root=/dev/vda1 ro -- single\n}}\n'
    assert boots(tmp_path, "", cfg=cfg) == NextBoot(OLD, ("root=/dev/vda1", "ro"))


def test_a_host_without_a_menu_says_nothing(tmp_path: Path) -> None:
    assert boots(tmp_path, "", "", cfg="") == NextBoot(None, None)


def systemd_boot(*entries: dict[str, object]) -> list[str]:
    return ["--- entries", "systemd-boot", json.dumps(entries), "--- environment", "", "--- menu"]


# As bootctl of systemd 257 prints it.
KEPT = {
    "type": "type1",
    "id": f"4d3b-{OLD}.conf",
    "version": OLD,
    "options": "root=UUID=1 ro iommu=pt",
    "linux": f"/4d3b/{OLD}/linux",
    "isDefault": True,
    "isSelected": False,
}
NEWEST = {**KEPT, "id": f"4d3b-{NEW}.conf", "version": NEW, "linux": f"/4d3b/{NEW}/linux", "isDefault": False}
UNIFIED = {"type": "type2", "id": f"4d3b-{NEW}.efi", "version": "24.04", "isDefault": True}


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([NEWEST, KEPT], NextBoot(OLD, ("root=UUID=1", "ro", "iommu=pt"), systemd_boot=True)),
        ([UNIFIED, {**KEPT, "isDefault": False}], NextBoot(NEW, None, systemd_boot=True)),
        ([{"id": "auto-windows", "isDefault": True}], NextBoot(None, None, systemd_boot=True)),
        ([{**KEPT, "isDefault": False}], NextBoot(None, None, systemd_boot=True)),
        ([], NextBoot(None, None, systemd_boot=True)),
    ],
)
def test_systemd_boot_says_which_entry_is_its_default(entries: list[dict[str, object]], found: NextBoot) -> None:
    assert next_boot(systemd_boot(*entries), {OLD, NEW}) == found


def test_systemd_boot_that_cannot_be_asked_says_nothing() -> None:
    menu = ["--- menu", "menuentry 'of a GRUB of before' {", f"linux /vmlinuz-{OLD}", "}"]
    assert next_boot(["--- entries", "systemd-boot", "--- environment", *menu], {OLD, NEW}) == NextBoot(
        None, None, systemd_boot=True
    )
    assert next_boot(["--- entries", "systemd-boot", "{}", *menu], {OLD, NEW}) == NextBoot(
        None, None, systemd_boot=True
    )


PVE_OLD, PVE_NEW = "6.8.12-4-pve", "6.8.12-9-pve"


@pytest.mark.parametrize(
    ("pins", "release"),
    [
        ([f"/etc/kernel/proxmox-boot-pin:{PVE_OLD}"], PVE_OLD),
        ([f"/etc/kernel/next-boot-pin:{PVE_NEW}", f"/etc/kernel/proxmox-boot-pin:{PVE_OLD}"], PVE_NEW),
        # A kernel that was removed since.
        (["/etc/kernel/proxmox-boot-pin:6.5.11-8-pve"], None),
    ],
)
def test_a_kernel_that_proxmox_pins_boots_next(pins: list[str], release: str | None) -> None:
    assert next_boot([*pins, "--- entries", "--- environment", "--- menu"], {PVE_OLD, PVE_NEW}).release == release


def kernels(*files: str, release: str = OLD) -> KernelStateValue:
    return parse_kernel_state([release, "ro", *(f"/boot/{name}" for name in files)])


def test_backups_in_boot_are_no_kernels() -> None:
    state = kernels(
        f"vmlinuz-{OLD}",
        f"vmlinuz-{NEW}.old",
        f"vmlinuz-{NEW}.bak",
        f"vmlinuz-{NEW}.dpkg-new",
        f"vmlinuz-{NEW}~",
        f"vmlinuz-{OLD}.efi.signed",
        f"initrd.img-{OLD}",
        f"initrd.img-{NEW}.old-dkms",
        f"initrd.img-{NEW}.dpkg-bak",
    )
    assert (state.installed, state.initrds, state.boots_next) == ((OLD,), {OLD}, OLD)


def test_without_a_word_of_the_boot_loader_the_newest_boots_next() -> None:
    assert kernels(f"vmlinuz-{NEW}", f"vmlinuz-{OLD}").boots_next == NEW


@pytest.mark.parametrize("line", ["menuentry 'unclosed {", "}", "set default=", "linux", "menuentry", "submenu {", "{"])
def test_a_menu_that_makes_no_sense_is_no_error(line: str) -> None:
    assert next_boot(["--- entries", "--- menu", line, line], {OLD}).release is None


def test_the_sizes_of_initrds_are_those_of_kernels() -> None:
    lines = [f"67108864 /boot/initrd.img-{NEW}", f"66000000 /boot/initrd.img-{NEW}.old-dkms"]
    assert InitrdSizes().process(lines) == {NEW: 67108864}
