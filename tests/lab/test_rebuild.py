"""A host is reset to bare, despite interruptions, and serves again after a deploy; files of others stay.

The tests build on each other, in file order.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from lab import machine, world
from lab.hub import JOURNAL
from lab.machine import Host
from lab.settings import SUBNET
from tests.lab.rigs import BIN, ROOT, Result, Rigs, status_of, wait_for_ordered_reboot
from tests.unit.waiting import until

NAME, PEER = "rig7", "rig8"
DAEMON_JSON = "/etc/docker/daemon.json"
DAEMON = '{"dns": ["192.0.2.53"], "features": {"buildkit": true}}\n'

# What others have put on the host before rigup came.
FOREIGN = {
    "/etc/default/grub.d/50-other.cfg": 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT mitigations=off"\n',
    "/etc/sysctl.d/70-other.conf": "vm.max_map_count = 1048576\n",
    "/etc/apt/sources.list.d/other.list": "# deb http://other.example.org/debian trixie main\n",
    "/etc/nftables.conf": "#!/usr/sbin/nft -f\n"
    "table inet other {\n  chain arriving { type filter hook input priority 0; }\n}\n",
    # With our name, and units with names like ours.
    "/opt/rigup-notes/today": "theirs\n",
    "/etc/systemd/system/llm@webui.service": "[Service]\nExecStart=/bin/sleep infinity\n",
    "/etc/systemd/system/rigup-pull-secrets.service": "[Service]\nExecStart=/bin/sleep infinity\n"
    "[Install]\nWantedBy=multi-user.target\n",
    DAEMON_JSON: DAEMON,
}
# Older guides' ways to name Docker's repository, and the one of an installer: they make way for a while.
SUPERSEDED = {
    "/etc/apt/sources.list.d/docker.list": "# deb http://other.example.org/docker trixie stable\n",
    "/etc/apt/sources.list.d/download_docker_com_linux_debian.list": "deb [arch=amd64 trusted=yes] "
    f"{world.defaults()['docker_mirror']}/debian trixie stable\n",
}

# What changes on a host as packages are installed and removed.
ITS_OWN = re.compile(
    r"boot/initrd\.img-|boot/grub/grub\.cfg$|etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$|etc/ld\.so\.cache$"
    r"|home/ops/\.sudo_as_admin_successful$|usr/lib/lab-standins/__pycache__|usr/lib/lab-standins$"
    r"|var/cache/(apt|debconf|ldconfig)/|var/lib/(apt|dpkg|systemd)/|srv(/models|$)|var/backups/"
)

# Where a rebuild is killed: what it prints when the operation has begun.
KILLS = [
    r"rebuild \| Remove the images",
    r"rebuild \| Purge the packages",
    r"rebuild \| Remove the files",
]
ALL_KILLS = [
    r"rebuild \| Wait for running requests",
    r"rebuild \| Stop endpoints",
    *KILLS,
    r"rebuild \| Remove our keys",
    r"rebuild \| Remove the users",
    r"rebuild \| Unmount the store's disk",
    r"rebuild \| Reboot if",
    r"rebuild \| Remove our directories",
    r"rebuild \| Verify that nothing is left",
]


@dataclass
class Node:
    """The host, and what it was when it was bare and when it served."""

    host: Host
    rigs: Rigs
    bare: dict[str, str]
    packages: dict[str, str] = field(default_factory=dict)

    def rebuild(self, *arguments: str) -> Result:
        return self.rigs.run("pyinfra", "inventory/lab.py", "rebuild.py", *(arguments or ("-y",)), timeout=900)

    def deploys(self) -> Result:
        return self.rigs.deploy("-y", "--limit", NAME)

    def deploy(self) -> None:
        result = self.deploys()
        assert result.code == 0, result.output

    def installed(self) -> dict[str, str]:
        lines = self.host.shell("dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\\n'").stdout.splitlines()
        return {line.split()[0]: line for line in lines}

    def store(self) -> str:
        listing = (
            "cd /srv/models && find . -type f -printf '%P %s %T@\\n' | sort && find . -type f | sort | xargs sha256sum"
        )
        return self.host.shell(listing).stdout

    def checkpoint(self) -> str:
        """What sha256sum says of the published files."""
        commit = "/srv/models/*/*/????????????????????????????????????????"
        return self.host.shell(f"cd {commit} && find . -type f -exec sha256sum {{}} + | sort -k2").stdout

    def others(self) -> dict[str, str]:
        paths = {**FOREIGN, **SUPERSEDED}
        return {path: self.host.shell(f"cat {path}", check=False).stdout for path in paths}

    def firewall(self) -> str:
        """The rules of others that are in force."""
        return self.host.shell("nft list table inet other").stdout

    def gateway(self) -> str:
        """What the control machine is answered at the endpoint's gateway."""
        return status_of(f"http://{self.host.address}:8000/health")

    def names(self) -> set[str]:
        return {name for name in self.host.files() if not ITS_OWN.match(name)}

    def size(self) -> int:
        """Bytes, without logs and apt's lists."""
        places = self.host.shell("du -s -B1 --exclude=log --exclude=lists /etc /usr /var/lib /var/cache").stdout
        return sum(int(line.split()[0]) for line in places.splitlines())

    def left_over(self) -> dict[str, tuple[str | None, str | None]]:
        """What is on the disk now and was not, or was another, when the host was bare."""
        now = self.host.files()
        names = {name for name in {*self.bare, *now} if not ITS_OWN.match(name)}
        return {
            name: (self.bare.get(name), now.get(name)) for name in sorted(names) if self.bare.get(name) != now.get(name)
        }


@pytest.fixture(scope="module")
def node(services: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    host = machine.start(NAME)
    try:
        host.reset(release="trixie", gpus=4, login="ops")
        machine.write_known_hosts()
        entry = {
            **world.connection(host),
            "endpoints": {"main": {"listen": host.address, "allowed_networks": [SUBNET]}},
        }
        rigs = Rigs(tmp_path_factory.mktemp("rebuild"), {NAME: entry}, world.defaults())
        rigs.write()
        host.shell("apt-get -qq update && apt-get -qq -y install nftables")
        for path, text in {**FOREIGN, **SUPERSEDED}.items():
            host.shell(f"install -D -m 644 /dev/stdin {path}", stdin=text)
        host.shell("systemctl daemon-reload && systemctl enable --quiet --now nftables rigup-pull-secrets")
        yield Node(host, rigs, host.files())
    finally:
        host.remove()
        machine.write_known_hosts()


@pytest.fixture
def peer(node: Node) -> Iterator[Host]:
    """Another host of the inventory, for as long as a test needs one."""
    host = machine.get(PEER)
    try:
        host.create(machine.Spec(release="bookworm", login="root"))
        machine.write_known_hosts()
        node.rigs.hosts[PEER] = world.connection(host)
        node.rigs.write()
        yield host
    finally:
        del node.rigs.hosts[PEER]
        node.rigs.write()
        host.remove()
        machine.write_known_hosts()


def test_a_host_that_was_never_deployed_is_bare_already(node: Node) -> None:
    result = node.rebuild()
    assert result.code == 0, result.output
    assert f"{NAME} is already bare" in result.output


def test_a_dry_run_shows_all_that_will_go_and_changes_nothing(node: Node) -> None:
    firewall = node.firewall()
    node.deploy()
    kept = node.others()
    daemon = json.loads(kept.pop(DAEMON_JSON))
    assert kept == {
        **{path: text for path, text in FOREIGN.items() if path != DAEMON_JSON},
        **dict.fromkeys(SUPERSEDED, ""),
    }
    assert daemon["dns"] == ["192.0.2.53"]
    assert (node.firewall(), node.gateway()) == (firewall, "200")
    node.packages = node.installed()
    before = node.host.files()
    result = node.rebuild("--dry")
    assert result.code == 0, result.output
    for word in (
        "llm@main.service", "docker-ce", "nvidia-kernel-open-dkms", "rigup-fetch", "/etc/sysctl.d/60-rigup.conf",
        f"{DAEMON_JSON} (runtimes", "the checkpoints stay",
    ):  # fmt: skip
        assert word in result.output
    assert node.host.files() == before


def test_without_the_hosts_name_nothing_begins(node: Node) -> None:
    before = node.host.files()
    done = subprocess.run(
        [str(BIN / "pyinfra"), "inventory/lab.py", "rebuild.py"],
        cwd=ROOT,
        env=node.rigs.environment(),
        input="\nrig70\n",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode > 0
    assert "its name was not typed" in done.stdout + done.stderr
    assert node.host.files() == before
    assert node.host.shell("systemctl is-active llm@main.service").stdout.strip() == "active"


def test_running_requests_are_waited_for_and_counted(node: Node) -> None:
    question = {
        "model": "Qwen3.5-397B-A17B",
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": 6000,
        "ignore_eos": True,
    }
    node.host.shell(
        "systemd-run --quiet --unit=asking --property=StandardOutput=file:/run/answer curl -sS "
        f"-H Content-Type:application/json http://127.0.0.1:8000/v1/chat/completions --data '{json.dumps(question)}'"
    )
    seen, at_the_gateway = "", ""
    with node.rigs.begun("pyinfra", "inventory/lab.py", "rebuild.py", "-y", "-v") as rebuild:
        assert rebuild.stdout is not None
        for line in rebuild.stdout:
            seen += line
            if "waiting for 1 request (1 at main)" in line:
                # HAProxy reloads while we look.
                until(lambda: node.gateway() == "503")
                at_the_gateway = node.gateway()
            if "Stop endpoints and downloads" in line:
                break
    assert at_the_gateway == "503", seen
    assert "all requests have ended after" in seen
    answer = json.loads(node.host.shell("cat /run/answer").stdout)
    assert answer["usage"]["completion_tokens"] == 6000


@pytest.mark.parametrize("kill", KILLS)
def test_a_rebuild_killed_on_its_way_can_be_run_again(node: Node, kill: str) -> None:
    node.rigs.killed_at(kill, "rebuild.py", delay=1)


def test_the_next_rebuild_ends_with_a_bare_host_and_an_untouched_store(node: Node) -> None:
    store = node.store()
    result = node.rebuild()
    assert result.code == 0, result.output
    assert "nothing is left of" in result.output
    assert node.left_over() == {}
    assert node.store() == store
    assert node.others() == {**FOREIGN, **SUPERSEDED}
    assert "hook input" in node.firewall()
    assert node.host.shell("systemctl is-active rigup-pull-secrets").stdout.strip() == "active"
    assert "kept: /opt/rigup-notes, which no deploy has created" in result.output
    assert node.gateway() == "000"
    assert "mitigations=off" in node.host.shell("cat /proc/cmdline").stdout
    assert "iommu=pt" not in node.host.shell("cat /proc/cmdline").stdout
    again = node.rebuild()
    assert (again.code, again.changed() if "report: " in again.output else []) == (0, []), again.output


def test_a_deploy_brings_the_host_back_as_it_was_over_pyinfras_own_connector_too(node: Node) -> None:
    store = node.store()
    deployed = node.rigs.deploy("-y", "--limit", NAME, RIGUP_CONNECTOR="ssh")
    assert deployed.code == 0, deployed.output
    for connector in ("rig", "ssh"):
        plan = node.rigs.run("rigup", "plan", RIGUP_CONNECTOR=connector)
        assert plan.code == 0, plan.output
    assert node.installed() == node.packages
    assert node.store() == store
    present = json.loads(node.host.shell(f"cat {DAEMON_JSON}").stdout)
    assert present["dns"] == ["192.0.2.53"]
    assert present["features"] == {"buildkit": True, "cdi": True}
    others = node.others()
    assert all(others[path] == text for path, text in FOREIGN.items() if path != DAEMON_JSON)
    assert "hook input" in node.firewall()
    assert node.gateway() == "200"
    audit = node.rigs.audit()
    assert audit.code == 0, audit.output


def test_what_others_have_come_to_need_or_changed_is_kept_and_listed(node: Node) -> None:
    node.host.shell("docker volume create theirs; docker volume create llm-webui-data")
    node.host.shell("echo '# mine' >>/etc/haproxy/haproxy.cfg")
    node.host.shell('sed -i \'s/"log-driver": "local"/"log-driver": "journald"/\' /etc/docker/daemon.json')
    node.host.shell("echo 'export MINE=1' >>/etc/profile.d/rigup-cuda.sh")
    result = node.rebuild()
    assert result.code == 0, result.output
    assert "kept: Docker itself, which holds volume llm-webui-data, volume theirs" in result.output, result.output
    assert "/var/backups/rigup/etc/haproxy/haproxy.cfg" in result.output
    assert node.host.shell("tail -1 /var/backups/rigup/etc/haproxy/haproxy.cfg").stdout == "# mine\n"
    assert "kept: log-driver in /etc/docker/daemon.json, which was changed since" in result.output
    assert "/var/backups/rigup/etc/profile.d/rigup-cuda.sh" in result.output
    assert node.host.shell("docker volume ls -q").stdout.split() == ["llm-webui-data", "theirs"]
    assert json.loads(node.host.shell(f"cat {DAEMON_JSON}").stdout) == {**json.loads(DAEMON), "log-driver": "journald"}
    assert "MINE=1" in node.host.shell("cat /var/backups/rigup/etc/profile.d/rigup-cuda.sh").stdout


def test_a_recreated_host_serves_again_from_its_peers_files_once_its_key_is_accepted(node: Node, peer: Host) -> None:
    filled = node.rigs.run("pyinfra", "inventory/lab.py", "tests/lab/store_steps.py", "-y")
    assert filled.code == 0, filled.output
    checkpoint = node.checkpoint()
    node.host.remove()
    node.host.create(machine.Spec(release="trixie", gpus=4, login="ops"))
    refused = node.deploys()
    assert refused.code > 0
    assert f"rigup accept {NAME}`" in " ".join(refused.output.split())
    accepted = node.rigs.run("rigup", "accept", NAME, "-y")
    assert accepted.code == 0, accepted.output
    lock, answered = node.rigs.lock.read_text(), len(JOURNAL.read_text().splitlines())
    deployed = node.deploys()
    assert deployed.code == 0, deployed.output
    answers = [json.loads(line) for line in JOURNAL.read_text().splitlines()[answered:]]
    # The hub is only asked whether it is reachable, not for files.
    files = [line for line in answers if line["about"] not in ("", "/api")]
    assert [line for line in files if line["client"] == node.host.address] == []
    assert node.checkpoint() == checkpoint
    assert node.gateway() == "200"
    assert node.rigs.lock.read_text() == lock
    assert node.packages.items() <= node.installed().items()
    audit = node.rigs.audit("--hosts", NAME)
    assert audit.code == 0, audit.output


@pytest.mark.soak
@pytest.mark.parametrize("kill", ALL_KILLS)
def test_a_rebuild_killed_at_any_step_is_finished_by_the_next(node: Node, kill: str) -> None:
    node.deploy()
    node.rigs.killed_at(kill, "rebuild.py", delay=0.3)
    wait_for_ordered_reboot(node.host)
    result = node.rebuild()
    assert result.code == 0, result.output


@pytest.mark.soak
def test_ten_rebuilds_and_deploys_in_a_row_change_nothing_in_the_end(node: Node) -> None:
    node.host.reset()
    node.bare = node.host.files()
    rounds, sizes = [], []
    for _ in range(10):
        node.deploy()
        audit = node.rigs.audit()
        assert audit.code == 0, audit.output
        rounds.append(({*node.installed().values()}, {*node.store().splitlines()}, node.names()))
        sizes.append(node.size())
        result = node.rebuild()
        assert result.code == 0, result.output
        assert node.left_over() == {}
    first, *others = rounds
    for each in others:
        assert [here ^ there for here, there in zip(first[:2], each[:2], strict=True)] == [set()] * 2
        # The first had to fetch the checkpoint, which leaves the downloader's notes.
        assert each[2] == others[0][2] < first[2]
    # Caches of apt and dpkg differ by a little; what is left of each round would add up.
    assert max(sizes) - sizes[0] < 5_000_000, sizes
