"""The model store on lab hosts: two that share, a power cut, progress, a token, a disk that survived its host.

The tests build on each other, in file order.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import checkpoint, machine, service, world
from lab.hub import faults
from lab.settings import GATEWAY
from tests.lab.rigs import ROOT, Result, Rigs
from tests.unit.waiting import HANG_S, until

NAMES = ("rig7", "rig8")
SPECS = (machine.Spec(release="trixie", login="ops"), machine.Spec(release="bookworm", login="root"))
STEPS = ("inventory/lab.py", "tests/lab/store_steps.py", "-y")
TOKEN = "hf_planted0token"


class Hub:
    """A hub for these tests alone."""

    name = "hub-store"
    port = 8012
    url = f"http://{GATEWAY}:{port}"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rate_file, self.faults_file = directory / "rate", directory / "faults.json"
        self.journal_file = directory / "journal.jsonl"

    def start(self) -> None:
        argv = [sys.executable, "-m", "lab.hub", "--host", GATEWAY, "--port", str(self.port)]
        argv += ["--repository", f"{checkpoint.REPOSITORY}={checkpoint.build()}", "--rate-file", str(self.rate_file)]
        argv += ["--faults-file", str(self.faults_file), "--journal", str(self.journal_file), "--xet"]
        service.start(self.name, argv, url=self.url, cwd=ROOT)

    def send(self, rate: int) -> None:
        self.rate_file.write_text(str(rate))

    def err(self, *rules: str) -> None:
        faults.write(self.faults_file, [faults.parse(rule) for rule in rules])

    def refuse_xet(self) -> None:
        """Use only plain HTTP, which writes every byte to the disk at once."""
        self.err("403,path=/cas")

    def forget(self) -> None:
        self.journal_file.unlink(missing_ok=True)

    @property
    def journal(self) -> list[dict[str, Any]]:
        """What the lab's hosts, not this machine, were answered about files."""
        lines = self.journal_file.read_text().splitlines() if self.journal_file.exists() else []
        told = [json.loads(line) for line in lines]
        return [line for line in told if line["client"] != GATEWAY and line["about"] not in ("", "/api")]

    @property
    def asked(self) -> list[dict[str, Any]]:
        """What was asked of the hub itself, not of its storage."""
        return [line for line in self.journal if line["method"] == "HEAD"]

    @property
    def sent(self) -> int:
        return sum(line["sent"] for line in self.journal)


@dataclass
class Fleet:
    """Two hosts, how they are deployed, and their hub."""

    hosts: tuple[machine.Host, ...]
    rigs: Rigs
    hub: Hub

    def deploy(self, *arguments: str, **extra: str) -> Result:
        return self.rigs.run("pyinfra", *STEPS, *arguments, **extra)

    def empty(self, host: machine.Host) -> None:
        host.shell("rm -rf /srv/models/*")

    def store(self, host: machine.Host) -> str:
        return host.shell("echo /srv/models/*/*/????????????????????????????????????????").stdout.strip()

    def sums(self, host: machine.Host, store: str = "/srv/models") -> str:
        commit = f"{store}/*/*/????????????????????????????????????????"
        return host.shell(f"cd {commit} && find . -type f -exec sha256sum {{}} + | sort -k2").stdout


def published() -> str:
    """What sha256sum says of all published files."""
    folder = checkpoint.build()
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  ./{name}\n" for name in files)


def locked_bytes() -> int:
    return sum(path.stat().st_size for path in checkpoint.build().rglob("*") if path.is_file())


def mounted(host: machine.Host) -> str:
    return host.shell("findmnt --noheadings --raw --output TARGET,FSTYPE --mountpoint /srv/models").stdout.strip()


@pytest.fixture(scope="module")
def fleet(services: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("store")
    hosts = tuple(machine.get(name) for name in NAMES)
    hub = Hub(directory)
    try:
        for host, spec in zip(hosts, SPECS, strict=True):
            host.create(spec)
        machine.write_known_hosts()
        hub.start()
        rigs = Rigs(directory, {host.name: world.connection(host) for host in hosts}, world.defaults())
        rigs.write(hub_endpoint=hub.url)
        yield Fleet(hosts, rigs, hub)
    finally:
        service.stop(hub.name)
        for host in hosts:
            host.remove()
        machine.write_known_hosts()


def test_two_hosts_that_are_deployed_together_bring_each_file_from_the_hub_once(fleet: Fleet) -> None:
    # Too slow to be done before there is a line of progress, which is due after ten seconds.
    fleet.hub.send(50_000)
    said = ""
    with fleet.rigs.begun("pyinfra", *STEPS) as deploy:
        assert deploy.stdout is not None
        for line in deploy.stdout:
            said += line
            if re.search(rf"{checkpoint.REPOSITORY}: [a-z ]+, \d+ MB of 18 MB", line):
                fleet.hub.send(0)

    assert deploy.returncode == 0, said
    assert [fleet.sums(host) for host in fleet.hosts] == [published()] * 2
    assert locked_bytes() <= fleet.hub.sent <= 1.1 * locked_bytes()
    assert "critical path:" in said
    assert re.search(rf"{checkpoint.REPOSITORY}: [a-z ]+, \d+ MB of 18 MB", said), said
    assert any(line["about"].startswith("xet:") for line in fleet.hub.journal)
    again = fleet.deploy()
    assert again.code == 0 and again.changed() == [], again.output


def test_nobody_else_is_served(fleet: Fleet) -> None:
    first, second = fleet.hosts
    # The daemon greets whoever reaches it.
    probe = f'exec 3<>/dev/tcp/{first.address}/8730 && read -r -t 60 line <&3 && echo "$line"'
    assert second.shell(f"bash -c {shlex.quote(probe)}").stdout.startswith("@RSYNCD:")
    # This machine is not in the inventory: its packets do not reach the daemon.
    stranger = subprocess.run(["timeout", "5", "bash", "-c", probe], capture_output=True, text=True)
    assert (stranger.returncode, stranger.stdout) == (124, "")


def test_a_download_goes_on_after_a_power_cut_without_any_deploy(fleet: Fleet) -> None:
    host, other = fleet.hosts
    other.shell("systemctl stop rigup-peers")
    fleet.empty(host)
    fleet.hub.send(1_500_000)
    fleet.hub.refuse_xet()
    fleet.hub.forget()
    with fleet.rigs.begun("pyinfra", *STEPS, output=subprocess.DEVNULL):
        host.shell("for i in {1..600}; do [ $(du -s /srv/models | cut -f1) -gt 6000 ] && exit; sleep 0.1; done; exit 1")
    there = int(host.shell("du -sb /srv/models | cut -f1").stdout)
    assert there > 3_000_000
    host.kill()
    fleet.hub.send(0)
    host.shell("for i in {1..600}; do ls /srv/models/*/*/*.verified.json 2>/dev/null && exit; sleep 0.1; done; exit 1")

    assert fleet.sums(host) == published()
    assert fleet.hub.sent < locked_bytes() + 4_000_000
    other.shell("systemctl start rigup-peers")
    assert fleet.deploy().code == 0


def test_status_reports_the_progress_of_a_download(fleet: Fleet) -> None:
    host = fleet.hosts[0]
    fleet.rigs.write(hub_endpoint=fleet.hub.url, peers=False)
    fleet.empty(host)
    # Slow enough to be under way to the end of this test; refused nothing, so that it never rests.
    fleet.hub.send(60_000)
    fleet.hub.err()
    host.shell("rm -f /run/rigup-fetch/*/progress.json")
    with fleet.rigs.begun("pyinfra", *STEPS, "--limit", host.name, output=subprocess.DEVNULL):
        moves = """grep -qs '"step": "downloading".*"rate": [1-9]' /run/rigup-fetch/*/progress.json"""
        host.shell(f"for i in {{1..3000}}; do {moves} && exit; sleep 0.1; done; exit 1", timeout=HANG_S + 60)
    told = fleet.rigs.run("rigup", "status", "--json", host.name)
    (download,) = json.loads(told.output)["hosts"][host.name]["downloads"]
    assert download["step"] == "downloading"
    assert 0 < download["bytes_done"] < download["bytes_total"] == locked_bytes()
    assert download["rate"] > 0
    line = " ".join(fleet.rigs.run("rigup", "status", host.name).output.split())
    assert re.search(r"downloading, \d+ MB of 18 MB, 0 MB/s, about [\dminsh ]+ left, \d files from 10", line), line
    with fleet.rigs.begun("rigup", "status", "--json", "--watch", host.name) as watching:
        assert watching.stdout is not None
        looks = (json.loads(line)["hosts"][host.name]["downloads"][0] for line in watching.stdout)
        first = next(looks)["bytes_done"]
        assert any(look["bytes_done"] > first for look in looks)


def test_a_token_goes_to_no_hub_without_tls_and_one_from_before_is_removed(fleet: Fleet, tmp_path: Path) -> None:
    host, log = fleet.hosts[0], tmp_path / "log"
    # The download of the test before may be under way.
    host.shell("systemctl stop 'model-fetch@*'")
    fleet.empty(host)
    host.shell(f"echo {GATEWAY} huggingface.co >>/etc/hosts; umask 077; echo '{{}}' >/etc/rigup/hub-token")
    fleet.rigs.write(hub_endpoint=f"http://huggingface.co:{fleet.hub.port}", peers=False)
    fleet.hub.forget()
    with (
        log.open("a") as output,
        fleet.rigs.begun("pyinfra", *STEPS, "--limit", host.name, output=output.fileno(), HF_TOKEN=TOKEN) as deploy,
    ):
        until(lambda: fleet.hub.asked, lambda: deploy.poll() is None)
        fleet.hub.send(0)
        fleet.hub.err()
        assert deploy.wait(HANG_S) == 0, log.read_text()
    places = "/etc /var/lib/rigup-fetch /srv /run/rigup-fetch"
    assert host.shell(f"grep -rlsF {TOKEN} {places} || true").stdout == ""
    assert host.shell("ls /etc/rigup/hub-token || true").stdout == ""
    assert host.shell(f"journalctl | grep -c {TOKEN} || true").stdout.strip() == "0"
    assert "rigup: done" in log.read_text() and TOKEN not in log.read_text()
    assert not any(line["authorized"] for line in fleet.hub.asked)
    fleet.rigs.write(hub_endpoint=fleet.hub.url)


def test_a_store_below_home_is_filled_from_a_copy_of_a_store_and_serves_its_peer(fleet: Fleet) -> None:
    first, second = fleet.hosts
    fleet.hub.forget()
    fleet.rigs.write(hub_endpoint=fleet.hub.url, model_store="/home/models", model_source="/not/there")
    refused = fleet.deploy("--limit", first.name)
    assert refused.code != 0 and "/not/there (`model_source`)" in refused.output

    fleet.rigs.write(hub_endpoint=fleet.hub.url, model_store="/home/models", model_source="/srv/models")
    filled = fleet.deploy("--limit", first.name)
    assert filled.code == 0, filled.output
    fleet.rigs.write(hub_endpoint=fleet.hub.url, model_store="/home/models")
    served = fleet.deploy("--limit", second.name)
    assert served.code == 0, served.output

    assert [fleet.sums(host, "/home/models") for host in fleet.hosts] == [published()] * 2
    assert fleet.hub.journal == []
    fleet.rigs.write(hub_endpoint=fleet.hub.url)
    assert fleet.deploy().code == 0
    for host in fleet.hosts:
        host.shell("rm -rf /home/models")


def test_models_are_listed_and_removed_only_on_request(fleet: Fleet) -> None:
    first, second = NAMES
    listed = fleet.rigs.run("rigup", "models")
    assert listed.code == 0, listed.output
    for name in NAMES:
        assert re.search(rf"^{name} +{checkpoint.REPOSITORY} +[0-9a-f]{{12}} +18 MB +verified", listed.output, re.M)

    host = fleet.hosts[0]
    plan = {"endpoints": [{"name": "main", "checkpoint": {"repo": checkpoint.REPOSITORY, "revision": ""}}]}
    plan["endpoints"][0]["checkpoint"]["revision"] = fleet.store(host).rpartition("/")[2]  # type: ignore[index]
    host.shell("install -m 644 /dev/stdin /etc/rigup/plan.json", stdin=json.dumps(plan))
    refused = fleet.rigs.run("rigup", "models", "rm", first, checkpoint.REPOSITORY, "-y")
    assert refused.code == 1 and "is used by endpoint main" in refused.output

    removed = fleet.rigs.run("rigup", "models", "rm", second, checkpoint.REPOSITORY, "-y")
    assert removed.code == 0, removed.output
    assert fleet.hosts[1].shell("find /srv/models -type f | wc -l").stdout.strip() == "0"
    assert re.search(rf"^{second} +nothing", fleet.rigs.run("rigup", "models").output, re.M)


def test_a_rebuilt_host_whose_store_has_a_disk_of_its_own_verifies_and_downloads_nothing(fleet: Fleet) -> None:
    host = fleet.hosts[0]
    only = ("--limit", host.name)
    host.shell("rm -rf /srv/models")
    fleet.rigs.write(hub_endpoint=fleet.hub.url, model_disk="models")
    assert "no file system has the label models" in fleet.deploy(*only).output
    host.add_disk("models", 3_000_000_000)
    first = fleet.deploy(*only)
    assert first.code == 0, first.output
    assert fleet.sums(host) == published()
    host.kill()
    assert mounted(host) == "/srv/models ext4"
    assert fleet.deploy(*only).changed() == []
    audit = ("--hosts", host.name, "-k", "model-disk")
    assert fleet.rigs.audit(*audit).code == 0
    host.shell("systemctl disable --quiet srv-models.mount")
    assert fleet.rigs.audit(*audit).code == 2
    assert fleet.deploy(*only).changed() == [f"{host.name} model | Mount the store's disk"]
    assert fleet.rigs.audit(*audit).code == 0

    machine_id = host.shell("cat /etc/machine-id").stdout
    host.reset()
    machine.write_known_hosts()
    assert host.shell("cat /etc/machine-id; ls /srv").stdout != machine_id
    fleet.hub.forget()
    result = fleet.deploy(*only)

    assert result.code == 0, result.output
    assert mounted(host) == "/srv/models ext4"
    assert not [line for line in fleet.hub.journal if line["client"] == host.address]
    assert "is as published; nothing to download" in host.shell("journalctl -o cat -u 'model-fetch@*'").stdout
    assert fleet.sums(host) == published()


def test_a_disk_that_runs_full_in_the_middle_stops_the_download_alone_and_the_next_deploy_finishes_it(
    fleet: Fleet, tmp_path: Path
) -> None:
    # On the disk of the test before.
    host, log = fleet.hosts[0], tmp_path / "log"
    only = ("--limit", host.name)
    fleet.empty(host)
    fleet.hub.send(500_000)
    fleet.hub.refuse_xet()
    with (
        log.open("w") as output,
        fleet.rigs.begun("pyinfra", *STEPS, *only, output=output.fileno()) as deploy,
    ):
        host.shell("for i in {1..600}; do [ $(du -s /srv/models | cut -f1) -gt 3000 ] && exit; sleep 0.1; done; exit 1")
        free = "$(df --output=avail -B1 /srv/models | tail -1)"
        host.shell(f"fallocate -l $(({free} - 4000000)) /srv/models/other")
        assert deploy.wait(HANG_S) != 0, log.read_text()
    full = "failed: the disk is full: free some space or choose another model_store"
    assert full in log.read_text()
    (told,) = json.loads(fleet.rigs.run("rigup", "status", "--json", host.name).output)["hosts"].values()
    assert [(each["step"], each["doing"]) for each in told["downloads"]] == [("given up", full)]

    host.shell("apt-get check && touch /var/lib/rigup/still-writable && rm /var/lib/rigup/still-writable")
    failed = host.shell("systemctl --failed --plain --no-legend").stdout.splitlines()
    assert [unit.partition("@")[0] for unit in failed] == ["model-fetch"]
    assert host.shell("systemctl is-active ssh").stdout.strip() == "active"
    refused = fleet.deploy(*only)
    assert refused.code != 0 and "/srv/models has " in refused.output

    host.shell("rm /srv/models/other")
    fleet.hub.forget()
    fleet.hub.send(0)
    fleet.hub.err()
    finished = fleet.deploy(*only)
    assert finished.code == 0, finished.output
    assert fleet.sums(host) == published()
    assert fleet.hub.sent < locked_bytes()


def test_a_rebuild_that_removes_the_store_asks_for_confirmation_and_empties_its_disk(fleet: Fleet) -> None:
    # On the disk of the tests before.
    host = fleet.hosts[0]
    rebuild = ("pyinfra", "inventory/lab.py", "rebuild.py", "-y")
    both = fleet.rigs.run(*rebuild)
    assert both.code != 0 and "max_unavailable is 1: rebuild and deploy rig7 first" in " ".join(both.output.split()), (
        both.output
    )
    unclear = fleet.rigs.run(*rebuild, "--limit", host.name, "--data", "remove_store=perhaps")
    assert unclear.code != 0 and "remove_store=perhaps is neither yes nor no" in unclear.output, unclear.output
    assert fleet.sums(host) == published()

    result = fleet.rigs.run(*rebuild, "--limit", host.name, "--data", "remove_store=y")
    assert result.code == 0, result.output
    assert host.shell("findmnt /srv/models", check=False).stdout == ""
    left = host.shell("mount /dev/disk/by-label/models /mnt && find /mnt -type f && umount /mnt").stdout
    assert left == ""
