"""Manual changes between two deploys are found and repaired, with all facts read ahead in one round trip."""

from __future__ import annotations

import re

from tests.lab.one_rig.rig import DRIFTS, NAME, OneRig, names
from tests.lab.rigs import AUDIT


def test_drift_in_many_places_is_planned_and_repaired_completely(one_rig: OneRig) -> None:
    assert names(one_rig.plan(code=0), "change", "unknown") == set()
    one_rig.drift()
    assert len(DRIFTS) >= 10
    repairs = {operation for drift in DRIFTS for operation in drift.operations}

    entries = one_rig.plan()
    certain = {entry["operation"] for entry in entries if entry["result"] == "change" and not entry["after"]}
    may_change = names(entries, "change", "unknown")
    # What only a plan asks for, a deploy must not ask for ahead of time.
    assert "cat -- /etc/sysctl.d/60-rigup.conf" not in (one_rig.rigs.directory / f"facts/{NAME}.json").read_text()
    hidden = [file for entry in entries for file in entry["files"] if file["path"].endswith("/env")]
    assert [file["diff"] for file in hidden] == [None]

    result = one_rig.deploy()
    changed = {line.removeprefix(f"{NAME} ") for line in result.changed()}
    assert changed == repairs
    # The plan was correct: everything certain was done, and nothing that it did not list.
    assert certain <= {name.partition(" | ")[2] for name in changed}
    assert changed <= may_change

    assert one_rig.deploy().changed() == []


def test_a_second_deploy_in_a_row_asks_the_host_once(one_rig: OneRig) -> None:
    one_rig.deploy()
    result = one_rig.deploy()
    assert result.changed() == []
    assert f"[{NAME}] remote executions: 1\n" in result.output


def test_another_driver_waits_until_nothing_serves_and_then_comes_whichever_was_there(one_rig: OneRig) -> None:
    host, rigs, older = one_rig.host, one_rig.rigs, ("-y", "--data", "driver_version=595.71.05")
    refused = rigs.deploy(*older)
    assert refused.code > 0, refused.output
    told = " ".join(refused.output.split())
    # The table breaks its text where a column ends.
    assert "llm@main.service serves" in told and "1 problem; nothing was changed" in told
    assert host.shell("systemctl is-active llm@main.service").stdout.strip() == "active"
    for version, arguments in (("595.71.05", older), ("595.91.07", ("-y",))):
        host.shell("systemctl stop llm@main.service")
        before = host.boot_id()
        result = rigs.deploy(*arguments)
        assert result.code == 0, result.output
        assert host.shell("cat /sys/module/nvidia/version").stdout.strip() == version
        pins = host.shell("dpkg-query -W -f '${db:Status-Abbrev}${Package}\\n' 'nvidia-driver-pinning-*'").stdout
        assert [line for line in pins.splitlines() if line.startswith("ii")] == [f"ii nvidia-driver-pinning-{version}"]
        assert host.boot_id() != before
        assert host.shell("systemctl is-active llm@main.service").stdout.strip() == "active"


def test_an_audit_whose_connection_is_cut_reconnects_and_completes(one_rig: OneRig) -> None:
    logins = "journalctl -q -o cat --grep '^Accepted publickey for ops' | wc -l"
    whole = one_rig.rigs.audit(RIGUP_PREFETCH="off")
    assert whole.code == 0, whole.output
    before = int(one_rig.host.shell(logins).stdout)
    seen: list[str] = []
    # Asked one by one, so that there is a middle.
    with one_rig.rigs.begun("pytest", *AUDIT, RIGUP_PREFETCH="off") as audit:
        assert audit.stdout is not None
        for line in audit.stdout:
            if f"{NAME}: kernel-headers " in line:
                one_rig.host.shell("pkill -9 -u ops")
            seen.append(line)
        assert audit.wait() == 0, "".join(seen)
    assert checks("".join(seen)) == checks(whole.output)
    assert int(one_rig.host.shell(logins).stdout) == before + 2


def checks(output: str) -> list[str]:
    """The lines of an audit's output that tell of a check."""
    return re.findall(rf"^{NAME}: \S+ +ok$", output, re.MULTILINE)
