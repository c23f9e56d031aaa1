"""One host and everything that can go wrong with it: each deploy ends with a clear error, and the next one continues.

The tests build on each other, in file order. Files of others exist on the host from the start.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import checkpoint, machine, service, world
from lab.machine import Host
from lab.settings import GATEWAY
from tests.lab.rigs import BIN, ROOT, Result, Rigs

NAME = "rig9"
UNIT = "llm@main.service"
DAEMON_JSON = "/etc/docker/daemon.json"

# What others have put on the host before rigup came.
FOREIGN = {
    "/etc/default/grub.d/50-other.cfg": 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT mitigations=off"\n',
    "/etc/sysctl.d/70-other.conf": "vm.max_map_count = 1048576\n",
    "/etc/modprobe.d/other.conf": "options nvidia NVreg_EnableGpuFirmware=1\n",
    "/etc/apt/sources.list.d/other.list": "# deb http://other.example.org/debian trixie main\n",
    "/etc/apt/apt.conf.d/90other": 'Acquire::Retries "2";\n',
}
FOREIGN_DAEMON = {
    "dns": ["192.0.2.53"],
    "max-concurrent-downloads": 2,
    "runtimes": {"other": {"path": "runc"}},
    "features": {"buildkit": True},
    # Behind ours, so nobody asks it.
    "registry-mirrors": ["http://192.0.2.54:5000"],
}
# Docker refuses an option that stands both here and in daemon.json; `dockerd --validate` cannot know of it.
DOCKER_FLAG = (
    "[Service]\nExecStart=\n"
    "ExecStart=/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock --log-driver=json-file\n"
)

# Holds dpkg's lock the way dpkg itself does (fcntl, struct flock of a 64-bit Linux).
HOLD_LOCK = """
use Fcntl;
open F, "+>>", "/var/lib/dpkg/lock-frontend" or die;
my $whole = pack("s s x4 q q i x4", F_WRLCK, 0, 0, 0, 0);
fcntl(F, F_SETLK, $whole) or die;
sleep 600;
"""
# Healthy, but another service.
LIAR = """
import http.server, json
class Liar(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"object": "list", "data": [{"id": "another-model", "object": "model"}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", 8000), Liar).serve_forever()
"""


class Hub:
    """A hub for these tests alone: they slow it down and take it away."""

    name = "hub-bad-days"
    port = 8011
    url = f"http://{GATEWAY}:{port}"

    def __init__(self, directory: Path) -> None:
        self.rate_file = directory / "rate"

    def start(self) -> None:
        repository = f"{checkpoint.REPOSITORY}={checkpoint.build()}"
        argv = [sys.executable, "-m", "lab.hub", "--host", GATEWAY, "--port", str(self.port)]
        argv += ["--repository", repository, "--rate-file", str(self.rate_file)]
        service.start(self.name, argv, url=self.url, cwd=ROOT)

    def stop(self) -> None:
        service.stop(self.name)

    def send(self, rate: int) -> None:
        """At most so many bytes per second; 0: as many as it can."""
        self.rate_file.write_text(str(rate))


@dataclass
class Day:
    """The host, how it is deployed, and the hub that it has its checkpoint from."""

    host: Host
    rigs: Rigs
    hub: Hub

    def deploy(self, *troubles: tuple[str, Callable[[], object]], **changes: Any) -> Result:
        """A deploy with these settings changed. Each trouble happens once its pattern was printed, in their order."""
        self.rigs.write(hub_endpoint=self.hub.url, **changes)
        return deploy_through(self.rigs, list(troubles))

    def refused(self, *troubles: tuple[str, Callable[[], object]], **changes: Any) -> str:
        """The same, where the deploy must fail in a way that one can understand; returns what it printed."""
        result = self.deploy(*troubles, **changes)
        assert result.code > 0, result.output
        assert "Traceback" not in result.output, result.output
        return result.output

    def shell(self, command: str, **how: Any) -> str:
        return self.host.shell(command, **how).stdout.strip()

    def until(self, command: str) -> None:
        """Wait until a command on the host succeeds."""
        self.host.shell(f"for i in {{1..3000}}; do {command} && exit; sleep 0.1; done; exit 1", timeout=400)

    def write(self, path: str, text: str, mode: str = "644") -> None:
        self.host.shell(f"install -D -m {mode} /dev/stdin {path}", stdin=text)

    def read(self, path: str) -> str:
        return self.host.shell(f"cat {path}").stdout

    def state(self, unit: str = UNIT) -> str:
        return self.shell(f"systemctl is-active {unit}", check=False)

    def invocation(self, unit: str = UNIT) -> str:
        return self.shell(f"systemctl show --value --property=InvocationID {unit}")


def deploy_through(
    rigs: Rigs, troubles: list[tuple[str, Callable[[], object]]], root: Path = ROOT, timeout: float = 500
) -> Result:
    """Run a deploy to its end, with events during the run."""
    start = time.monotonic()
    process = subprocess.Popen(
        # -v prints each operation when it begins, not only those that changed something.
        [str(BIN / "pyinfra"), "inventory/lab.py", "deploy.py", "-y", *(["-v"] if troubles else [])],
        cwd=root,
        env=rigs.environment(PYTHONPATH=str(root)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    guard = threading.Timer(timeout, os.killpg, (process.pid, signal.SIGKILL))
    guard.start()
    seen: list[str] = []
    assert process.stdout is not None
    try:
        for line in process.stdout:
            seen.append(line)
            if troubles and re.search(troubles[0][0], line):
                troubles.pop(0)[1]()
    finally:
        guard.cancel()
        if process.poll() is None and sys.exc_info()[0]:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    result = Result(process.returncode, "".join(seen), time.monotonic() - start)
    assert not troubles, f"{troubles[0][0]!r} was never printed:\n{result.output}"
    return result


# Of a fork, whose options are not all on file, so that the engine has the last word.
REFUSED = {"engine": {"name": "vllm", "fork": "lab"}, "argv": ["--no-such-option"]}


def project_with_recipe(directory: Path, name: str, **changes: object) -> Path:
    """A copy of the project with one more recipe: the default one with some fields changed."""
    for part in ("deploy.py", "files", "group_data", "inventory", "recipes", "rigup", "tasks", "templates"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, directory / part)
    recipe = yaml.safe_load((directory / "recipes/vllm-nvfp4-cu130.yaml").read_text())
    recipe |= {"id": name, **changes}
    (directory / f"recipes/{name}.yaml").write_text(yaml.safe_dump(recipe))
    return directory


@pytest.fixture(scope="module")
def day(services: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    directory = tmp_path_factory.mktemp("bad-days")
    host = machine.start(NAME)
    hub = Hub(directory)
    try:
        host.reset(release="bookworm", gpus=4, login="ops")
        machine.write_known_hosts()
        hub.start()
        day = Day(host, Rigs(directory, {NAME: world.connection(host)}, world.defaults()), hub)
        for path, text in FOREIGN.items():
            day.write(path, text)
        day.write(DAEMON_JSON, json.dumps(FOREIGN_DAEMON), mode="640")
        host.shell("echo '# a line by hand' >>/etc/default/grub")
        yield day
    finally:
        hub.stop()
        host.remove()
        machine.write_known_hosts()


def test_a_busy_apt_is_waited_for_and_a_killed_dpkg_is_reported(day: Day) -> None:
    day.hub.send(100_000)
    day.write("/run/hold.pl", HOLD_LOCK)
    day.host.shell("systemd-run --quiet --unit=holder perl /run/hold.pl")

    def let_go() -> None:
        # The plan has been made: from here on so slow that the download lasts until a test lets it fail.
        day.hub.send(5_000)
        day.until("systemctl is-active -q rigup-apt || systemctl is-active rigup-apt | grep -q activating")
        assert day.state("holder") == "active"
        day.host.shell("systemctl stop holder")

    def kill_dpkg() -> None:
        day.until("pkill -9 -f '^/usr/bin/dpkg .*--configure'")

    output = day.refused(
        (r"base \| Install required tools", let_go), (r"driver \| Install the NVIDIA driver", kill_dpkg)
    )
    assert "Sub-process /usr/bin/dpkg" in output
    assert "journalctl -u rigup-apt.service" in output
    assert day.shell("dpkg --audit") != ""


def test_the_next_deploy_mends_dpkg_survives_a_lost_connection_and_rolls_docker_back(day: Day) -> None:
    def lose_connection() -> None:
        day.until("pgrep -f '^/usr/bin/dpkg .*--unpack'")
        # Had it been there before, preflight would have refused.
        day.write("/etc/systemd/system/docker.service.d/other.conf", DOCKER_FLAG)
        day.host.shell("pkill -9 -u ops")

    output = day.refused((r"docker \| Install Docker", lose_connection))
    assert re.search("Connection lost|the connection broke", output)
    assert day.shell("dpkg --audit") == ""
    assert "specified both as a flag and in the configuration file: log-driver" in output
    assert f"{DAEMON_JSON} is rolled back, and Docker runs." in output
    assert json.loads(day.read(DAEMON_JSON)) == FOREIGN_DAEMON
    assert day.shell(f"stat -c %a {DAEMON_JSON}") == "640"
    assert day.shell("docker info --format '{{.LoggingDriver}}'") == "json-file"


def test_a_needed_reboot_that_is_not_allowed_is_an_error_with_the_reason(day: Day) -> None:
    day.host.shell("rm /etc/systemd/system/docker.service.d/other.conf; systemctl daemon-reload")
    before = day.host.boot_id()
    output = " ".join(day.refused(reboot="never").split())
    assert f"{NAME} needs a reboot (" in output
    assert "the kernel was booted without iommu=pt" in output
    assert "the setting `reboot` is `never`" in output
    assert day.host.boot_id() == before


def test_a_power_cut_during_download_and_pull_ends_the_deploy_with_a_clear_error(day: Day) -> None:
    def cut() -> None:
        day.until("systemctl is-active 'rigup-pull-*' | grep activating && systemctl is-active -q 'model-fetch@*'")
        day.host.kill()

    output = day.refused((r"config \| Pull", cut))
    assert f"was interrupted: {NAME} was restarted, or rigup-pull-" in output
    assert "Run the deploy again: it continues from here." in output


def test_a_disk_that_fills_up_during_the_download_is_reported_at_once(day: Day) -> None:
    day.hub.send(0)
    day.host.shell("systemctl stop 'model-fetch@*'; mount -t tmpfs -o size=3g,mode=755 tmpfs /srv")
    partly = (r"model \| Install the downloader's unit", lambda: day.host.shell("mount -o remount,size=8m /srv"))
    try:
        output = day.refused(partly)
        assert "the disk is full: free some space or choose another model_store" in output
        # From now on preflight finds it before anything is changed.
        assert "/srv has " in day.refused()
    finally:
        day.host.shell("systemctl stop 'model-fetch@*'; umount /srv")


def test_a_hub_that_goes_away_is_waited_for_and_a_port_with_another_model_is_not_ready(day: Day) -> None:
    day.hub.send(30_000)
    day.write("/run/liar.py", LIAR)

    def go_away() -> None:
        day.hub.stop()
        day.until("grep -qs 'waiting before the next try' /run/rigup-fetch/*/progress.json")
        day.hub.send(0)
        day.hub.start()

    def lie() -> None:
        day.host.shell("systemd-run --quiet --unit=liar python3 /run/liar.py")
        day.until("bash -c '</dev/tcp/127.0.0.1/8000'")

    output = day.refused((r"serve \| Check the arguments", lie), (r"serve \| Download and verify nvidia", go_away))
    assert "another-model" in output
    assert day.state() == "inactive"
    day.host.shell("systemctl stop liar")


def test_a_container_that_dies_at_its_start_fails_the_deploy_early_with_its_last_words(
    day: Day, tmp_path: Path
) -> None:
    copy = project_with_recipe(tmp_path, "refused", **REFUSED)
    day.rigs.write(hub_endpoint=day.hub.url, recipe="refused")
    result = deploy_through(day.rigs, [], root=copy)
    assert result.code > 0, result.output
    assert "--no-such-option" in result.output
    assert f"journalctl -u {UNIT}" in result.output
    assert result.seconds < 120


def test_the_last_deploy_finishes_next_to_an_unreachable_host(day: Day) -> None:
    day.rigs.hosts["gone"] = {"address": GATEWAY, "port": 9}
    result = day.deploy()
    del day.rigs.hosts["gone"]
    assert result.code > 0
    assert re.search(r"gone: unreachable: .*port 9", result.output), result.output
    assert day.state() == "active", result.output
    # The store was open to the second host of the inventory; now there is none.
    result = day.deploy()
    assert result.code == 0, result.output
    assert result.changed() == [f"{NAME} model | Stop serving peers"]


def test_arguments_that_the_engine_refuses_are_reported_while_the_old_recipe_keeps_serving(
    day: Day, tmp_path: Path
) -> None:
    before = day.invocation()
    copy = project_with_recipe(tmp_path, "refused", **REFUSED)
    day.rigs.write(hub_endpoint=day.hub.url, recipe="refused")
    result = deploy_through(day.rigs, [], root=copy)
    assert result.code > 0, result.output
    assert "the engine of refused refuses its arguments, so it was not tried" in result.output
    assert "nothing was stopped for main" in result.output
    assert "unrecognized arguments: --no-such-option" in result.output
    assert day.invocation() == before
    assert day.deploy().changed() == [f"{NAME} serve | Remove the files of earlier generations"]


def test_what_belongs_to_others_was_kept(day: Day) -> None:
    for path, text in FOREIGN.items():
        assert day.read(path) == text
    assert day.read("/etc/default/grub").endswith("# a line by hand\n")
    assert {"mitigations=off", "iommu=pt"} <= set(day.read("/proc/cmdline").split())
    assert day.read("/proc/sys/vm/max_map_count").strip() == "1048576"
    present = json.loads(day.read(DAEMON_JSON))
    assert present["features"] == {"buildkit": True, "cdi": True}
    assert set(present["runtimes"]) == {"other", "nvidia"}
    ours, *others = present["registry-mirrors"]
    assert others == FOREIGN_DAEMON["registry-mirrors"] != [ours]
    assert {key: present[key] for key in ("dns", "max-concurrent-downloads")} == {
        key: FOREIGN_DAEMON[key] for key in ("dns", "max-concurrent-downloads")
    }
    assert day.shell(f"stat -c %a {DAEMON_JSON}") == "640"
    assert json.loads(day.read(f"{DAEMON_JSON}.rigup-backup")) == FOREIGN_DAEMON


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-3],
        lambda text: json.dumps(["no object"]),
        # Nothing to merge, and Docker has not read the file yet.
        lambda text: json.dumps({**json.loads(text), "no-such-key": 1}),
        lambda text: json.dumps({**json.loads(text), "no-such-key": 1, "features": {}}),
    ],
    ids=["no JSON", "no object", "unknown key", "unknown key beside a change of ours"],
)
def test_a_broken_daemon_json_is_refused_and_docker_runs_on(day: Day, change: Callable[[str], str]) -> None:
    before = [day.invocation(unit) for unit in ("docker", UNIT)]
    day.host.shell(f"cp -p {DAEMON_JSON} /root/whole.json")
    broken = change(day.read(DAEMON_JSON))
    try:
        day.host.shell(f"cat >{DAEMON_JSON}", stdin=broken)
        output = day.refused()
        assert DAEMON_JSON in output
        assert day.read(DAEMON_JSON) == broken
        assert day.shell("ls -A /etc/docker").split() == ["daemon.json", "daemon.json.rigup-backup"]
        assert [day.invocation(unit) for unit in ("docker", UNIT)] == before
    finally:
        day.host.shell(f"mv /root/whole.json {DAEMON_JSON}")


def test_a_host_that_serves_is_not_rebooted(day: Day) -> None:
    before = day.host.boot_id(), day.invocation()
    output = day.refused(kernel_args=["iommu=pt", "pcie_aspm=off", "pcie_port_pm=off", "rigup.test=1"])
    assert "the kernel was booted without rigup.test=1" in output
    assert f"{UNIT} is serving" in output
    assert f"systemctl stop {UNIT}" in output
    assert (day.host.boot_id(), day.invocation()) == before
    result = day.deploy()
    assert result.code == 0, result.output
    assert result.changed() == [
        f"{NAME} kernel | Set the kernel arguments",
        f"{NAME} kernel | Update the GRUB menu",
    ]
    assert (day.host.boot_id(), day.invocation()) == before


def test_a_shard_that_lost_a_byte_is_found_and_fetched_again(day: Day) -> None:
    before = day.invocation()
    shard = day.shell("ls /srv/models/*/*/*/model-00003-of-00005.safetensors")
    published = day.shell(f"sha256sum {shard}")
    day.host.shell(f"truncate -s -1 {shard}")
    audit = day.rigs.audit("-k", "test_model_files")
    assert audit.code == 2, audit.output
    result = day.deploy()
    assert result.code == 0, result.output
    assert day.shell(f"sha256sum {shard}") == published
    assert day.invocation() == before
    assert day.deploy().changed() == []


def test_a_host_that_lost_its_power_serves_again_and_a_deploy_waits_for_it(day: Day) -> None:
    day.host.kill()
    result = day.deploy()
    assert result.code == 0, result.output
    assert day.state() == "active"
    for unit in ("docker", UNIT):
        assert day.shell(f"journalctl -b -u {unit} --output=cat --grep '^Starting ' | wc -l") == "1"
    assert day.deploy().changed() == []
