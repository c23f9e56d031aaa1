"""The base step: packages and kernel settings that every later step needs."""

from __future__ import annotations

import hashlib
import re
import shlex

from rigup.audit.check import YOU, check
from rigup.audit.expect import expect, expect_file, expect_none, expect_owner
from rigup.audit.subject import Subject
from rigup.paths import (
    APT_LOCK_CONFIG,
    APT_UPGRADES_CONFIG,
    CONFIG,
    HOST_CURRENT,
    LIBRARY,
    NEEDRESTART_CONFIG,
    STATE,
    SYSCTL_CONFIG,
    SYSTEM_UNITS,
    TRIAL_UNITS,
    UNITS,
)
from rigup.resources import FILES


def live(rig: Subject, key: str) -> str | None:
    """Return a kernel setting as it is now, or None if this kernel does not have it."""
    text = rig.text(f"/proc/sys/{key.replace('.', '/')}")
    return None if text is None else " ".join(text.split())


@check("major")
def test_base_packages(rig: Subject) -> None:
    """Later steps and the host's own programs need these tools."""
    needed = ("ca-certificates", "curl", "python3", "python3-venv")
    missing = [name for name in needed if name not in rig.installed]
    expect_none(f"{', '.join(needed)} installed", [f"{name} is not" for name in missing])


def programs() -> dict[str, str]:
    """Return mode, owner and SHA-256 of each file of this version's host programs."""
    files = [FILES / "rigup-host", *FILES.glob("check_*.py"), *(FILES / "rigup_host").rglob("*.py")]
    sums = {path.relative_to(FILES).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    directories = {path.parent.relative_to(FILES).as_posix() for path in files} - {"."}
    return {path: f"{'755' if path == 'rigup-host' else '644'} root:root {digest}" for path, digest in sums.items()} | {
        directory: "755 root:root directory" for directory in directories
    }


@check("major")
def test_base_programs(rig: Subject) -> None:
    """Host programs decide what counts as serving: each file must be this version's, with no others."""
    form = "%%m %%u:%%g %%y %%p\\0"
    look = f"cd %s/ && find . -type f -exec sha256sum -z -- {{}} + && find . -mindepth 1 -printf '{form}'"
    sums, found = dict[str, str](), dict[str, str]()
    for entry in rig.names(look, HOST_CURRENT):
        if match := re.fullmatch(r"([0-9a-f]{64})  \./(.*)", entry, re.DOTALL):
            sums[match[2]] = match[1]
        elif match := re.fullmatch(r"(\d+ \S+) (\w) \./(.*)", entry, re.DOTALL):
            found[match[3]] = f"{match[1]} {sums.get(match[3], 'directory' if match[2] == 'd' else match[2])}"
    expect(programs(), found)


# What decides what root runs: directories with all that is in them, and the directories above.
DECIDING = (
    *("/etc/apt", "/etc/cron.d", "/etc/crontab", "/etc/default", "/etc/docker", "/etc/environment"),
    *("/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/modprobe.d", "/etc/profile.d", "/etc/sudoers", "/etc/sudoers.d"),
    *("/etc/sysctl.d", "/usr/local/bin", "/usr/local/sbin"),
    *(SYSTEM_UNITS, TRIAL_UNITS, UNITS, CONFIG, LIBRARY, STATE),
)
ABOVE = "/ /etc /etc/systemd /run /run/systemd /usr /usr/local /usr/local/lib /usr/local/lib/systemd /var /var/lib"


@check("critical", root=True, repair=(YOU,))
def test_base_owners(rig: Subject) -> None:
    """Only root may write what decides what root runs: apt's sources, units, programs, sudo's rules."""
    unsafe = r"\( ! -user root -o ! -type l \( -perm -002 -o -perm -020 ! -group root \) \) -print0"
    # Not every host has all of these paths. The mark shows that the search ended.
    look = f"{{ find {ABOVE} -maxdepth 0 {unsafe}; find {shlex.join(DECIDING)} {unsafe}; }} 2>/dev/null; echo searched"
    *found, mark = rig.output(look).split("\0")
    expect("searched", mark)
    expect_none("nothing that others can write", found)


@check("minor")
def test_base_apt_lock(rig: Subject) -> None:
    """apt must wait for its lock: a fresh host runs its own updates when it boots. No option may be added."""
    expect_file(rig, APT_LOCK_CONFIG, 'DPkg::Lock::Timeout "600";\n')
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
    expect_file(rig, SYSCTL_CONFIG, "".join(f"{key} = {value}\n" for key, value in sorted(expected.items())))


@check("major")
def test_base_updates(rig: Subject) -> None:
    """Unattended upgrades must not replace the driver or Docker while endpoints serve. No option may be added."""
    expect_owner(rig, APT_UPGRADES_CONFIG)
    text = rig.text(APT_UPGRADES_CONFIG) or ""
    if not re.fullmatch(r'Unattended-Upgrade::Package-Blacklist \{\n(  "[a-z\\.$-]+";\n)+\};\n', text):
        expect(f"only patterns of packages in {APT_UPGRADES_CONFIG}", text)
    dumped = rig.output("apt-config dump --format '%f %v%n' Unattended-Upgrade::Package-Blacklist")
    patterns = [line.partition(" ")[2] for line in dumped.splitlines() if line.partition(" ")[2]]
    guarded = [*rig.driver.packages, *rig.driver.pin, *rig.locked("docker"), *rig.locked("toolkit")]
    # Docker's plugins are commands of its client: no running container depends on them.
    guarded = [name for name in guarded if not name.endswith("-plugin")]
    free = [name for name in guarded if not any(re.match(pattern, name) for pattern in patterns)]
    expect_none("no unattended upgrades of driver and Docker", [f"{name} may be upgraded" for name in free])


@check("major")
def test_base_restarts(rig: Subject) -> None:
    """needrestart must not restart what serves after an upgrade of libraries, as it does on Ubuntu."""
    text = (
        "# Endpoints, gateways, downloads and switches of rigup: a restart cuts off requests and loads models again.\n"
        "$nrconf{override_rc}{qr(^(llm\\@|model-fetch\\@|rigup-))} = 0;\n"
    )
    expect_file(rig, NEEDRESTART_CONFIG, text)
