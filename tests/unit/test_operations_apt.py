"""apt.*: exact versions, one transaction, no surprises, and what an interrupted dpkg left is finished."""

from __future__ import annotations

from typing import Any

import pytest

from rigup.facts.packages import Removals
from rigup.operations import apt
from tests.unit.deploys import Actor, Outcome, Said
from tests.unit.test_operations_units import DOWN, NO_UNIT, shown

NVIDIA = {"nvidia-driver-cuda": "595.71.05-1", "nvidia-kernel-open-dkms": "595.71.05-1"}
INSTALLED = ["ii \tnvidia-driver-cuda\t595.71.05-1", "ii \tnvidia-kernel-open-dkms\t595.71.05-1"]
OLD = ["ii \told-driver\t550.163.01-1"]
OFFERED = [f" {name} | {version} | https://x / Packages" for name, version in NVIDIA.items()]
DONE = shown("active", "exited")
FAILED = shown("failed", "failed", Result="exit-code")
SIMULATE = "--simulate"


def host(*installed: list[str], offered: Any = (OFFERED,), units: Any = (NO_UNIT, DONE)) -> Actor:
    """A host that has these packages, one reading after the other (prepared, executed, before, after)."""
    actor = Actor().answers("dpkg-query", *installed)
    return actor.answers("apt-cache madison", *offered).answers("systemctl show", *units)


def install(actor: Actor, **arguments: Any) -> Outcome:
    return actor.does(apt.install, **{"packages": NVIDIA, **arguments})


def transactions(outcome: Outcome) -> list[str]:
    return [command for command in outcome.commands if "--unit=rigup-apt.service" in command]


def test_packages_at_their_versions_are_left_alone() -> None:
    outcome = install(host(INSTALLED))

    assert not outcome.foreseen
    assert not outcome.changed
    assert not outcome.ran("apt-get")


def test_any_version_will_do_where_none_is_named() -> None:
    assert not install(host(["ii \tcurl\t8.14.1-2"]), packages={"curl": None}).changed


def test_what_is_there_in_any_version_is_not_upgraded_with_what_is_missing() -> None:
    there = ["ii \tcurl\t8.5.0-2ubuntu10"]
    after = [*there, "ii \tpython3-venv\t3.12.3-0ubuntu2"]
    offered = [" python3-venv | 3.12.3-0ubuntu2 | x", " curl | 8.5.0-2ubuntu10.6 | x", " curl | 8.5.0-2ubuntu10 | x"]

    outcome = install(
        host(there, there, there, after, offered=(offered,)), packages={"curl": None, "python3-venv": None}
    )

    assert not outcome.failed, outcome.told
    (transaction,) = transactions(outcome)
    assert transaction.endswith("--option=APT::Install-Recommends=false python3-venv")


def test_all_packages_come_in_one_transaction_at_their_versions() -> None:
    outcome = install(host([], [], [], INSTALLED))

    assert (outcome.foreseen, outcome.changed, outcome.failed) == (True, True, False), outcome.told
    (transaction,) = transactions(outcome)
    assert transaction.endswith("nvidia-driver-cuda=595.71.05-1 nvidia-kernel-open-dkms=595.71.05-1")
    for part in (
        "--yes",
        "force-confold",
        "force-confdef",
        "DPkg::Lock::Timeout=600",
        "DEBIAN_FRONTEND=noninteractive",
    ):
        assert part in transaction


def test_a_long_installation_says_how_far_dkms_is() -> None:
    installing = [NO_UNIT, *[shown("activating", "start")] * 20, DONE]
    log = "/var/lib/dkms/nvidia/595.71.05/build/make.log"
    actor = host([], [], [], INSTALLED, units=installing).answers(
        "find /var/lib/dkms", [f"--- building {log} 1795460000 1795460040", "100", "." * 260]
    )

    outcome = install(actor.answers("journalctl", ["Building module:"]))

    assert "; building nvidia 595.71.05: 100 of about 260 files, 2.5 files/s, about 1 min 04 s left" in outcome.told


def test_only_where_a_version_is_named_may_packages_become_older() -> None:
    named = install(host([], [], [], INSTALLED))
    any_version = install(
        host([], [], [], ["ii \tcurl\t8.14.1-2"], offered=([" curl | 8.14.1-2 | x"],)), packages={"curl": None}
    )

    assert "--allow-downgrades" in transactions(named)[0]
    assert "--allow-downgrades" not in transactions(any_version)[0]


def test_lists_that_offer_the_versions_are_not_fetched_again() -> None:
    assert not install(host([], [], [], INSTALLED)).ran(" update")


def test_lists_that_lack_a_version_are_fetched_first() -> None:
    older = [line.replace("595.71.05", "595.58.03") for line in OFFERED]

    outcome = install(host([], [], [], INSTALLED, offered=(older, OFFERED), units=(NO_UNIT, DONE, DONE)))

    assert not outcome.failed, outcome.told
    update, _ = transactions(outcome)
    assert update.endswith(" update")


def test_lists_that_another_program_holds_are_waited_for() -> None:
    actor = host([], [], [], INSTALLED, offered=([], OFFERED), units=(NO_UNIT, FAILED, DONE, DONE))
    actor.answers("journalctl", ["E: Could not get lock /var/lib/apt/lists/lock. It is held by process 812 (apt-get)"])

    outcome = install(actor)

    assert not outcome.failed, outcome.told
    assert "locked by another program" in outcome.told


def test_what_no_source_offers_is_named_and_nothing_is_installed() -> None:
    outcome = install(host([], offered=(OFFERED[:1],)))

    assert outcome.failed
    assert "no apt source offers nvidia-kernel-open-dkms=595.71.05-1" in outcome.told
    assert not outcome.ran(" install ")


def test_a_transaction_that_would_remove_what_nobody_named_is_refused() -> None:
    actor = host(OLD).answers(
        SIMULATE, ["Inst nvidia-driver-cuda", "Remv desktop [1.0]", "Remv old-driver:amd64 [550]"]
    )

    outcome = install(actor, instead_of=["old-driver"])

    assert outcome.failed
    assert "would remove desktop; nothing was changed" in outcome.told
    assert not transactions(outcome)


def test_what_is_replaced_goes_in_the_same_transaction() -> None:
    actor = host(OLD, OLD, OLD, INSTALLED).answers(SIMULATE, ["Remv old-driver:amd64 [550]"])

    outcome = install(actor, instead_of=["old-driver", "older-driver"])

    assert not outcome.failed, outcome.told
    (transaction,) = transactions(outcome)
    assert transaction.endswith("nvidia-kernel-open-dkms=595.71.05-1 old-driver-")


def test_what_is_replaced_goes_also_where_all_else_is_there_already() -> None:
    both = [*INSTALLED, *OLD]

    outcome = install(host(both, both, both, INSTALLED), instead_of=["old-driver"])

    assert (outcome.foreseen, outcome.changed, outcome.failed) == (True, True, False), outcome.told
    assert not install(host(INSTALLED), instead_of=["old-driver"]).foreseen


HEADERS = {"linux-headers-6.12.41": None, "linux-headers-amd64": None}
NEWEST = [f"ii \t{name}\t6.12.63-1" for name in ("linux-headers-amd64", "linux-image-amd64")]
IMAGE_OFFERED = [f" {name} | 6.12.63-1 | x" for name in ("linux-headers-amd64", "linux-image-amd64")]


def test_what_sources_have_dropped_has_a_substitute() -> None:
    actor = host([], [], [], NEWEST, offered=(IMAGE_OFFERED,), units=(NO_UNIT, DONE, DONE))
    actor.answers(SIMULATE, ["Inst linux-headers-6.12.63 (6.12.63-1 x)", "Inst linux-image-6.12.63 (6.12.63-1 x)"])

    outcome = install(actor, packages=HEADERS, or_else={"linux-headers-6.12.41": ["linux-image-amd64"]})

    assert not outcome.failed, outcome.told
    update, transaction = transactions(outcome)
    assert update.endswith(" update")
    assert transaction.endswith(" linux-headers-amd64 linux-image-amd64")
    assert "no apt source offers linux-headers-6.12.41 any more: installing linux-image-amd64 instead" in outcome.told
    # A rebuild takes the headers back, and not a kernel that may be running.
    assert outcome.ran('"names": ["linux-headers-6.12.63"]') == 1
    assert outcome.ran("linux-image-6.12.63") == 0


def test_metapackages_are_upgraded_together_with_the_substitute() -> None:
    meta = ["ii \tlinux-headers-amd64\t6.12.57-1"]
    actor = host(meta, meta, meta, NEWEST, offered=(IMAGE_OFFERED,), units=(NO_UNIT, DONE, DONE))

    outcome = install(actor, packages=HEADERS, or_else={"linux-headers-6.12.41": ["linux-image-amd64"]})

    assert not outcome.failed, outcome.told
    assert transactions(outcome)[-1].endswith(" linux-headers-amd64 linux-image-amd64")


def test_a_substitute_is_not_for_what_is_still_offered() -> None:
    offered = [*IMAGE_OFFERED, " linux-headers-6.12.41 | 6.12.41-1 | x"]
    there = [*NEWEST, "ii \tlinux-headers-6.12.41\t6.12.41-1"]

    outcome = install(
        host([], [], [], there, offered=(offered,)),
        packages=HEADERS,
        or_else={"linux-headers-6.12.41": ["linux-image-amd64"]},
    )

    assert transactions(outcome)[0].endswith(" linux-headers-6.12.41 linux-headers-amd64")


def test_what_apt_cannot_do_is_told_in_its_own_words() -> None:
    held = "E: Unable to correct problems, you have held broken packages."
    actor = host([]).answers(SIMULATE, Said(errors=[held], ok=False))

    outcome = install(actor)

    assert outcome.failed
    assert held in outcome.told
    assert not transactions(outcome)


def test_a_failed_transaction_shows_its_last_lines() -> None:
    actor = host([], units=(NO_UNIT, FAILED)).answers("journalctl", ["Error! Bad return status for module build"])

    outcome = install(actor)

    assert outcome.failed
    assert "Bad return status for module build" in outcome.told


@pytest.mark.parametrize(
    "said",
    [
        "E: Failed to fetch http://x/y.deb  404  Not Found [IP: 10.0.0.1 80]",
        # The lists were fetched by a source of others that had no key.
        "E: There were unauthenticated packages and -y was used without --allow-unauthenticated",
    ],
)
def test_an_archive_that_has_moved_on_is_looked_at_again_once(said: str) -> None:
    actor = host([], [], [], INSTALLED, units=(NO_UNIT, FAILED, DONE, DONE))
    actor.answers("journalctl", [said])

    outcome = install(actor)

    assert not outcome.failed, outcome.told
    assert len(transactions(outcome)) == 3


def test_a_transaction_of_a_killed_deploy_is_waited_for() -> None:
    running = shown("activating", "start")

    outcome = install(host([], [], INSTALLED, units=(running, running, DONE)))

    assert not outcome.failed, outcome.told
    assert not transactions(outcome)


def test_a_hold_that_apt_honoured_in_silence_is_noticed() -> None:
    outcome = install(host([]))

    assert outcome.failed
    assert "dpkg does not have nvidia-driver-cuda 595.71.05-1" in outcome.told


BROKEN = ["iF \tnvidia-kernel-open-dkms"]


def repair(*readings: list[str], units: Any = (NO_UNIT, DONE)) -> Outcome:
    return Actor().answers("dpkg-query", *readings).answers("systemctl show", *units).does(apt.repair)


def test_whole_packages_need_no_repair() -> None:
    assert not repair([]).changed


def test_half_configured_packages_are_configured() -> None:
    outcome = repair(BROKEN, BROKEN, BROKEN, [])

    assert (outcome.changed, outcome.failed) == (True, False)
    (transaction,) = transactions(outcome)
    assert "/usr/bin/dpkg --configure --pending" in transaction


def test_what_cannot_be_configured_yet_is_left_to_later_steps() -> None:
    outcome = repair(BROKEN, units=(NO_UNIT, FAILED, DOWN))

    assert not outcome.failed
    assert "left to later steps: nvidia-kernel-open-dkms" in outcome.told
    assert any("--fix-broken install" in transaction for transaction in transactions(outcome))


@pytest.mark.parametrize(
    ("lines", "removed"),
    [
        (["Remv nvidia-driver [550.163.01-2]", "Remv libx:i386 [1]"], ["libx", "nvidia-driver"]),
        (["Inst curl (8.14.1-2 Debian:13.2/stable [amd64])", "Conf curl"], []),
    ],
)
def test_removals_are_read_from_a_simulation(lines: list[str], removed: list[str]) -> None:
    assert Removals().process(lines) == removed
