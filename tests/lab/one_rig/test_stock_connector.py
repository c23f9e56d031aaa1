"""pyinfra's own ssh connector and `@rig` see the same: their plans are equal, whatever state the host is in.

That it takes a bare host to the same state, to the last package, is seen in `test_rebuild.py`. The last test here
leaves the host bare, so no other file may come after this one.
"""

from __future__ import annotations

from typing import Any

from tests.lab.one_rig.rig import DRIFTS, OneRig, names


def plan_of_both(rig: OneRig, code: int) -> list[dict[str, Any]]:
    """Compare the plan with all facts read ahead, over plain ssh, and with the facts that this run recorded."""
    ahead = rig.plan("rig", code)
    plain = rig.plan("ssh", code)
    assert ahead == plain
    assert rig.plan("rig", code) == plain
    return plain


def test_on_a_converged_host_both_connectors_plan_nothing(one_rig: OneRig) -> None:
    one_rig.deploy()
    assert names(plan_of_both(one_rig, 0), "change", "unknown") == set()


def test_a_deploy_over_plain_ssh_changes_nothing_after_one_over_rig(one_rig: OneRig) -> None:
    result = one_rig.rigs.deploy(RIGUP_CONNECTOR="ssh")
    assert result.code == 0, result.output
    assert result.changed() == []


def test_on_a_half_broken_host_both_connectors_plan_the_same_repairs(one_rig: OneRig) -> None:
    one_rig.drift()
    one_rig.host.shell("systemctl stop llm@main.service")
    planned = names(plan_of_both(one_rig, 2), "change", "unknown")
    assert {operation for drift in DRIFTS for operation in drift.operations} <= planned


def test_on_a_fresh_host_under_the_same_name_no_answer_of_the_old_one_is_believed(one_rig: OneRig) -> None:
    before = names(one_rig.plan(), "nothing")
    one_rig.host.reset()
    fresh = plan_of_both(one_rig, 2)
    # All but what a bare host has already: no conflicting packages, no stale sources, one kernel setting.
    assert len(names(fresh, "change")) > len(fresh) * 2 / 3
    assert {"docker | Install Docker", "cuda | Install the CUDA toolkit"} <= before & names(fresh, "change")
