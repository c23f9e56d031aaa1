"""Refuse before touching: every host is looked at once, and every problem is shown at once.

pyinfra prepares the hosts side by side, each in a greenlet of its own. The first to arrive here looks at the whole
fleet, so that one table shows what is wrong anywhere, and nothing changes on any host before all of it is gone.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import gevent
from gevent.lock import RLock
from pyinfra import host as current_host
from pyinfra import state
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.facts import FactBase
from pyinfra.api.host import Host
from pyinfra.api.operation import OperationMeta
from pyinfra.context import ctx_host

from rigup.catalog.loader import Catalog, default_catalog
from rigup.catalog.memory import fit
from rigup.catalog.select import recipe_of
from rigup.config.settings import Settings
from rigup.distros.driver import driver_packages
from rigup.distros.table import distro_id
from rigup.errors import Finding, InputError, Problem, ProblemsError, RigupError, table_of
from rigup.facts.docker import ImageDigests
from rigup.facts.endpoints import Endpoints
from rigup.facts.files import FileInfo, FileState, FileText
from rigup.facts.hardware import CpuCount, DiskFree, FileSystemLabels, PciDevices, SecureBoot, Slots, nvidia_gpus
from rigup.facts.kernel import KernelState
from rigup.facts.network import Addresses, HostProxies, ListeningPorts, Reachable
from rigup.facts.nvidia import GpuList
from rigup.facts.packages import AptSources, InstalledVersions
from rigup.facts.serving import ModelStamp
from rigup.facts.store import FileSizes
from rigup.facts.system import Architecture, InitSystem, MemoryTotal, OsRelease, Privilege
from rigup.facts.units import ActiveUnits, UnitState
from rigup.host_config import CONTAINERD_TOML, DAEMON_JSON, NO_PROXIES, Proxies, daemon_variables, docker_store
from rigup.lock import resolve
from rigup.lock.lockfile import Lock
from rigup.operations.systemd import SERVING
from rigup.plan.build import make_plan
from rigup.plan.model import Plan
from rigup.preflight import FOREIGN, HostFacts, check, destinations, disk_paths, holds, remarks
from rigup.render.peers import Peer, fleet_of, peers_of
from rigup.render.systemd import CLIENT
from rigup.resources import FILES

__all__ = ["Context", "preflight"]

# Named whole: a login without root has no sbin in its PATH, and is told of that alone.
UPDATE_GRUB = "/usr/sbin/update-grub"

T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """What the steps work from: a host's plan, its settings, the lock, NVIDIA's name for its distribution, its GPUs.

    `prepared` are the operations that write what endpoints are made of. `peers` are the other hosts of the
    inventory, those that this run leaves out included. `proxies` are those that programs there go by.
    """

    plan: Plan
    settings: Settings
    lock: Lock
    distro: str
    gpus: int
    peers: tuple[Peer, ...] = ()
    proxies: Proxies = NO_PROXIES
    prepared: list[OperationMeta] = field(default_factory=list)


class Refused(PyinfraError):
    """The fleet has problems; they have been printed."""


_looking = RLock()
_contexts: dict[str, Context] = {}
_refusals: list[RigupError] = []


def preflight() -> Context:
    """The context of the current host. Stops the run, with one table of all hosts' problems, unless there are none."""
    with _looking:
        # Hosts that waited meanwhile are told as well, but not in another table.
        if not _contexts and not _refusals:
            try:
                _contexts.update(_look_at(sorted(state.inventory.get_active_hosts(), key=lambda host: host.name)))
            except RigupError as error:
                _show(error.table(color=sys.stderr.isatty()) if isinstance(error, ProblemsError) else str(error))
                _refusals.append(error)
        if _refusals:
            raise Refused("preflight refused; nothing was changed") from _refusals[0]
    return _contexts[current_host.name]


def _show(text: str) -> None:
    print(f"\n{text}\n", file=sys.stderr)


def _look_at(hosts: list[Host]) -> dict[str, Context]:
    """The contexts of all hosts. Raises ProblemsError, or another RigupError for what was written wrongly."""
    catalog = default_catalog()
    settings = {host.name: Settings.from_data(host.data.dict(), host.name) for host in hosts}
    _check_recipes(settings, catalog)
    systems = _on_each(hosts, _system)
    distros = {name: _distro(system, settings[name]) for name, system in systems.items()}
    wants = [resolve.Want(settings[name], distro) for name, distro in distros.items()]
    lock = resolve.ensure(Path(hosts[0].data.rigup_lock), wants, catalog)
    plans = {
        name: make_plan(name, wanted, catalog, lock, resolve.published_for(wanted, catalog, lock, resolve.CACHE))
        for name, wanted in settings.items()
    }
    facts = _on_each(hosts, lambda host: _facts(host, systems[host.name], plans[host.name], settings[host.name], lock))
    problems = [problem for name, plan in plans.items() for problem in check(plan, settings[name], facts[name], lock)]
    if problems:
        raise ProblemsError(problems)
    if said := [each for name, plan in plans.items() for each in remarks(plan, settings[name], facts[name], lock)]:
        _show(table_of(said, "Worth knowing; the deploy goes on.", color=sys.stderr.isatty()))
    # The whole inventory, also where this run is limited to some hosts.
    fleet = fleet_of(
        (
            host.name,
            host.data.ssh_hostname,
            settings.get(host.name) or Settings.from_data(host.data.dict(), host.name),
        )
        for host in state.inventory
    )
    return {
        name: Context(
            plan,
            settings[name],
            lock,
            distros[name] or "",
            len(nvidia_gpus(facts[name].pci)),
            peers_of(name, fleet),
            facts[name].proxies,
        )
        for name, plan in plans.items()
    }


def _check_recipes(settings: dict[str, Settings], catalog: Catalog) -> None:
    """Raises InputError with every recipe that the catalog lacks, or that loads for minutes and cannot fit."""
    findings = []
    for name, wanted in settings.items():
        for endpoint, entry in wanted.endpoints.items():
            key = f"endpoints.{endpoint}.recipe" if entry.recipe else "recipe"
            try:
                recipe = recipe_of(wanted, endpoint, catalog)
            except RigupError as error:
                findings.append(Finding(name, None, key, error.message, error.remedy))
                continue
            estimate = fit(recipe, catalog.checkpoint(recipe.checkpoint))
            if estimate and estimate.impossible:
                wrong = f"recipe {recipe.id} does not fit its GPUs, {estimate}"
                findings.append(Finding(name, None, key, wrong, f"`rigup check {recipe.id}` says what to change"))
    if findings:
        raise InputError(findings)


def _on_each(hosts: list[Host], look: Callable[[Host], T]) -> dict[str, T]:
    """What `look` returns for each host, asked side by side. Raises ProblemsError for hosts that stopped answering."""

    def one(host: Host) -> T | Problem:
        try:
            with ctx_host.use(host):
                return look(host)
        except PyinfraError as error:
            return Problem(host.name, "connection", str(error), "see that the host is up, and run again")

    jobs = {host.name: gevent.spawn(one, host) for host in hosts}
    gevent.joinall(jobs.values(), raise_error=True)
    found = {name: job.value for name, job in jobs.items()}
    if problems := [value for value in found.values() if isinstance(value, Problem)]:
        raise ProblemsError(problems)
    return found


def _fact(host: Host, kind: type[FactBase[T]], sudo: bool, **arguments: Any) -> T:
    """A fact. Raises PyinfraError where the host was lost over it; pyinfra would go on with the fact's default."""
    value: T = host.get_fact(kind, _sudo=sudo, **arguments)
    if host in state.failed_hosts:
        raise PyinfraError("it was lost while it was being looked at")
    return value


@dataclass(frozen=True)
class System:
    """What is asked first: the rest depends on it. `privilege` is root, sudo or none."""

    os_release: dict[str, str]
    privilege: str


def _system(host: Host) -> System:
    # Under a sudo that asks for a password every other fact would fail, so nothing here uses it.
    return System(_fact(host, OsRelease, sudo=False), _fact(host, Privilege, sudo=False))


def _distro(system: System, settings: Settings) -> str | None:
    """NVIDIA's name for the distribution, where there is one with the driver branch that is wanted."""
    try:
        distro = distro_id(system.os_release)
        driver_packages(distro, settings.driver_branch)
    except RigupError:
        # One row of the table, beside whatever else is wrong with that host; there is nothing to resolve.
        return None
    return distro


def _facts(host: Host, system: System, plan: Plan, settings: Settings, lock: Lock) -> HostFacts:
    sudo = bool(host.data.get("_sudo")) and system.privilege == "sudo"

    def fact(kind: type[FactBase[T]], **arguments: Any) -> T:
        return _fact(host, kind, sudo, **arguments)

    proxies = fact(HostProxies)
    # Docker takes its daemon.json's first.
    daemon, containerd = fact(FileText, path=DAEMON_JSON), fact(FileText, path=CONTAINERD_TOML)
    proxies = replace(proxies, docker={**proxies.docker, **daemon_variables(daemon)})
    endpoints = fact(Endpoints)
    stamps = {item.path: fact(ModelStamp, path=item.path) for item in plan.checkpoints}
    source = settings.model_source
    sources = {
        item.path: [
            fact(FileSizes, directory=place, names=sorted(item.listing)) for place in item.places_in(source or "")
        ]
        for item in plan.checkpoints
        if source
    }
    gateways = {each.name: fact(UnitState, unit=each.gateway) for each in plan.endpoints if each.public_address}
    pci = fact(PciDevices)
    names = {name for groups in lock.packages.values() for group in groups.values() for name in group}
    return HostFacts(
        os_release=system.os_release,
        architecture=fact(Architecture),
        init=fact(InitSystem),
        privilege=system.privilege,
        memory=fact(MemoryTotal),
        secure_boot=fact(SecureBoot),
        pci=pci,
        slots=fact(Slots, addresses=[card.address for card in nvidia_gpus(pci)]),
        disks=fact(DiskFree, paths=disk_paths(settings, docker_store(daemon, containerd))),
        listeners=fact(ListeningPorts),
        reachable={
            (address, port): fact(Reachable, address=address, port=port)
            for address, port in destinations(plan, settings, proxies)
        },
        stored={path: stamp.present_bytes + stamp.arriving_bytes for path, stamp in stamps.items()},
        images=fact(ImageDigests),
        venvs=[venv.path for venv in plan.venvs if fact(FileInfo, path=venv.done)],
        installed=fact(InstalledVersions, names=sorted(names)),
        gpus={gpu.uuid: gpu.index for gpu in fact(GpuList)},
        our_ports=endpoints.busy_ports,
        gateways={
            name: port for name, unit in gateways.items() if unit.runs and (port := endpoints.port_in_force(name))
        },
        addresses=fact(Addresses),
        failed={key: f"was tried here at {tried.at} and {tried.why}" for key, tried in endpoints.failed.items()},
        labels=fact(FileSystemLabels) if settings.model_disk else (),
        sources=fact(AptSources),
        proxies=proxies,
        cpus=fact(CpuCount),
        daemon=daemon,
        containerd=containerd,
        foreign=[path for path in FOREIGN if fact(FileInfo, path=path)],
        serving=fact(ActiveUnits, pattern=SERVING),
        booted_with=fact(KernelState).arguments,
        grub=fact(FileInfo, path=UPDATE_GRUB) is not None,
        source=source is None or fact(FileSizes, directory=source, names=[]) is not None,
        sourced=[item.path for item in plan.checkpoints if source and holds(sources[item.path], item.listing)],
        client=_has_client(fact(FileInfo, path=f"{CLIENT}/requirements.lock")),
    )


def _has_client(there: FileState | None) -> bool:
    """Whether the proof's virtual environment holds what it shall; the copy of its lock is written last."""
    wanted = (FILES / "client-requirements.lock").read_bytes()
    return there is not None and there.sha256 == hashlib.sha256(wanted).hexdigest()
