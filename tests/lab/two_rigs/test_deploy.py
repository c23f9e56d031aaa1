"""The whole deploy, end to end: bare hosts, every kind of interruption, a serving endpoint.

The tests build on each other, in file order: what one deploys the next one breaks or inspects.
"""

from __future__ import annotations

import json
import re

import pytest

from lab import machine
from tests.lab.rigs import Rigs, wait_for_ordered_reboot
from tests.lab.two_rigs.conftest import FIRST, SECOND

# Where a deploy is killed on its way to the first served endpoint: what it prints when the step has begun.
KILLS = [
    r"base \| Install required tools",
    r"model \| Install the downloader's packages",
    r"kernel \| Install the kernel headers",
    r"driver \| Install the NVIDIA driver",
    r"cuda \| Install the CUDA toolkit",
    r"docker \| Install Docker",
    r"reboot \| Reboot if",
    r"config \| Pull",
    r"serve \| Serve",
    r"verify \| Verify",
]

# Done to a converged host by hand, the check of the audit that must notice, and the operation that must repair it.
BREAKS = {
    "apt-get remove -qq -y docker-compose-plugin": ("docker-packages", "docker | Install Docker"),
    "sed -i s/nvidia-container-runtime/runc/ /etc/docker/daemon.json": (
        "docker-config",
        "docker | Configure Docker in daemon.json",
    ),
    "sed -i s/NVFP4/FP4/ /etc/rigup/endpoints/main/*/config.json": (
        "config-patches",
        "config | Write the patched config.json of main",
    ),
    "sysctl -qw vm.swappiness=60": ("base-sysctl", "base | Apply vm.swappiness"),
    "echo '# mine' >> /usr/local/lib/systemd/system/llm@main.service": (
        "serve-unit",
        "serve | Serve vllm-nvfp4-cu130 as main",
    ),
    "systemctl stop llm@main.service": ("serve-running", "serve | Serve vllm-nvfp4-cu130 as main"),
}


def disks(rigs: Rigs) -> dict[str, dict[str, str]]:
    """All files of all hosts, less sudo's own mark of its first use by a user."""
    found = {name: machine.get(name).files() for name in rigs.hosts}
    for files in found.values():
        files.pop("home/ops/.sudo_as_admin_successful", None)
    return found


def test_a_dry_run_on_bare_hosts_changes_nothing_on_them(rigs: Rigs) -> None:
    before = disks(rigs)
    result = rigs.deploy("--dry")
    assert result.code == 0, result.output
    assert disks(rigs) == before


@pytest.mark.parametrize("kill", KILLS)
def test_a_deploy_killed_at_any_step_leaves_hosts_that_the_next_one_can_work_with(rigs: Rigs, kill: str) -> None:
    rigs.deploy_killed_at(kill)
    for name in rigs.hosts:
        wait_for_ordered_reboot(machine.get(name))


def test_the_next_deploy_ends_with_served_endpoints(rigs: Rigs) -> None:
    result = rigs.deploy()
    assert result.code == 0, result.output
    for name in rigs.hosts:
        state = machine.get(name).shell("systemctl is-active llm@main.service").stdout.strip()
        assert state == "active", result.output


def test_the_endpoint_completes_a_chat(rigs: Rigs) -> None:
    request = {"model": "Qwen3.5-397B-A17B", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    # Random weights may end an answer at any token.
    request["ignore_eos"] = True
    for name in rigs.hosts:
        answer = machine.get(name).shell(
            "curl -sS --max-time 300 -H 'Content-Type: application/json' --data @- http://127.0.0.1:8000/v1/chat/completions",
            stdin=json.dumps(request),
            timeout=330,
        )
        assert json.loads(answer.stdout)["usage"]["completion_tokens"] == 8, answer.stdout


def test_root_and_sudo_logins_on_both_distributions_reach_the_same_state(rigs: Rigs) -> None:
    plans = [json.loads(machine.get(name).shell("cat /etc/rigup/plan.json").stdout) for name in (FIRST, SECOND)]
    for plan in plans:
        del plan["host"], plan["digest"]
    assert plans[0] == plans[1]
    # Python's packages and what it compiles have names of their own in each of its versions.
    pythons = r"\( -name venv -o -name client -o -name __pycache__ \)"
    listing = f"cd / && find etc/rigup usr/local/lib/rigup {pythons} -prune -o -type f -printf '%m %u %p\\n' | sort"
    first, second = (machine.get(name).shell(listing).stdout for name in (FIRST, SECOND))
    assert first == second


def test_the_audit_finds_nothing(rigs: Rigs) -> None:
    result = rigs.audit()
    assert result.code == 0, result.output


def test_a_second_deploy_changes_nothing(rigs: Rigs) -> None:
    result = rigs.deploy()
    assert result.code == 0, result.output
    assert result.changed() == []


def test_a_dry_run_on_converged_hosts_changes_nothing_and_expects_no_change(rigs: Rigs) -> None:
    before = disks(rigs)
    result = rigs.deploy("--dry")
    assert result.code == 0, result.output
    plan = rigs.run("rigup", "plan")
    assert plan.code == 0, plan.output
    assert disks(rigs) == before


def test_what_was_broken_by_hand_is_named_by_the_audit_and_is_all_that_the_next_deploy_changes(rigs: Rigs) -> None:
    host = machine.get(FIRST)
    for command in BREAKS:
        host.shell(command)
    found = rigs.audit("--hosts", FIRST)
    assert found.code == 2, found.output
    for check, _ in BREAKS.values():
        assert re.search(rf"^{FIRST}: {check} +FAILED", found.output, re.MULTILINE), (check, found.output)
    result = rigs.deploy()
    assert result.code == 0, result.output
    repaired = {f"{FIRST} {operation}" for _, operation in BREAKS.values()}
    # Docker was restarted, so containers must show again that they see the GPUs.
    assert set(result.changed()) == repaired | {f"{FIRST} verify | Verify that main serves"}
    assert rigs.audit().code == 0
    assert rigs.deploy().changed() == []
