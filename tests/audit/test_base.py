"""What every later step stands on."""

from __future__ import annotations

import re

from subject import Subject, check, expect, expect_none


def live(rig: Subject, key: str) -> str | None:
    """A kernel setting as it is now; None where this kernel has none of that name."""
    text = rig.text(f"/proc/sys/{key.replace('.', '/')}")
    return None if text is None else " ".join(text.split())


@check("major")
def test_base_packages(rig: Subject) -> None:
    """The tools that later steps and the host's own programs use."""
    needed = ("ca-certificates", "curl", "python3", "python3-venv")
    missing = [name for name in needed if name not in rig.installed]
    expect_none(f"{', '.join(needed)} installed", [f"{name} is not" for name in missing])


@check("minor")
def test_base_apt_lock(rig: Subject) -> None:
    """apt waits for its lock: a fresh host updates itself when it boots."""
    value = rig.said("apt-config dump --format '%v%n' DPkg::Lock::Timeout")
    if not value.isdigit() or int(value) < 60:
        expect("DPkg::Lock::Timeout of a minute or more", value)


@check("major", "sysctl")
def test_base_sysctl(rig: Subject) -> None:
    """The kernel settings are in effect."""
    wanted = {key: str(value) for key, value in rig.settings.sysctl.items() if live(rig, key) is not None}
    expect(wanted, {key: live(rig, key) for key in wanted})


@check("major", "sysctl")
def test_base_sysctl_kept(rig: Subject) -> None:
    """The kernel settings come back after a boot: of all files that systemd reads, the last word is ours."""
    wanted = {key: str(value) for key, value in rig.settings.sysctl.items() if live(rig, key) is not None}
    kept = {}
    for line in rig.said("systemd-analyze cat-config --no-pager sysctl.d").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.lstrip().startswith(("#", ";")):
            kept[key.strip().lstrip("-").replace("/", ".")] = value.strip()
    expect(wanted, {key: kept.get(key, "nothing") for key in wanted})


@check("major")
def test_base_updates(rig: Subject) -> None:
    """Unattended upgrades leave the driver and Docker alone."""
    dumped = rig.said("apt-config dump --format '%f %v%n' Unattended-Upgrade::Package-Blacklist")
    patterns = [line.partition(" ")[2] for line in dumped.splitlines() if line.partition(" ")[2]]
    guarded = [*rig.driver.packages, *rig.driver.pin, *rig.locked("docker"), *rig.locked("toolkit")]
    # Docker's plugins are commands of its client: nothing that runs depends on them.
    guarded = [name for name in guarded if not name.endswith("-plugin")]
    free = [name for name in guarded if not any(re.match(pattern, name) for pattern in patterns)]
    expect_none("no upgrades of driver and Docker by themselves", [f"{name} may be upgraded" for name in free])
