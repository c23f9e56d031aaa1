"""The audit on a deployed host: it changes nothing, and finds exactly what was broken until the deploy repairs it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree

import pytest

from rigup.facts.audit import RESULT, DailyAuditValue, parse_daily_audit
from tests.lab.one_rig import NAME, OneRig

pytest_plugins = ("tests.lab.one_rig_plugin",)

STORE = "/srv/models/nvidia/Qwen3.5-397B-A17B-NVFP4"


@dataclass(frozen=True)
class Break:
    """Something broken by hand: the check that must notice, and others that cannot but notice too.

    `undo` takes it back where that is for a person and not for the deploy.
    """

    check: str
    command: str
    also: tuple[str, ...] = ()
    undo: str = ""


def removed(package: str) -> str:
    return f"dpkg --remove --force-depends {package} >/dev/null 2>&1"


CONFLICT = (
    "mkdir -p /run/c/DEBIAN && printf 'Package: docker-doc\\nVersion: 1\\nArchitecture: all\\n"
    "Maintainer: x <x@example.org>\\nDescription: x\\n' >/run/c/DEBIAN/control && "
    "dpkg-deb -b /run/c /run/c.deb >/dev/null && dpkg -i /run/c.deb >/dev/null"
)
# A process that has a library of the driver mapped which is gone from the disk.
HOLD = (
    "import mmap, os, time; f = open('/run/libnvidia-x.so', 'w+b'); f.write(b'x' * 4096); f.flush();"
    " m = mmap.mmap(f.fileno(), 0); os.unlink(f.name); time.sleep(900)"
)
AT_WORK = ("serve-reach", "serve-gpus", "serve-container", "verify-health", "verify-models", "verify-completion")

LIGHT = (
    Break("base-packages", removed("python3-venv")),
    Break("base-apt-lock", "rm /etc/apt/apt.conf.d/10rigup-lock-timeout"),
    Break("base-sysctl", "sysctl -qw vm.swappiness=60"),
    Break("base-sysctl-kept", "echo 'vm.swappiness = 60' >>/etc/sysctl.d/60-rigup.conf"),
    Break("base-updates", "rm /etc/apt/apt.conf.d/52rigup-unattended-upgrades"),
    Break("kernel-headers", removed("linux-headers-amd64")),
    Break("kernel-module-options-kept", "rm /etc/modprobe.d/rigup.conf"),
    Break("kernel-args-kept", "sed -i s/iommu=pt// /etc/default/grub.d/60-rigup.cfg; update-grub 2>/dev/null"),
    Break("driver-pin", removed("$(dpkg-query -W -f '${Package}' 'nvidia-driver-pinning-*')")),
    Break("driver-conflicts", CONFLICT),
    Break("driver-repository", "rm /etc/apt/sources.list.d/cuda-*.list"),
    Break("driver-persistence", "systemctl stop nvidia-persistenced"),
    Break("cuda-packages", removed("cuda-toolkit-13-2")),
    Break("cuda-nvcc", "rm /etc/profile.d/rigup-cuda.sh"),
    Break("docker-packages", removed("docker-compose-plugin")),
    Break(
        "docker-toolkit-safe",
        "sed -i '/^Package: nvidia-container-toolkit$/,/^$/s/^Version: .*/Version: 1.17.4-1/' /var/lib/dpkg/status",
        also=("docker-toolkit",),
    ),
    Break("docker-repositories", "rm /etc/apt/sources.list.d/docker.sources"),
    Break("docker-running", "systemctl disable --quiet docker.service"),
    Break("model-stamp", f'sed -i \'s/"revision": "./"revision": "x/\' {STORE}/*.verified.json'),
    Break("model-files", f"echo >>$(ls {STORE}/*/tokenizer_config.json)", also=("model-hashes",)),
    Break("model-user", "rm -r /usr/local/lib/rigup/venv"),
    Break(
        "model-download-ended",
        "systemctl enable --quiet model-fetch@$(cd /etc/rigup/models; ls *.json | sed s/.json//).service",
    ),
    Break("config-plan", 'sed -i \'s/"driver_branch": 595/"driver_branch": 610/\' /etc/rigup/plan.json'),
    Break("config-environment", "chmod 644 /etc/rigup/endpoints/main/*/env"),
    Break("config-patches", "sed -i s/NVFP4/FP4/ /etc/rigup/endpoints/main/*/config.json"),
    Break("serve-programs", "sed -i '1a # by hand' /usr/local/lib/rigup/wait_ready.py"),
    Break("serve-unit", "echo '# mine' >>/usr/local/lib/systemd/system/llm@main.service"),
    Break("serve-at-boot", "systemctl disable --quiet llm@main.service"),
    # For a person: a deploy refuses, or has no say in it.
    Break("kernel-next", "touch /boot/vmlinuz-99.0", undo="rm /boot/vmlinuz-99.0"),
    Break(
        "driver-safe",
        "echo 570.1.1 >/run/version && mount --bind /run/version /sys/module/nvidia/version",
        also=("driver-loaded",),
        undo="umount /sys/module/nvidia/version",
    ),
    Break(
        "driver-processes",
        f'systemd-run --quiet --unit=holder python3 -c "{HOLD}"; sleep 1',
        undo="systemctl stop holder",
    ),
    Break(
        "serve-reach",
        "systemd-run --quiet --unit=listener python3 -m http.server --bind 127.0.0.2 8000; sleep 1",
        undo="systemctl stop listener",
    ),
)
HEAVY = (
    Break("model-index", f"rm {STORE}/*/model-00002-of-*.safetensors", also=("model-files", "model-hashes")),
    Break(
        "driver-packages", removed("nvidia-driver-cuda"), also=("driver-gpus", "driver-loaded", "driver-persistence")
    ),
)
# Docker is restarted for these, and what serves has to come back before its own files are put right: one at a time.
DOCKER = (
    Break("docker-config", "sed -i s/nvidia-container-runtime/runc/ /etc/docker/daemon.json"),
    Break(
        "docker-runtime",
        "echo '{}' >/etc/docker/daemon.json; systemctl restart docker",
        also=("docker-config", "docker-log-driver", "serve-running", *AT_WORK),
    ),
)
LIST = (Break("docker-cdi", "rm /var/run/cdi/nvidia.yaml"),)


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
            "systemctl list-units --all --plain --no-legend --no-pager -t service,mount,timer | awk '{print $1, $3}'"
        )
        return one_rig.host.shell(
            f"{units} | grep -v session; docker ps --all --no-trunc; ls -AR /run/rigup* /var/log/apt; "
            "cat /proc/sys/kernel/random/boot_id; systemctl show -p InvocationID docker llm@main"
        ).stdout

    before, running = one_rig.host.files(), state()
    code, told = audit(one_rig, "--deep")
    assert (code, told["result"], findings(told)) == (0, "clean", set()), told
    assert told["counts"]["ok"] >= 54
    assert one_rig.host.files() == before
    assert re.sub(r"\d+ (second|minute)s?", "", state()) == re.sub(r"\d+ (second|minute)s?", "", running)
    for check in told["checks"]:
        assert check["title"] and check["severity"] in ("critical", "major", "minor") and check["repair"]


@pytest.mark.parametrize(
    "breaks", [LIST, DOCKER[:1], DOCKER[1:], LIGHT, HEAVY], ids=["list", "config", "runtime", "light", "heavy"]
)
def test_exactly_what_was_broken_is_found_and_the_deploy_repairs_it(one_rig: OneRig, breaks: tuple[Break, ...]) -> None:
    for each in breaks:
        one_rig.host.shell(each.command)
    code, told = audit(one_rig, "--deep")
    assert code == 2
    wanted = {each.check for each in breaks} | {name for each in breaks for name in each.also}
    assert findings(told) == wanted
    for check in told["checks"]:
        if check["result"] == "finding":
            assert check["expected"] and check["found"], check
    for each in breaks:
        if each.undo:
            one_rig.host.shell(each.undo)
    one_rig.deploy()
    code, told = audit(one_rig, "--deep")
    assert (code, findings(told)) == (0, set())


@pytest.mark.soak
@pytest.mark.parametrize("each", [*LIST, *DOCKER, *LIGHT, *HEAVY], ids=lambda each: each.check)
def test_each_thing_broken_by_itself_fails_its_own_check(one_rig: OneRig, each: Break) -> None:
    one_rig.host.shell(each.command)
    _, told = audit(one_rig, "--deep")
    assert findings(told) == {each.check, *each.also}
    if each.undo:
        one_rig.host.shell(each.undo)
    one_rig.deploy()
    assert audit(one_rig, "--deep")[0] == 0


def test_a_finding_says_what_why_and_which_step_repairs_it_also_in_junit(one_rig: OneRig) -> None:
    one_rig.host.shell("sysctl -qw vm.swappiness=60")
    junit = one_rig.rigs.directory / "audit.xml"
    result = one_rig.rigs.run("rigup", "audit", "--step", "base", "--failed", "--junit", str(junit))
    one_rig.host.shell("sysctl -qw vm.swappiness=1")
    assert result.code == 2
    assert re.search(rf"^{NAME}: base-sysctl +FAILED\n    expected: vm.swappiness: 1\n    found:    vm.swappiness: 60\n"
                     r"    why: .*\(major; it comes from sysctl\)\n    repaired by: the base step",
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
        assert "the waiver has run out on" in result.output
        one_rig.rigs.write(waivers={"base-sysctls": {"reason": "measured in May", "until": str(today)}})
        result = one_rig.rigs.run("rigup", "audit")
        assert result.code == 1
        assert "waivers.base-sysctls: no check has that id" in result.output
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


def test_a_login_that_may_not_become_root_sees_what_it_can_and_is_told_the_rest(one_rig: OneRig) -> None:
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
        one_rig.host.shell("loginctl terminate-user guest; sleep 0.5; userdel --force --remove guest", check=False)
    assert (code, findings(told)) == (1, set()), [check for check in told["checks"] if check["result"] == "finding"]
    unseen = {check["check"] for check in told["checks"] if check["result"] == "unseen"}
    assert {"config-environment", "serve-container", "docker-runtime"} <= unseen
    assert told["counts"]["ok"] > 35
    assert "only root can see it" in result.output


def test_a_host_looks_at_itself_every_day_where_the_setting_says_so(one_rig: OneRig) -> None:
    def look() -> DailyAuditValue:
        one_rig.host.shell("systemctl start rigup-audit.service")
        return parse_daily_audit(one_rig.host.shell(f"cat {RESULT}").stdout.splitlines())

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
    assert (code, told["result"], told["counts"]["ok"]) == (1, "blind", 0)
