"""Long repetitions, run by `make soak`; test_deploy.py has the short form of each."""

import random
from pathlib import Path

import pytest

from lab import machine
from tests.lab.rigs import Rigs, wait_for_ordered_reboot
from tests.lab.two_rigs.conftest import FIRST, SPECS
from tests.unit.store_world import Rig, hub_of, killed_at_random, publish

pytestmark = pytest.mark.soak


def test_thirty_deploys_killed_at_random_moments_leave_a_host_that_the_next_one_finishes(rigs: Rigs) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    for name in rigs.hosts:
        machine.get(name).create(SPECS[name])
    for _ in range(30):
        rigs.deploy_killed_after(moments.uniform(0.5, 40))
    for name in rigs.hosts:
        wait_for_ordered_reboot(machine.get(name))
    result = rigs.deploy()
    assert result.code == 0, result.output
    assert rigs.deploy().changed() == []
    audit = rigs.audit()
    assert audit.code == 0, audit.output


def test_ten_power_cuts_during_deploys_are_finished_by_the_next_one(rigs: Rigs) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    host = machine.get(FIRST)
    host.create(SPECS[FIRST])
    for _ in range(10):
        rigs.deploy_killed_after(moments.uniform(2, 30))
        host.kill()
    result = rigs.deploy()
    assert result.code == 0, result.output
    assert rigs.deploy().changed() == []
    audit = rigs.audit()
    assert audit.code == 0, audit.output


def test_thirty_downloads_killed_at_random_moments_leave_nothing_false_and_one_finishes(
    tmp_path: Path,
) -> None:
    repository = publish(tmp_path / "published")
    with hub_of(repository, tmp_path / "hub") as hub:
        killed_at_random(Rig(tmp_path / "rig1", hub), 30)
