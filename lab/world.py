"""Bring the whole lab up and down: network, mirror, hub, registry and hosts. Write its inventory."""

import contextlib
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from lab import hub, machine, mirror, network, registry, state
from lab.errors import LabError
from lab.host import limits, rootfs
from lab.host.hardware import DEFAULT_GPUS, describe
from lab.locking import quietly
from lab.machine import Host, Spec
from lab.mirror.distributions import RELEASES
from lab.service import Service, running
from lab.settings import HUB_URL, MAX_HOSTS, MIRROR_URL, REGISTRY_URL, SERVICES, STATE, host_name, host_number
from rigup import atomic

INVENTORY = STATE / "lab.yaml"
"""An ordinary inventory of the lab's hosts; `inventory/lab.py` reads it when the user has no inventory."""

_TOOLS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "ssh-keygen": "openssh-client",
    "ssh": "openssh-client",
    "dpkg-deb": "dpkg",
    "tar": "tar",
}


def check_machine() -> None:
    """Raise LabError, listing everything that is missing, when this machine cannot run the lab."""
    problems = []
    if os.geteuid() != 0:
        problems.append("the lab boots machines: run it as root")
    missing = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool, path=_search_path()) is None})
    if missing:
        problems.append(f"programs are missing: apt-get install {' '.join(missing)}")
    if problems:
        raise LabError("\n".join(problems))


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def up(
    hosts: int | None = None,
    release: str | None = None,
    login: str | None = None,
    gpus: int | None = None,
    say: Callable[[str], None] = print,
) -> list[Host]:
    """Bring up the services and hosts rig1 to rig`hosts`; what is already up stays unchanged.

    Without a number: the hosts in the lab's inventory, at least rig1. Other hosts stay unchanged.
    Raises LabError, and ValueError for an impossible number of cards.
    """
    check_machine()
    started = time.monotonic()
    number = hosts if hosts is not None else max(map(host_number, _listed()), default=1)
    if not 1 <= number <= MAX_HOSTS:
        raise LabError(f"{number} hosts: the lab has 1 to {MAX_HOSTS}")
    kind = release or "trixie"
    spec = Spec(kind, DEFAULT_GPUS if gpus is None else gpus, login or RELEASES[kind].logins[0])
    specs = {host_name(index): spec for index in range(1, number + 1)}
    describe(host_name(1), spec.gpus)
    _refuse_other_kind(specs, release, login, gpus)
    state.claim()
    with state.locked("world", say):
        _bring_up(specs, say)
    say(f"the lab is up ({time.monotonic() - started:.1f} s); its inventory: {INVENTORY}")
    return [machine.get(name) for name in specs]


def _bring_up(specs: dict[str, Spec], say: Callable[[str], None]) -> None:
    network.up()

    def timed(name: str, action: Callable[[], object]) -> object:
        begun = time.monotonic()
        result = action()
        where = f" at {result.url}" if isinstance(result, Service) else ""
        say(f"{name}: ready{where} ({time.monotonic() - begun:.1f} s)")
        return result

    # All other downloads go through the mirror.
    timed("mirror", mirror.start)
    with ThreadPoolExecutor(max_workers=2) as pool:
        waiting = [pool.submit(timed, "hub", hub.start), pool.submit(timed, "registry", registry.start)]
        for name, spec in specs.items():
            host = machine.get(name)
            kind = host.spec if host.exists else spec
            timed(
                f"{name} ({RELEASES[kind.release].name}, {kind.gpus} GPUs, login {kind.login})",
                lambda name=name, spec=spec: machine.start(name, spec.release, spec.gpus, spec.login, say),  # type: ignore[misc]
            )
        write_inventory(specs)
        for future in waiting:
            future.result()


def _refuse_other_kind(specs: dict[str, Spec], release: str | None, login: str | None, gpus: int | None) -> None:
    """Raise LabError where an existing host differs from the given options: `up` never resets a host."""
    problems = []
    for name, spec in specs.items():
        host = machine.get(name)
        if not host.exists:
            continue
        differs = {
            "release": (release, spec.release, host.spec.release),
            "login": (login, spec.login, host.spec.login),
            "gpus": (gpus, spec.gpus, host.spec.gpus),
        }
        for option, (asked, new, old) in differs.items():
            if asked is not None and new != old:
                problems.append(
                    f"{name} was created with --{option} {old}: `python -m lab reset {name} --{option} {new}`"
                )
    if problems:
        raise LabError("\n".join(problems))


def down(say: Callable[[str], None] = print) -> None:
    """Stop the lab and remove everything but the caches. Do nothing when there is no lab."""
    if os.geteuid() != 0:
        raise LabError("the lab was booted by root: run this as root")
    if not STATE.exists() or not state.is_ours():
        say(f"there is no lab in {STATE}")
        return
    # Without the marker only services were started here; the bridge and hosts may belong to another state directory.
    ours = state.MARKER.exists()
    hosts = machine.existing()
    with state.locked("world", say):
        if ours:
            # All possible hosts, not only existing ones: a half-created host may have left a namespace.
            for number in range(1, MAX_HOSTS + 1):
                machine.get(host_name(number)).remove()
        for stop in (registry.stop, hub.stop, mirror.stop):
            stop()
        if ours:
            network.down()
            limits.restore()
        state.remove_tree(STATE)
    say(f"the lab is down ({len(hosts)} hosts removed)")


_PARTS = {"mirror": mirror, "hub": hub, "registry": registry}


@contextlib.contextmanager
def services(say: Callable[[str], None] = quietly, names: Iterable[str] = _PARTS) -> Iterator[None]:
    """Run the network, mirror, hub and registry while the context lasts; those that ran before keep running.

    + names: which of the three services, in the order in which they depend on each other

    Raises LabError.
    """
    check_machine()
    state.claim()
    fresh = not network.present()
    begun: list[Callable[[], object]] = []
    try:
        with state.locked("world", say):
            network.up()
            for name in names:
                if running(name) is None:
                    begun.append(_PARTS[name].stop)
                _PARTS[name].start()
                say(f"{name}: ready")
        yield
    finally:
        for stop in reversed(begun):
            stop()
        if fresh and not machine.existing():
            down(say)


def fill_caches(say: Callable[[str], None] = quietly) -> None:
    """Build what is missing from the caches: bare disks, repositories, images. Raises LabError."""
    # All other downloads go through the mirror; the registry starts by building its images.
    with services(say, ("mirror",)), ThreadPoolExecutor() as pool:
        disks = [pool.submit(rootfs.build, release, say) for release in RELEASES]
        with services(say, ("hub", "registry")):
            for disk in disks:
                disk.result()


def defaults() -> dict[str, Any]:
    """Return the settings of all lab hosts: keys, mirrors, hub, this machine's limits."""
    found: dict[str, Any] = {
        "key": str(state.KEY),
        "known_hosts": str(state.KNOWN_HOSTS),
        "cuda_mirror": f"{MIRROR_URL}/cuda",
        "docker_mirror": f"{MIRROR_URL}/docker/linux",
        "toolkit_mirror": f"{MIRROR_URL}/libnvidia-container",
        "apt_keys": [key.fingerprint for key in mirror.public_keys().values()],
        "pypi_index": f"{MIRROR_URL}/pypi/simple",
        "hub_endpoint": HUB_URL,
        "registry_mirror": REGISTRY_URL,
    }
    if (ulimits := _container_ulimits()) is not None:
        found["container_ulimits"] = ulimits
    return found


def connection(host: Host) -> dict[str, Any]:
    """Return the settings of one host: its address and login user."""
    return {"address": host.address, "user": host.spec.login}


def _listed() -> list[str]:
    """Return the lab hosts in the inventory; empty without an inventory."""
    try:
        found = yaml.safe_load(INVENTORY.read_text())
        return sorted(found["hosts"], key=host_number)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return []


def _container_ulimits() -> dict[str, int] | None:
    """Return the limits that a container can get here, None when none has to be lowered.

    Without CAP_SYS_RESOURCE no process on this machine, and so no container on a lab host, can exceed the hard limits.
    """
    if _may_raise_limits():
        return None
    limits = {}
    for name, number, value in (("memlock", resource.RLIMIT_MEMLOCK, -1), ("stack", resource.RLIMIT_STACK, 67108864)):
        hard = resource.getrlimit(number)[1]
        if hard == resource.RLIM_INFINITY:
            hard = value
        limits[name] = hard if value == -1 else min(value, hard)
    return limits


def _may_raise_limits() -> bool:
    cap_sys_resource = 24  # linux/capability.h
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return bool(int(line.split()[1], 16) >> cap_sys_resource & 1)
    return True


def write_inventory(names: Iterable[str] = ()) -> Path:
    """Write the inventory of these hosts and those already in it, if they exist; return its path."""
    hosts = [machine.get(name) for name in sorted({*names, *_listed()}, key=host_number)]
    document = {"defaults": defaults(), "hosts": {host.name: connection(host) for host in hosts if host.exists}}
    text = "# Written by `python -m lab up`; copy inventory/lab.example.yaml for machines of your own.\n"
    text += yaml.safe_dump(document, sort_keys=False)
    atomic.write(INVENTORY, text, 0o644)
    return INVENTORY


def status() -> list[tuple[str, str, str]]:
    """Return name, state, and how to reach it for each part of the lab."""
    lines = []
    for name in SERVICES:
        service = running(name)
        lines.append((name, "up" if service else "down", f"{service.url}  log: {service.log}" if service else ""))
    for host in machine.existing():
        spec = host.spec
        detail = f"{RELEASES[spec.release].name}, {spec.gpus} GPUs  {' '.join(host.ssh_argv())}"
        lines.append((host.name, "up" if host.running else "off", detail))
    return lines
