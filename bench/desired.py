"""The desired state for the Ansible playbook: the values that the deploy uses, read from plan, lock and host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.machine import Host
from rigup.catalog.loader import default_catalog
from rigup.config.inventory import Inventory
from rigup.distros.apt_sources import repositories
from rigup.distros.driver import REPLACED
from rigup.distros.table import distro_id
from rigup.lock import lockfile as locks
from rigup.lock.packages import driver_install, locked_packages
from rigup.operations.host_package import package_files
from rigup.paths import (
    APT_LOCK_CONFIG,
    APT_UPGRADES_CONFIG,
    CLIENT_REQUIREMENTS,
    COMMIT_UNIT,
    CUDA_PROFILE,
    FATAL_LINES,
    FETCH_REQUIREMENTS,
    FETCH_TEMPLATE,
    GRUB_CONFIG,
    HOST_CURRENT,
    MODPROBE_CONFIG,
    NEEDRESTART_CONFIG,
    PERSISTENCED_DROP_IN,
    SYSCTL_CONFIG,
    SYSTEM_UNITS,
    fetch_unit,
    verification_of,
)
from rigup.plan.docker import daemon_values
from rigup.plan.host import plan_host
from rigup.plan.model import Plan
from rigup.render.systemd import inputs_of
from rigup.render.verify import gpus_verification
from tasks.base import PACKAGES


def plan_of(inventory: Inventory, name: str) -> Plan:
    """Return the plan of a deployed host of an inventory."""
    settings, lock = inventory.host(name).settings, locks.read(inventory.lock)
    return plan_host(name, settings, default_catalog(), lock)


def variables(host: Host, inventory: Inventory, name: str, directory: Path) -> dict[str, Any]:
    """Return the playbook's variables for all hosts; `name` is the inventory's name of the deployed `host`.

    Files are copied from the host into `directory`, as the deploy wrote them.
    """
    settings, lock, plan = inventory.host(name).settings, locks.read(inventory.lock), plan_of(inventory, name)
    (endpoint,) = plan.endpoints
    release = dict(line.split("=", 1) for line in host.shell("cat /etc/os-release").stdout.splitlines() if line)
    distro = distro_id({key: value.strip('"') for key, value in release.items()})
    driver, groups = driver_install(lock, distro, settings), locked_packages(lock, distro, settings)
    sources = repositories(distro, settings)
    paths = {
        "base": [APT_LOCK_CONFIG, APT_UPGRADES_CONFIG, NEEDRESTART_CONFIG, SYSCTL_CONFIG,
                 *(f"{HOST_CURRENT}/{path}" for path in package_files())],
        "model": [FETCH_REQUIREMENTS, FETCH_TEMPLATE],
        "kernel": [MODPROBE_CONFIG, GRUB_CONFIG],
        "sources": [source.source_path for source in sources.values()],
        "driver": [PERSISTENCED_DROP_IN],
        "cuda": [CUDA_PROFILE],
        "config": [*inputs_of(endpoint), f"{endpoint.directory}/llm.service", f"{endpoint.directory}/endpoint.json"],
        "serve": [FATAL_LINES, endpoint.unit_file],
        "verify": [CLIENT_REQUIREMENTS, f"{SYSTEM_UNITS}/{COMMIT_UNIT}"],
    }  # fmt: skip
    return {
        "files": {step: [_file(host, path, directory) for path in listed] for step, listed in paths.items()},
        "packages": {
            "tools": list(PACKAGES),
            "headers": host.shell("dpkg-query -W -f '${Package}\\n' 'linux-headers-*amd64'").stdout.split(),
            # The deploy resolves wildcards itself; Ansible would match them against all packages.
            "conflicting": list(REPLACED["docker"]),
            "pin": _pinned(driver.pin),
            "driver": _pinned(driver.packages),
            **{group: _pinned(groups[group]) for group in ("cuda", "docker", "toolkit")},
        },
        "sysctl": _sysctl(host, settings.sysctl),
        "stamp": f"{endpoint.checkpoint.path}.verified.json",
        "fetch_unit": fetch_unit(endpoint.checkpoint.instance),
        "boot": [
            {"made": f"/boot/initrd.img-{host.shell('uname -r').stdout.strip()}", "of": MODPROBE_CONFIG,
             "by": "update-initramfs -u -k all"},
            {"made": "/boot/grub/grub.cfg", "of": GRUB_CONFIG, "by": "update-grub"},
        ],
        "stale_sources": [path for source in sources.values() for path in source.stale],
        "keys": [
            {"url": source.key_url, "sha256": lock.keys[source.key_url].sha256, "dest": source.key_path}
            for source in sources.values()
        ],
        "daemon_values": daemon_values(settings),
        "driver_version": driver.version,
        "kernel_args": list(settings.kernel_args),
        "image": endpoint.image,
        "unit": endpoint.unit,
        "verifications": [
            verification_of(name) for name in (gpus_verification(endpoint.image or ""), f"endpoint-{endpoint.name}")
        ],
    }  # fmt: skip


def _file(host: Host, path: str, directory: Path) -> dict[str, str]:
    copy = directory / path.strip("/").replace("/", "--")
    copy.write_text(host.shell(f"cat {path}").stdout)
    return {"dest": path, "src": str(copy), "mode": host.shell(f"stat -c %a {path}").stdout.strip()}


def _pinned(versions: Mapping[str, str]) -> list[str]:
    return [f"{name}={version}" for name, version in versions.items()]


def _sysctl(host: Host, wanted: Mapping[str, Any]) -> dict[str, str]:
    """Return the kernel settings that this kernel has."""
    known = {key for key in wanted if host.shell(f"sysctl -n {key}", check=False).returncode == 0}
    return {key: str(value) for key, value in wanted.items() if key in known}
