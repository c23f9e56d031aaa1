"""The whole lab: network, mirror, hub, registry and hosts, brought up and taken down together."""

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

from lab import hub, limits, machine, mirror, network, registry, rootfs
from lab.hardware import DEFAULT_GPUS, describe
from lab.locking import quietly
from lab.machine import Host, LabError, Spec
from lab.service import Service, running
from lab.settings import HUB_URL, MAX_HOSTS, MIRROR_URL, REGISTRY_URL, RELEASES, SERVICES, STATE, host_name, host_number

INVENTORY = STATE / "lab.yaml"
"""An ordinary inventory of the lab's hosts; `inventory/lab.py` reads it where the user has none of their own."""

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


def releases(choice: str, number: int) -> str:
    """The release of the host with this number; `mixed` gives odd numbers the first and even ones the second."""
    return RELEASES[(number - 1) % len(RELEASES)] if choice == "mixed" else choice


def logins(choice: str, number: int) -> str:
    """The login user of the host with this number; `mixed` as in `releases`."""
    return machine.LOGINS[(number - 1) % len(machine.LOGINS)] if choice == "mixed" else choice


def check_machine() -> None:
    """Raise LabError, naming all that is missing at once, when this machine cannot run the lab."""
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
    """Bring up the services and hosts rig1 to rig`hosts`; what is up already stays as it is.

    Without a number: the hosts that the lab's inventory names, at least rig1. Hosts beyond are left alone.
    Raises LabError, NetworkError, ServiceError, and ValueError for a number of cards that no host takes.
    """
    check_machine()
    started = time.monotonic()
    number = hosts if hosts is not None else max(map(host_number, _listed()), default=1)
    if not 1 <= number <= MAX_HOSTS:
        raise LabError(f"{number} hosts: the lab has 1 to {MAX_HOSTS}")
    wanted = {
        host_name(index): Spec(
            releases(release or "trixie", index),
            DEFAULT_GPUS if gpus is None else gpus,
            logins(login or "ops", index),
        )
        for index in range(1, number + 1)
    }
    for name, spec in wanted.items():
        describe(name, spec.gpus)
    _refuse_other_kind(wanted, release, login, gpus)
    machine.claim_state()
    with machine.locked("world", say):
        _bring_up(wanted, say)
    say(f"the lab is up ({time.monotonic() - started:.1f} s); its inventory: {INVENTORY}")
    return [machine.get(name) for name in wanted]


def _bring_up(wanted: dict[str, Spec], say: Callable[[str], None]) -> None:
    network.up()

    def timed(name: str, action: Callable[[], object]) -> object:
        begun = time.monotonic()
        result = action()
        where = f" at {result.url}" if isinstance(result, Service) else ""
        say(f"{name}: ready{where} ({time.monotonic() - begun:.1f} s)")
        return result

    # Everything else is fetched through the mirror.
    timed("mirror", mirror.start)
    with ThreadPoolExecutor(max_workers=2) as pool:
        waiting = [pool.submit(timed, "hub", hub.start), pool.submit(timed, "registry", registry.start)]
        for name, spec in wanted.items():
            host = machine.get(name)
            kind = host.spec if host.exists else spec
            timed(
                f"{name} (Debian {kind.release}, {kind.gpus} GPUs, login {kind.login})",
                lambda name=name, spec=spec: machine.start(name, spec.release, spec.gpus, spec.login, say),  # type: ignore[misc]
            )
        write_inventory(wanted)
        for future in waiting:
            future.result()


def _refuse_other_kind(wanted: dict[str, Spec], release: str | None, login: str | None, gpus: int | None) -> None:
    """An existing host is never rebuilt in passing: what was asked for and differs is an error."""
    problems = []
    for name, spec in wanted.items():
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
                problems.append(f"{name} was made with --{option} {old}: `python -m lab reset {name} --{option} {new}`")
    if problems:
        raise LabError("\n".join(problems))


def down(say: Callable[[str], None] = print) -> None:
    """Stop all of the lab and remove what it made; the caches stay. Nothing happens where there is no lab."""
    if os.geteuid() != 0:
        raise LabError("the lab was booted by root: run this as root")
    if not STATE.exists() or not machine.state_is_ours():
        say(f"there is no lab in {STATE}")
        return
    # Without it only services were started here; bridge and hosts may be those of another state directory.
    ours = machine.MARKER.exists()
    hosts = machine.existing()
    with machine.locked("world", say):
        if ours:
            # All that can be, not only those that exist: a half-made host may have left a namespace.
            for number in range(1, MAX_HOSTS + 1):
                machine.get(host_name(number)).remove()
        for stop in (registry.stop, hub.stop, mirror.stop):
            stop()
        if ours:
            network.down()
            limits.restore()
        machine.remove_tree(STATE)
    say(f"the lab is down ({len(hosts)} hosts removed)")


_PARTS = {"mirror": mirror, "hub": hub, "registry": registry}


@contextlib.contextmanager
def services(say: Callable[[str], None] = quietly, names: Iterable[str] = _PARTS) -> Iterator[None]:
    """The network, mirror, hub and registry for as long as the context lasts; what ran before runs on afterwards.

    + names: those of the three that are needed, in the order in which they need each other

    Raises LabError, NetworkError, ServiceError.
    """
    check_machine()
    machine.claim_state()
    fresh = not network.present()
    begun: list[Callable[[], object]] = []
    try:
        with machine.locked("world", say):
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
    """Make what the lab keeps for later, as far as it is missing. Raises LabError, NetworkError, ServiceError."""
    # Everything else is fetched through the mirror; the registry begins with its images.
    with services(say, ("mirror",)), ThreadPoolExecutor() as pool:
        disks = [pool.submit(rootfs.build, release, say) for release in RELEASES]
        with services(say, ("hub", "registry")):
            for disk in disks:
                disk.result()


def defaults() -> dict[str, Any]:
    """Settings of every host of the lab: its keys, its mirrors, its checkpoint, this machine's limits."""
    found: dict[str, Any] = {
        "key": str(machine.KEY),
        "known_hosts": str(machine.KNOWN_HOSTS),
        "cuda_mirror": f"{MIRROR_URL}/cuda",
        "docker_mirror": f"{MIRROR_URL}/docker/linux",
        "toolkit_mirror": f"{MIRROR_URL}/libnvidia-container",
        "pypi_index": f"{MIRROR_URL}/pypi/simple",
        "hub_endpoint": HUB_URL,
        "registry_mirror": REGISTRY_URL,
    }
    if (ulimits := _container_ulimits()) is not None:
        found["container_ulimits"] = ulimits
    return found


def connection(host: Host) -> dict[str, Any]:
    """Settings of one host: where it is and who logs in."""
    return {"address": host.address, "user": host.spec.login}


def _listed() -> list[str]:
    """The lab hosts that the inventory names; none where there is no inventory."""
    try:
        found = yaml.safe_load(INVENTORY.read_text())
        return sorted(found["hosts"], key=host_number)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return []


def _container_ulimits() -> dict[str, int] | None:
    """Limits that a container can be given here, None where there is no need to lower any.

    Without CAP_SYS_RESOURCE nothing on this machine, and so no container on a lab host, can exceed the hard limits.
    """
    if _may_raise_limits():
        return None
    wanted = {"memlock": (resource.RLIMIT_MEMLOCK, -1), "stack": (resource.RLIMIT_STACK, 67108864)}
    limits = {}
    for name, (number, value) in wanted.items():
        hard = resource.getrlimit(number)[1]
        unlimited = resource.RLIM_INFINITY
        if hard == unlimited:
            limits[name] = value
        else:
            limits[name] = hard if value == -1 else min(value, hard)
    return limits


def _may_raise_limits() -> bool:
    cap_sys_resource = 24  # linux/capability.h
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return bool(int(line.split()[1], 16) >> cap_sys_resource & 1)
    return True


def write_inventory(names: Iterable[str] = ()) -> Path:
    """Write the inventory of these hosts and of those it named before, as far as they exist; returns its path."""
    hosts = [machine.get(name) for name in sorted({*names, *_listed()}, key=host_number)]
    document = {"defaults": defaults(), "hosts": {host.name: connection(host) for host in hosts if host.exists}}
    text = "# Written by `python -m lab up`; copy inventory/lab.example.yaml for machines of your own.\n"
    text += yaml.safe_dump(document, sort_keys=False)
    beside = INVENTORY.with_suffix(".new")
    beside.write_text(text)
    beside.replace(INVENTORY)
    return INVENTORY


def status() -> list[tuple[str, str, str]]:
    """One line for each part of the lab: name, state, how to reach it or where to look."""
    lines = []
    for name in SERVICES:
        service = running(name)
        lines.append((name, "up" if service else "down", f"{service.url}  log: {service.log}" if service else ""))
    for host in machine.existing():
        spec = host.spec
        detail = f"Debian {spec.release}, {spec.gpus} GPUs  {' '.join(host.ssh_argv())}"
        lines.append((host.name, "up" if host.running else "off", detail))
    return lines
