"""The audit on a deployed host: it changes nothing and finds exactly what was broken, until a deploy repairs it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree

import pytest

from rigup.facts.drift import DailyAuditValue, parse_daily_audit
from rigup.paths import DAILY_AUDIT
from tests.lab.breaks import DOCKER, HEAVY, LIGHT, LIST, STOPPED, Break
from tests.lab.one_rig.rig import NAME, OneRig


def audit(rig: OneRig, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code and what `rigup audit --json` says."""
    result = rig.rigs.run("rigup", "audit", "--json", *arguments)
    assert result.output.startswith("{"), result.output
    return result.code, json.loads(result.output)


def findings(told: dict[str, Any]) -> set[str]:
    return {check["check"] for check in told["checks"] if check["result"] == "finding"}


def test_a_deployed_host_is_clean_to_the_last_byte_and_nothing_on_it_has_changed(one_rig: OneRig) -> None:
    one_rig.deploy()

    def state() -> str:
        units = (
            "systemctl list-units --state=active,failed --plain --no-legend --no-pager -t service,mount,timer"
            " | awk '{print $1, $3}'"
        )
        # Without the ages that `docker ps` shows.
        containers = "docker ps --all --no-trunc --format '{{.ID}} {{.Image}} {{.Names}} {{.State}}'"
        return one_rig.host.shell(
            f"{units} | grep -Ev 'session|user'; {containers}; ls -AR /run/rigup* /var/log/apt; "
            "cat /proc/sys/kernel/random/boot_id; systemctl show -p InvocationID docker llm@main"
        ).stdout

    before, running = one_rig.host.files(), state()
    code, told = audit(one_rig, "--deep")
    assert (code, told["result"], findings(told)) == (0, "clean", set()), told
    assert told["counts"]["ok"] >= 54
    assert one_rig.host.files() == before
    assert state() == running
    for check in told["checks"]:
        assert check["title"] and check["severity"] in ("critical", "major", "minor") and check["repair"]


@pytest.mark.parametrize(
    "breaks",
    [LIST, STOPPED, DOCKER[:1], DOCKER[1:], LIGHT, HEAVY],
    ids=["list", "stopped", "config", "runtime", "light", "heavy"],
)
def test_exactly_what_was_broken_is_found_and_the_deploy_repairs_it(one_rig: OneRig, breaks: tuple[Break, ...]) -> None:
    for each in breaks:
        one_rig.host.shell(each.command)
    code, told = audit(one_rig, "--deep")
    # Before anything is asserted: the next tests use this host.
    for each in breaks:
        if each.undo:
            one_rig.host.shell(each.undo)
    changed = one_rig.deploy().changed()
    assert code == 2, [check for check in told["checks"] if check["result"] not in ("ok", "finding")]
    wanted = {each.check for each in breaks} | {name for each in breaks for name in each.also}
    assert (findings(told) - wanted, wanted - findings(told)) == (set(), set())
    repairs = {check["check"]: check["repair"] for check in told["checks"] if check["result"] == "finding"}
    for check in told["checks"]:
        if check["result"] == "finding":
            assert check["expected"] and check["found"], check
    # The step that a check names changed something; a consequential break needs no step.
    steps = {line.split()[1] for line in changed}
    assert {each.check for each in breaks if not each.undo and not steps & {*repairs[each.check].split()}} == set()
    code, told = audit(one_rig, "--deep")
    assert (code, findings(told)) == (0, set())


@pytest.mark.soak
@pytest.mark.parametrize("each", [*LIST, *STOPPED, *DOCKER, *LIGHT, *HEAVY], ids=lambda each: each.check)
def test_each_single_break_fails_its_own_check(one_rig: OneRig, each: Break) -> None:
    one_rig.host.shell(each.command)
    _, told = audit(one_rig, "--deep")
    assert findings(told) == {each.check, *each.also}
    if each.undo:
        one_rig.host.shell(each.undo)
    one_rig.deploy()
    assert audit(one_rig, "--deep")[0] == 0


def test_a_finding_names_the_problem_the_reason_and_the_repairing_step_also_in_junit(one_rig: OneRig) -> None:
    one_rig.host.shell("sysctl -qw vm.swappiness=60")
    junit = one_rig.rigs.directory / "audit.xml"
    result = one_rig.rigs.run("rigup", "audit", "--step", "base", "--failed", "--junit", str(junit))
    one_rig.host.shell("sysctl -qw vm.swappiness=1")
    assert result.code == 2
    assert re.search(rf"^{NAME}: base-sysctl +FAILED\n    expected: vm.swappiness: 1\n    found:    vm.swappiness: 60\n"
                     r"    why: .*\(major; setting: sysctl\)\n    repaired by: the base step",
                     result.output, re.MULTILINE), result.output  # fmt: skip
    failed = ElementTree.parse(junit).findall(".//testcase[failure]")
    assert [case.get("name", "").startswith("test_base_sysctl[") for case in failed] == [True]


def test_a_waiver_holds_until_its_day_and_must_name_a_check(one_rig: OneRig) -> None:
    today = datetime.now(UTC).date()
    one_rig.host.shell("sysctl -qw vm.swappiness=60")
    try:
        one_rig.rigs.write(waivers={"base-sysctl": {"reason": "measured in May", "until": str(today)}})
        result = one_rig.rigs.run("rigup", "audit", "--step", "base")
        assert result.code == 0
        assert f"waived until {today}: measured in May" in result.output
        one_rig.rigs.write(waivers={"base-sysctl": {"reason": "measured in May", "until": str(today - timedelta(1))}})
        result = one_rig.rigs.run("rigup", "audit", "--step", "base")
        assert result.code == 2
        assert "the waiver expired on" in result.output
        one_rig.rigs.write(waivers={"base-sysctls": {"reason": "measured in May", "until": str(today)}})
        result = one_rig.rigs.run("rigup", "audit")
        assert result.code == 1
        assert "waivers.base-sysctls: there is no finding 'base-sysctls': did you mean base-sysctl" in result.output
    finally:
        one_rig.rigs.write()
        one_rig.host.shell("sysctl -qw vm.swappiness=1")


def test_a_change_of_the_inventory_that_is_not_deployed_is_a_finding_with_its_name(one_rig: OneRig) -> None:
    one_rig.rigs.write(fetch_timeout=4711)
    _, told = audit(one_rig, "--step", "config")
    one_rig.rigs.write()
    found = [check for check in told["checks"] if check["result"] == "finding"]
    assert [check["check"] for check in found] == ["config-plan"]
    assert found[0]["expected"] == "settings.fetch_timeout: 4711"


def test_a_login_without_sudo_checks_what_it_can_and_reports_the_rest(one_rig: OneRig) -> None:
    one_rig.host.shell(
        "useradd --create-home --shell /bin/bash guest && cp -r /home/ops/.ssh /home/guest/ && "
        "chown -R guest: /home/guest/.ssh"
    )
    entry = one_rig.rigs.hosts[NAME]
    try:
        one_rig.rigs.hosts[NAME] = {**entry, "user": "guest"}
        one_rig.rigs.write()
        code, told = audit(one_rig)
        result = one_rig.rigs.run("rigup", "audit", "--step", "docker")
    finally:
        one_rig.rigs.hosts[NAME] = entry
        one_rig.rigs.write()
        one_rig.host.shell(
            "loginctl terminate-user guest; while pgrep -u guest; do sleep 0.1; done; userdel --force --remove guest",
            check=False,
        )
    assert (code, findings(told)) == (1, set()), [check for check in told["checks"] if check["result"] == "finding"]
    unchecked = {check["check"] for check in told["checks"] if check["result"] == "unchecked"}
    assert {"config-environment", "serve-container", "docker-runtime"} <= unchecked
    assert told["counts"]["ok"] > 35
    assert "only root can read this" in result.output


def test_a_host_audits_itself_daily_if_the_setting_is_on(one_rig: OneRig) -> None:
    def look() -> DailyAuditValue:
        one_rig.host.shell("systemctl start rigup-audit.service")
        return parse_daily_audit(one_rig.host.shell(f"cat {DAILY_AUDIT}").stdout.splitlines())

    one_rig.rigs.write(daily_audit=True)
    one_rig.deploy()
    assert one_rig.host.shell("systemctl is-enabled rigup-audit.timer").stdout.strip() == "enabled"
    seen = look()
    assert (seen.findings, seen.words(datetime.now(UTC))) == ((), "clean 0 h ago")
    one_rig.host.shell("echo '# by hand' >>/etc/sysctl.d/60-rigup.conf; systemctl disable --quiet llm@main")
    assert look().findings == (
        "files: /etc/sysctl.d/60-rigup.conf was changed",
        "units: llm@main.service does not start at boot",
    )
    one_rig.deploy()
    assert look().findings == ()
    one_rig.rigs.write()
    assert findings(audit(one_rig, "--step", "watch")[1]) == {"watch-timer"}
    one_rig.deploy()
    assert one_rig.host.shell("ls /etc/systemd/system/rigup-audit.*", check=False).stdout == ""
    assert audit(one_rig, "--step", "watch")[0] == 0


def test_a_host_that_does_not_answer_could_not_be_looked_at(one_rig: OneRig) -> None:
    entry = one_rig.rigs.hosts[NAME]
    try:
        one_rig.rigs.hosts[NAME] = {**entry, "port": 9}
        one_rig.rigs.write()
        code, told = audit(one_rig)
    finally:
        one_rig.rigs.hosts[NAME] = entry
        one_rig.rigs.write()
    assert (code, told["result"], told["counts"]["ok"]) == (1, "incomplete", 0)
