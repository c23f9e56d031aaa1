"""Preflight's software checks: apt, driver and CUDA, what is replaced, and recipes that failed on the host before."""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatchcase

from rigup.distros.apt_sources import entangled_sources, repositories
from rigup.distros.driver import conflicting, driver_packages, other_drivers, upstream
from rigup.distros.table import header_packages, major_minor, short_of_cuda
from rigup.errors import RigupError
from rigup.lock.packages import cuda_group, docker_group, driver_group, driver_install, toolkit_group
from rigup.preflight.docker import CDI_BY_HAND
from rigup.preflight.snapshot import HostCheck

# A package of the driver and its version, which begins with the driver's.
DRIVER_PART = re.compile(r"(lib|xserver-xorg-video-)?nvidia-(?!container).* (\d+:)?\d{3}\.\d+[.-].*")
# Two messages of apt (apt-pkg/sourcelist.cc and deb/debmetaindex.cc).
SIGNED_TWICE = re.compile(r"Conflicting values set for option Signed-By regarding source (\S+)")
UNREADABLE = "The list of sources could not be read."
SNAP_DOCKER = "/snap/bin/docker"
RUN_FILE_DRIVER = "/usr/bin/nvidia-uninstall"
# Packages that bring a kernel module of NVIDIA's, of any origin: Debian, Ubuntu (also prebuilt) and NVIDIA.
MODULE_PACKAGES = ("nvidia-*kernel*", "nvidia-*dkms*", "linux-modules-nvidia-*", "linux-objects-nvidia-*")
FOREIGN = (SNAP_DOCKER, RUN_FILE_DRIVER, CDI_BY_HAND)
"""Paths of installations that apt does not know about."""


def packages(host: HostCheck) -> None:
    """Check that the distribution has the driver branch of the settings."""
    if host.distro is None:
        return
    try:
        driver_packages(host.distro, host.settings.driver_branch)
    except RigupError as error:
        host.problem("driver-branch", error.message, error.remedy)


def apt_sources(host: HostCheck) -> None:
    """Check that no source file of others names one of the deploy's repositories."""
    for repository in repositories(host.distro, host.settings).values() if host.distro else ():
        for path in entangled_sources(repository, host.facts.software.apt_sources):
            host.problem(
                "sources-entangled",
                f"{path} names {', '.join(sorted(repository.uris))}, which {repository.source_path} will name",
                "remove it from that file: apt fails where two files name different keys for one repository",
            )


def apt(host: HostCheck) -> None:
    """Check that apt can read its sources, once the deploy has removed the sources that its own replace."""
    errors = list(host.facts.software.apt_errors)
    if host.distro is not None:
        replaced = {uri for each in repositories(host.distro, host.settings).values() for uri in each.uris}
        errors = [line for line in errors if not _is_about(line, replaced)]
    if any(line != UNREADABLE for line in errors):
        host.problem(
            "apt-refuses",
            f"apt refuses every transaction: {'; '.join(errors[:3])}",
            "correct these files: `apt-get indextargets` there must print no error",
        )


def _is_about(line: str, uris: Collection[str]) -> bool:
    """Return whether apt complains of two keys for one of these repositories."""
    found = SIGNED_TWICE.match(line)
    return found is not None and found[1].rstrip("/") in uris


def builds(host: HostCheck) -> None:
    """Check that no module of others keeps packages from being configured: every transaction would fail again."""
    others = [module for module in host.facts.software.failed_builds if not module.startswith("nvidia")]
    if others and host.facts.software.unconfigured:
        host.problem(
            "packages-unconfigured",
            f"{', '.join(sorted(host.facts.software.unconfigured))} could not be configured, as DKMS cannot build "
            f"{', '.join(others)}",
            "remove or update that module (`dkms remove MODULE/VERSION --all`, or its package), and run "
            "`dpkg --configure --pending`; the reason is in /var/lib/dkms/MODULE/VERSION/build/make.log",
        )


def headers(host: HostCheck) -> None:
    """Check that the headers of the kernel that boots next have a known name: the driver is built against them."""
    if host.distro is None or not host.facts.system.next_kernel:
        return
    try:
        header_packages(host.distro, host.facts.system.next_kernel, host.facts.software.installed)
    except RigupError as error:
        host.problem("kernel-headers-name", error.message, error.remedy)


def held(host: HostCheck) -> None:
    """Check that the deploy changes no package that `apt-mark hold` keeps: apt would refuse the whole transaction."""
    there = host.facts.software.held
    if host.distro is None or not there:
        return
    groups = (driver_group, docker_group, toolkit_group, cuda_group)
    locked = host.lock.packages.get(host.distro, {})
    wanted = {name: version for group in groups for name, version in locked.get(group(host.settings) or "", {}).items()}
    changes = {name: f"to {version}" for name, version in wanted.items() if there.get(name, version) != version}
    leaving = conflicting(there)
    try:
        driver = driver_install(host.lock, host.distro, host.settings)
        leaving += other_drivers(there, driver)
        # The locked packages depend on others of the same version.
        parts = [name for name, version in there.items() if version and DRIVER_PART.fullmatch(f"{name} {version}")]
        changes |= {name: f"to {driver.version}" for name in parts if upstream(there[name]) != driver.version}
    except RigupError:
        # `packages` reports it.
        pass
    changes |= dict.fromkeys((name for name in leaving if there[name]), "to be removed")
    if changes:
        listed = ", ".join(
            f"{name} {there[name] or 'not installed'} ({what})" for name, what in sorted(changes.items())
        )
        host.problem(
            "packages-held",
            f"held packages that this deploy changes: {listed}",
            f"run `apt-mark unhold {' '.join(sorted(changes))}` there; `apt-mark hold` again once the deploy is done",
        )


def driver_cuda(host: HostCheck) -> None:
    """Check that the driver branch supports the CUDA version of every image."""
    branch = host.settings.driver_branch
    for endpoint in host.plan.endpoints:
        needs = [version for version in (endpoint.image_cuda, endpoint.min_driver_cuda) if version]
        floor = max(needs, key=major_minor, default=None)
        what = endpoint.image_tag or f"recipe {endpoint.recipe}"
        if floor and (short := short_of_cuda(branch, floor)):
            brings, able = short
            host.problem(
                "driver-cuda",
                f"driver_branch {branch} brings CUDA {brings}; {what} needs {floor}",
                f"set driver_branch to {' or '.join(map(str, able))}"
                if able
                else "choose a recipe with an older image",
            )


def driver_change(host: HostCheck) -> None:
    """Refuse to change the driver while an endpoint serves: its next process would fail, and the reboot be refused."""
    if host.distro is None or not host.facts.endpoints.active_units:
        return
    try:
        driver = driver_install(host.lock, host.distro, host.settings)
    except RigupError:
        # `packages` reports it.
        return
    installed = host.facts.software.installed
    other = {there for name, version in driver.packages.items() if (there := installed.get(name, version)) != version}
    if driver.module in installed and not other:
        return
    found = ", ".join(sorted({upstream(version) for version in other if version})) or "another driver"
    units = " ".join(sorted(host.facts.endpoints.active_units))
    host.problem(
        "driver-serving",
        f"{found} is installed and would become {driver.version}, with a reboot, while {units} serves",
        f"when it may stop, run `systemctl stop {units}` there and deploy again: the deploy starts it at the end. "
        f"Until then exclude the host (`--exclude {host.plan.host}`) or keep its driver (`driver_version`)",
    )


def failed(host: HostCheck) -> None:
    """Refuse a recipe that was rolled back on this host, unless the settings say to retry it."""
    for endpoint in host.plan.endpoints:
        why = host.facts.endpoints.failed.get((endpoint.name, endpoint.generation))
        if why is not None and not host.settings.retry:
            host.problem(
                "recipe-failed",
                f"{endpoint.recipe} as {endpoint.name} {why}",
                "choose another recipe, or try this one again with `--data retry=true`",
            )


def foreign(host: HostCheck) -> None:
    """Check that Docker and the driver were installed with apt, if at all."""
    if SNAP_DOCKER in host.facts.software.foreign:
        host.problem(
            "docker-snap",
            f"Docker is installed as a snap ({SNAP_DOCKER}), which conflicts with Docker's own packages",
            "save the data of its containers and run `snap remove docker` there",
        )
    if RUN_FILE_DRIVER in host.facts.software.foreign:
        host.problem(
            "driver-run-file",
            f"the driver was installed with NVIDIA's .run file ({RUN_FILE_DRIVER}); apt would overwrite its files",
            "run `nvidia-uninstall` there, and reboot",
        )
        return
    driver, installed = host.facts.software.driver, host.facts.software.installed
    if driver and not any(fnmatchcase(name, pattern) for name in installed for pattern in MODULE_PACKAGES):
        host.problem(
            "driver-unknown",
            f"driver {driver} is loaded, and neither an apt package nor NVIDIA's .run file has installed it: apt would "
            "install a second one next to it",
            "remove it as it was installed (by the image, the provider's agent or `make install`; `modinfo -n nvidia` "
            "and `type -a nvidia-smi` show where it is) and reboot, or use an image without a driver",
        )


def replaced(host: HostCheck) -> None:
    """Check that replacing the distribution's packages takes nothing else away, and stops nobody's containers."""
    software = host.facts.software
    if others := sorted({*software.removals} - {*software.conflicting}):
        host.problem(
            "packages-removed",
            f"{', '.join(sorted(software.conflicting))} must be replaced; apt would remove {', '.join(others)} as well",
            f"if they are not needed, run `apt-get remove {' '.join(others)}` there",
        )
    docker = conflicting(software.conflicting, "docker")
    if docker and software.containers and not host.settings.replace_docker:
        host.problem(
            "docker-replaced",
            f"Docker CE must replace {', '.join(docker)}, which stops running containers: "
            f"{', '.join(software.containers)}",
            "stop them when they may stop, or set `replace_docker: true`: images and volumes stay, and containers with "
            "a restart policy start again",
        )


def interrupted(host: HostCheck) -> None:
    """Warn about other people's containers that stop while the driver or Docker is installed."""
    changes = [
        what
        for what, group in (("a reboot for the driver", driver_group(host.settings)),
                            ("a restart of Docker", docker_group(host.settings)))
        if host.lacks_packages(group)
    ]  # fmt: skip
    if changes and host.facts.software.containers:
        host.problem(
            "docker-stopped",
            f"{' and '.join(changes)} will stop {', '.join(host.facts.software.containers)}",
            "interrupt the deploy if they must not stop now; those with a restart policy start again",
        )
