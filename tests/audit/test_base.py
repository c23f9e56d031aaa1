"""The base step: packages and kernel settings that every later step needs."""

from __future__ import annotations

import re

from rigup.audit.check import check
from rigup.audit.expect import expect, expect_none
from rigup.audit.subject import Subject


def live(rig: Subject, key: str) -> str | None:
    """Return a kernel setting as it is now, or None where this kernel does not have it."""
    text = rig.text(f"/proc/sys/{key.replace('.', '/')}")
    return None if text is None else " ".join(text.split())


@check("major")
def test_base_packages(rig: Subject) -> None:
    """Later steps and the host's own programs need these tools."""
    needed = ("ca-certificates", "curl", "python3", "python3-venv")
    missing = [name for name in needed if name not in rig.installed]
    expect_none(f"{', '.join(needed)} installed", [f"{name} is not" for name in missing])


@check("minor")
def test_base_apt_lock(rig: Subject) -> None:
    """apt must wait for its lock: a fresh host runs its own updates when it boots."""
    value = rig.output("apt-config dump --format '%v%n' DPkg::Lock::Timeout")
    if not value.isdigit() or int(value) < 60:
        expect("DPkg::Lock::Timeout of a minute or more", value)


@check("major", "sysctl")
def test_base_sysctl(rig: Subject) -> None:
    """The kernel settings must be in effect."""
    expected = {key: str(value) for key, value in rig.settings.sysctl.items() if live(rig, key) is not None}
    expect(expected, {key: live(rig, key) for key in expected})


@check("major", "sysctl")
def test_base_sysctl_kept(rig: Subject) -> None:
    """The kernel settings must survive a reboot: no file that systemd reads later may override them."""
    expected = {key: str(value) for key, value in rig.settings.sysctl.items() if live(rig, key) is not None}
    kept = {}
    for line in rig.output("systemd-analyze cat-config --no-pager sysctl.d").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.lstrip().startswith(("#", ";")):
            kept[key.strip().lstrip("-").replace("/", ".")] = value.strip()
    expect(expected, {key: kept.get(key, "nothing") for key in expected})


@check("major")
def test_base_updates(rig: Subject) -> None:
    """Unattended upgrades must not replace the driver or Docker while endpoints serve."""
    dumped = rig.output("apt-config dump --format '%f %v%n' Unattended-Upgrade::Package-Blacklist")
    patterns = [line.partition(" ")[2] for line in dumped.splitlines() if line.partition(" ")[2]]
    guarded = [*rig.driver.packages, *rig.driver.pin, *rig.locked("docker"), *rig.locked("toolkit")]
    # Docker's plugins are commands of its client: no running container depends on them.
    guarded = [name for name in guarded if not name.endswith("-plugin")]
    free = [name for name in guarded if not any(re.match(pattern, name) for pattern in patterns)]
    expect_none("no unattended upgrades of driver and Docker", [f"{name} may be upgraded" for name in free])
