"""The model store on lab hosts: two that share, a reboot in the middle, a token, a store that survived its host.

The tests build on each other in the order they stand in.
"""

from __future__ import annotations

import hashlib
import json
import re
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
        argv += ["--faults-file", str(self.faults_file), "--journal", str(self.journal_file)]
        service.daemonise(self.name, argv, url=self.url, cwd=ROOT)

    def send(self, rate: int) -> None:
        self.rate_file.write_text(str(rate))

    def err(self, *rules: str) -> None:
        faults.write(self.faults_file, [faults.parse(rule) for rule in rules])

    def forget(self) -> None:
        self.journal_file.unlink(missing_ok=True)

    @property
    def journal(self) -> list[dict[str, Any]]:
        """What the lab's hosts, not this machine, were answered about files."""
        lines = self.journal_file.read_text().splitlines() if self.journal_file.exists() else []
        told = [json.loads(line) for line in lines]
        return [line for line in told if line["client"] != GATEWAY and line["about"] not in ("", "/api")]

    @property
    def sent(self) -> int:
        return sum(line["sent"] for line in self.journal)


@dataclass
class Fleet:
    """Two hosts, how they are deployed, and their hub."""

    hosts: tuple[machine.Host, ...]
    rigs: Rigs
    hub: Hub

    def deploy(self, **extra: str) -> Result:
        return self.rigs.run("pyinfra", *STEPS, **extra)

    def store(self, host: machine.Host) -> str:
        return host.shell("echo /srv/models/*/*/????????????????????????????????????????").stdout.strip()

    def sums(self, host: machine.Host) -> str:
        return host.shell(f"cd {self.store(host)} && find . -type f -exec sha256sum {{}} + | sort -k2").stdout


def published() -> str:
    """What sha256sum says of all published files."""
    folder = checkpoint.build()
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  ./{name}\n" for name in files)


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
    fleet.hub.send(2_000_000)
    result = fleet.deploy()

    assert result.code == 0, result.output
    assert [fleet.sums(host) for host in fleet.hosts] == [published()] * 2
    locked = sum(path.stat().st_size for path in checkpoint.build().rglob("*") if path.is_file())
    assert locked <= fleet.hub.sent <= 1.1 * locked
    assert "critical path:" in result.output
    assert re.search(rf"{checkpoint.REPOSITORY}: [a-z ]+, \d+ MB of 18 MB", result.output), result.output
    again = fleet.deploy()
    assert again.code == 0 and again.changed() == [], again.output


def test_nobody_else_is_served(fleet: Fleet) -> None:
    # This machine is not in the inventory.
    first = fleet.hosts[0]
    probe = f"exec 3<>/dev/tcp/{first.address}/8730; printf '@RSYNCD: 31.0\\nmodels\\n' >&3; timeout 3 head -c 300 <&3"
    answer = subprocess.run(["bash", "-c", probe], capture_output=True, text=True)
    assert "@ERROR: Unknown module 'models'" in answer.stdout


def test_a_download_goes_on_after_a_power_cut_without_any_deploy(fleet: Fleet) -> None:
    host, other = fleet.hosts
    other.shell("systemctl stop rigup-neighbours")
    host.shell("rm -rf /srv/models/* /var/lib/rigup-fetch/shared/*")
    fleet.hub.send(1_500_000)
    fleet.hub.forget()
    with fleet.rigs.begun("pyinfra", *STEPS, output=subprocess.DEVNULL):
        host.shell("for i in {1..600}; do [ $(du -s /srv/models | cut -f1) -gt 6000 ] && exit; sleep 0.1; done; exit 1")
    there = int(host.shell("du -sb /srv/models | cut -f1").stdout)
    assert there > 3_000_000
    host.kill()
    fleet.hub.send(0)
    host.shell("for i in {1..600}; do ls /srv/models/*/*/*.verified.json 2>/dev/null && exit; sleep 0.1; done; exit 1")

    assert fleet.sums(host) == published()
    whole = sum(path.stat().st_size for path in checkpoint.build().rglob("*") if path.is_file())
    assert fleet.hub.sent < whole + 4_000_000
    other.shell("systemctl start rigup-neighbours")
    assert fleet.deploy().code == 0


def test_a_token_reaches_its_own_hub_and_stands_nowhere_else(fleet: Fleet) -> None:
    host = fleet.hosts[0]
    fleet.rigs.write(hub_endpoint=fleet.hub.url, neighbours=False)
    credential = json.dumps({"host": GATEWAY, "token": TOKEN})
    host.shell("install -m 600 /dev/stdin /etc/rigup/hub-token", stdin=credential)
    host.shell("rm -rf /srv/models/* /var/lib/rigup-fetch/shared/*")
    fleet.hub.forget()
    fleet.hub.send(2_000_000)
    with_token = fleet.deploy(HF_TOKEN="hf_of_this_machine")

    assert with_token.code == 0, with_token.output
    assert fleet.hub.journal and all(line["authorized"] for line in fleet.hub.journal)
    assert "hf_of_this_machine" not in with_token.output
    for secret in (TOKEN, "hf_of_this_machine"):
        found = host.shell(
            f"grep -rlsF {secret} /etc /var/lib/rigup-fetch /srv /run/rigup-fetch || true"
        ).stdout.split()
        assert found == (["/etc/rigup/hub-token"] if secret == TOKEN else []), found
        assert host.shell(f"journalctl | grep -c {secret} || true").stdout.strip() == "0"

    credential = json.dumps({"host": "huggingface.co", "token": TOKEN})
    host.shell("install -m 600 /dev/stdin /etc/rigup/hub-token", stdin=credential)
    host.shell("rm -rf /srv/models/* /var/lib/rigup-fetch/shared/*")
    fleet.hub.forget()
    fleet.hub.send(0)
    assert fleet.deploy().code == 0
    assert fleet.hub.journal and not any(line["authorized"] for line in fleet.hub.journal)
    host.shell("rm /etc/rigup/hub-token")
    fleet.rigs.write(hub_endpoint=fleet.hub.url)


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


def test_a_rebuilt_host_whose_store_survived_verifies_and_downloads_nothing(fleet: Fleet) -> None:
    host = fleet.hosts[0]
    host.shell("tar -C /srv -cpf /root/store.tar models")
    kept = (host.root / "root/store.tar").read_bytes()
    machine_id = host.shell("cat /etc/machine-id").stdout
    host.reset()
    machine.write_known_hosts()
    assert host.shell("cat /etc/machine-id").stdout != machine_id
    (host.root / "root/store.tar").write_bytes(kept)
    # Ids of users are dealt out anew.
    host.shell("tar -C /srv -xf /root/store.tar --no-same-owner && rm /root/store.tar")
    fleet.hub.forget()
    result = fleet.deploy()

    assert result.code == 0, result.output
    assert not [line for line in fleet.hub.journal if line["client"] == host.address]
    assert "is as published; nothing is fetched" in host.shell("journalctl -o cat -u 'model-fetch@*'").stdout
    assert fleet.sums(host) == published()
