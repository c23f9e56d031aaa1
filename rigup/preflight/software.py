"""Preflight's look at what is installed: apt's sources, the driver and its CUDA, and what gave way here before."""

from __future__ import annotations

import json

from rigup.distros.apt_sources import entangled_sources, repositories
from rigup.distros.driver import driver_packages, upstream
from rigup.distros.table import major_minor, short_of_cuda
from rigup.errors import RigupError
from rigup.host_config import DAEMON_JSON
from rigup.lock.packages import driver_install
from rigup.preflight.snapshot import Case

__all__ = [
    "FOREIGN",
    "apt_sources",
    "cdi",
    "daemon_json",
    "driver_change",
    "driver_cuda",
    "failed",
    "foreign",
    "packages",
]

SNAP_DOCKER = "/snap/bin/docker"
RUN_FILE_DRIVER = "/usr/bin/nvidia-uninstall"
CDI_BY_HAND = "/etc/cdi/nvidia.yaml"
FOREIGN = (SNAP_DOCKER, RUN_FILE_DRIVER, CDI_BY_HAND)
"""What only installations have that apt does not know of."""


def packages(case: Case) -> None:
    if case.distro is None:
        return
    try:
        driver_packages(case.distro, case.settings.driver_branch)
    except RigupError as error:
        case.problem("driver", error.message, error.remedy)


def apt_sources(case: Case) -> None:
    for repository in repositories(case.distro, case.settings).values() if case.distro else ():
        for path in entangled_sources(repository, case.facts.sources):
            case.problem(
                "sources",
                f"{path} names {', '.join(sorted(repository.uris))}, which {repository.source_path} will name",
                "take it out of that file: apt stops where two files name different keys for one repository",
            )


def driver_cuda(case: Case) -> None:
    branch = case.settings.driver_branch
    for endpoint in case.plan.endpoints:
        needs = [version for version in (endpoint.image_cuda, endpoint.min_driver_cuda) if version]
        floor = max(needs, key=major_minor, default=None)
        what = endpoint.image_tag or f"recipe {endpoint.recipe}"
        if floor and (short := short_of_cuda(branch, floor)):
            brings, able = short
            case.problem(
                "driver",
                f"driver_branch {branch} brings CUDA {brings}; {what} needs {floor}",
                f"set driver_branch to {' or '.join(map(str, able))}"
                if able
                else "choose a recipe with an older image",
            )


def driver_change(case: Case) -> None:
    """A driver that is swapped under what serves breaks the next process there, and its reboot would be refused."""
    if case.distro is None or not case.facts.serving:
        return
    try:
        wanted = driver_install(case.lock, case.distro, case.settings)
    except RigupError:
        # Another check tells why there is none.
        return
    installed = case.facts.installed
    other = {there for name, version in wanted.packages.items() if (there := installed.get(name, version)) != version}
    if wanted.module in installed and not other:
        return
    found = ", ".join(sorted({upstream(version) for version in other if version})) or "another driver"
    units = " ".join(sorted(case.facts.serving))
    case.problem(
        "driver",
        f"{found} is installed and would become {wanted.version}, with a reboot, while {units} serves",
        f"when that may stop, `systemctl stop {units}` there and deploy again: it serves again at the end. "
        f"Until then leave the host out (`--exclude {case.plan.host}`) or keep its driver (`driver_version`)",
    )


def failed(case: Case) -> None:
    for endpoint in case.plan.endpoints:
        why = case.facts.failed.get((endpoint.name, endpoint.generation))
        if why is not None and not case.settings.retry:
            case.problem(
                "recipe",
                f"{endpoint.recipe} as {endpoint.name} {why}",
                "choose another recipe, or try it once more with `--data retry=true`",
            )


def foreign(case: Case) -> None:
    if SNAP_DOCKER in case.facts.foreign:
        case.problem(
            "docker",
            f"Docker is installed as a snap ({SNAP_DOCKER}), beside which Docker's own packages do not work",
            "save what its containers hold, and `snap remove docker` there",
        )
    if RUN_FILE_DRIVER in case.facts.foreign:
        case.problem(
            "driver",
            f"a driver was installed by NVIDIA's .run file ({RUN_FILE_DRIVER}), whose files apt would write over",
            "`nvidia-uninstall` there, and reboot",
        )


def cdi(case: Case) -> None:
    """The toolkit's own lies in /run, is made anew at each boot, and comes before this one once it is there."""
    if CDI_BY_HAND in case.facts.foreign:
        case.problem(
            "docker",
            f"{CDI_BY_HAND} describes the GPUs, by hand: after a change of the driver it names files that are gone",
            "remove it: the toolkit makes its own at every boot",
        )


def daemon_json(case: Case) -> None:
    text, reason = (case.facts.daemon or "").strip() or "{}", ""
    try:
        if isinstance(json.loads(text), dict):
            return
    except ValueError as error:
        reason = f": {error}"
    case.problem(
        "docker",
        f"{DAEMON_JSON} is no JSON object{reason}",
        "mend it, or move it away: our keys are merged into it",
    )
