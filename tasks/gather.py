"""Read what preflight needs to know about the hosts, all of them at the same time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, cast

import gevent
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.facts import FactBase
from pyinfra.api.host import Host
from pyinfra.context import ctx_host, state
from pyinfra.facts.deb import DebPackages

from rigup.config.settings import Settings
from rigup.distros.driver import conflicting, driver_packages
from rigup.distros.table import KERNEL_PACKAGES, distro_id
from rigup.errors import Problem, ProblemsError, RigupError
from rigup.facts.docker import DockerdFlags, ImageDigests, OtherContainers
from rigup.facts.endpoints import Endpoints
from rigup.facts.files import FileInfo, FileState, FileText
from rigup.facts.hardware import BoundDrivers, CpuCount, DiskFree, FileSystemLabels, PciDevices, SecureBoot, Slots
from rigup.facts.kernel import DisabledModules, GrubDefaults, InitrdSizes, KernelState
from rigup.facts.network import Addresses, HostProxies, ListeningPorts, Reachable
from rigup.facts.nvidia import Cards, DriverState, DriverStateValue, GpuList
from rigup.facts.packages import (
    AptErrors,
    AptSources,
    BrokenPackages,
    FailedBuilds,
    HeldPackages,
    InstalledVersions,
    Removals,
)
from rigup.facts.reading import Fact
from rigup.facts.serving import ModelStamp
from rigup.facts.store import FileSizes
from rigup.facts.system import Architecture, Container, InitSystem, MemoryTotal, OsRelease, Privilege
from rigup.facts.units import ActiveUnits, UnitState
from rigup.host_config import CONTAINERD_TOML, DAEMON_JSON, daemon_variables, docker_store
from rigup.lock.lockfile import Lock
from rigup.operations.systemd import SERVING
from rigup.paths import CLIENT
from rigup.plan.model import Plan
from rigup.preflight.disk import disk_paths, has_all_files
from rigup.preflight.hardware import nvidia_gpus
from rigup.preflight.network import destinations
from rigup.preflight.snapshot import (
    DiskFacts,
    EndpointFacts,
    HardwareFacts,
    HostFacts,
    NetworkFacts,
    SoftwareFacts,
    SystemFacts,
)
from rigup.preflight.software import FOREIGN, MODULE_PACKAGES
from rigup.resources import FILES

# With its directory: the PATH of a login without root has no sbin.
UPDATE_GRUB = "/usr/sbin/update-grub"

T = TypeVar("T")


class Read(Protocol):
    """Read a fact on one host."""

    def __call__(self, kind: Callable[[], Fact[T]], **arguments: object) -> T: ...


@dataclass(frozen=True)
class System:
    """What is read first, because everything else depends on it. `privilege` is root, sudo or none."""

    os_release: Mapping[str, str]
    privilege: str


def on_each(hosts: list[Host], read: Callable[[Host], T]) -> dict[str, T]:
    """Return what `read` returns for each host. Raises ProblemsError for hosts that stopped answering."""

    def one(host: Host) -> T | Problem:
        try:
            with ctx_host.use(host):
                return read(host)
        except PyinfraError as error:
            return Problem(host.name, "connection", str(error), "check that the host is up, and run again")

    jobs = {host.name: gevent.spawn(one, host) for host in hosts}
    gevent.joinall(jobs.values(), raise_error=True)
    found = {name: job.value for name, job in jobs.items()}
    if problems := [value for value in found.values() if isinstance(value, Problem)]:
        raise ProblemsError(problems)
    return found


def read_system(host: Host) -> System:
    """Read distribution and privilege, both without sudo: one that asks for a password would fail every fact."""
    return System(_fact(host, OsRelease, sudo=False), _fact(host, Privilege, sudo=False))


def distro_of(system: System, settings: Settings) -> str | None:
    """Return NVIDIA's name for the distribution; None if it is unsupported or lacks the driver branch."""
    try:
        distro = distro_id(system.os_release)
        driver_packages(distro, settings.driver_branch)
    except RigupError:
        # Preflight reports it with the host's other problems. There is nothing to resolve for it.
        return None
    return distro


def gather(host: Host, system: System, plan: Plan, settings: Settings, lock: Lock) -> HostFacts:
    """Read all that preflight checks. Raises PyinfraError if the host stops answering."""
    sudo = bool(host.data.get("_sudo")) and system.privilege == "sudo"

    def read(kind: Callable[[], Fact[T]], **arguments: object) -> T:
        return _fact(host, kind, sudo, **arguments)

    software, kernel = _software(read, plan, lock), read(KernelState)
    return HostFacts(
        SystemFacts(
            os_release=system.os_release,
            architecture=read(Architecture),
            init=read(InitSystem),
            privilege=system.privilege,
            kernel_arguments=kernel.arguments,
            uses_grub=read(FileInfo, path=UPDATE_GRUB) is not None and not kernel.systemd_boot,
            grub_defaults=read(GrubDefaults),
            next_kernel=kernel.boots_next,
            container=read(Container),
            disabled_modules=read(DisabledModules),
        ),
        _hardware(read),
        _disk(read, plan, settings, software),
        _network(read, plan, settings, software),
        software,
        _endpoints(read, plan),
    )


def _fact(host: Host, kind: Callable[[], Fact[T]], sudo: bool, **arguments: object) -> T:
    """Read a fact. Raises PyinfraError if the host was lost; pyinfra would continue with the fact's default."""
    value: T = host.get_fact(cast(type[FactBase[T]], kind), _sudo=sudo, **arguments)
    if host in state.failed_hosts:
        raise PyinfraError("the connection was lost while preflight read the host")
    return value


def _hardware(read: Read) -> HardwareFacts:
    pci = read(PciDevices)
    gpus = [card.address for card in nvidia_gpus(pci)]
    return HardwareFacts(
        memory=read(MemoryTotal),
        secure_boot=read(SecureBoot),
        pci=pci,
        cpus=read(CpuCount),
        slots=read(Slots, addresses=gpus),
        bound=read(BoundDrivers, addresses=gpus),
        gpu_indices={gpu.uuid: gpu.index for gpu in read(GpuList)},
        cards=read(Cards),
    )


def _software(read: Read, plan: Plan, lock: Lock) -> SoftwareFacts:
    leaving = conflicting(read(DebPackages))
    names = {name for groups in lock.packages.values() for group in groups.values() for name in group}
    return SoftwareFacts(
        installed=read(InstalledVersions, names=sorted({*names, *MODULE_PACKAGES, *KERNEL_PACKAGES})),
        apt_sources=read(AptSources),
        images=read(ImageDigests),
        venvs=[venv.path for venv in plan.venvs if read(FileInfo, path=venv.done)],
        has_client=_is_client(read(FileInfo, path=f"{CLIENT}/requirements.lock")),
        daemon_json=read(FileText, path=DAEMON_JSON),
        containerd_toml=read(FileText, path=CONTAINERD_TOML),
        foreign=[path for path in FOREIGN if read(FileInfo, path=path)],
        conflicting=leaving,
        removals=read(Removals, names=leaving),
        containers=read(OtherContainers),
        driver=_kept_driver(read(DriverState)),
        held=read(HeldPackages),
        apt_errors=read(AptErrors),
        unconfigured=read(BrokenPackages).packages,
        failed_builds=read(FailedBuilds),
        dockerd_flags=read(DockerdFlags),
    )


def _kept_driver(driver: DriverStateValue) -> str | None:
    """Return the version of the loaded driver; None if it was removed since the boot and only its module remains."""
    return driver.loaded if driver.userspace or driver.on_disk else None


def _is_client(requirements: FileState | None) -> bool:
    """Return whether the verification client is complete: the copy of its requirements is written last."""
    expected = (FILES / "client-requirements.lock").read_bytes()
    return requirements is not None and requirements.sha256 == hashlib.sha256(expected).hexdigest()


def _disk(read: Read, plan: Plan, settings: Settings, software: SoftwareFacts) -> DiskFacts:
    stamps = {item.path: read(ModelStamp, path=item.path) for item in plan.checkpoints}
    source = settings.model_source
    directories = {
        item.path: [read(FileSizes, directory=path, names=sorted(item.listing)) for path in item.places_in(source)]
        for item in plan.checkpoints
        if source
    }
    store = docker_store(software.daemon_json, software.containerd_toml, software.dockerd_flags)
    return DiskFacts(
        disks=read(DiskFree, paths=disk_paths(settings, store)),
        labels=read(FileSystemLabels) if settings.model_disk else (),
        stored_bytes={path: stamp.present_bytes + stamp.arriving_bytes for path, stamp in stamps.items()},
        initrd_bytes=read(InitrdSizes),
        has_model_source=source is None or read(FileSizes, directory=source, names=[]) is not None,
        in_model_source=[
            item.path for item in plan.checkpoints if source and has_all_files(directories[item.path], item.listing)
        ],
    )


def _network(read: Read, plan: Plan, settings: Settings, software: SoftwareFacts) -> NetworkFacts:
    proxies = read(HostProxies)
    # Docker prefers the proxies of its daemon.json.
    proxies = replace(proxies, docker={**proxies.docker, **daemon_variables(software.daemon_json)})
    return NetworkFacts(
        listeners=read(ListeningPorts),
        reachable={
            (address, port): read(Reachable, address=address, port=port)
            for address, port in destinations(plan, settings, proxies)
        },
        addresses=read(Addresses),
        proxies=proxies,
    )


def _endpoints(read: Read, plan: Plan) -> EndpointFacts:
    endpoints = read(Endpoints)
    gateways = {each.name: read(UnitState, unit=each.gateway) for each in plan.endpoints if each.public_address}
    return EndpointFacts(
        active_units=read(ActiveUnits, pattern=SERVING),
        ports=endpoints.busy_ports,
        gateways={
            name: port for name, unit in gateways.items() if unit.runs and (port := endpoints.port_in_force(name))
        },
        failed={key: f"was tried here at {tried.at} and {tried.why}" for key, tried in endpoints.failed.items()},
    )
