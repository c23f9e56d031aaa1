"""Rebuild: what it waits for, in which order it removes things, and what of others it leaves alone."""

from __future__ import annotations

import hashlib
import os
import shlex
import socket
import subprocess
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
from pyinfra.api.config import Config
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State, StateStage
from pyinfra.context import ctx_state

from rigup.facts import ledger as facts
from rigup.facts.ledger import Remains, links_of, parse_remains, remains_of
from rigup.facts.packages import Conffiles, parse_edited
from rigup.ledger import Ledger
from rigup.operations import _wait, drain
from rigup.operations.teardown import docker, files, finish, packages, units
from rigup.operations.teardown.kept import Kept
from rigup.paths import APT_UNIT, ENGINES, SWITCH_UNIT
from tasks.context import Refused
from tasks.rebuild import _check_max_unavailable, _yes_or_no
from tests.unit.deploys import Actor, Said
from tests.unit.own_address import OWN_ADDRESS, free_port
from tests.unit.test_operations_units import NO_UNIT, shown

UNIT = "/usr/local/lib/systemd/system/llm@main.service"
BOOK = Ledger(
    files={UNIT: frozenset({"aa"}), "/etc/apt/keyrings/docker.asc": frozenset({"bb"})},
    packages=("docker-ce", "haproxy"),
    images=("vllm@sha256:1",),
    volumes=("llm-main-root-.cache",),
    checkpoints=("/srv/models/org/name/abc",),
)
BUSY = ['vllm:num_requests_running{engine="0"} 2.0']
IDLE = ['vllm:num_requests_running{engine="0"} 0.0']


@pytest.fixture(autouse=True)
def no_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_wait, "pause", lambda seconds: None)


def sh(command: str, **environment: str) -> list[str]:
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env={**os.environ, **environment})
    return done.stdout.splitlines()


def really(command: str) -> Said:
    """What a command comes to on this machine."""
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    return Said(done.stdout.splitlines(), ok=done.returncode == 0)


def hurried(command: str) -> Said:
    """The same, with less patience."""
    assert "-m 10 " in command
    return really(command.replace("-m 10 ", "-m 1 "))


def position(commands: list[str], part: str) -> int:
    return next(number for number, command in enumerate(commands) if part in command)


# Draining and stopping


def test_the_gateways_let_nobody_in_before_running_requests_are_counted() -> None:
    actor = Actor().answers("curl", BUSY, IDLE)
    outcome = actor.does(drain.drained, endpoints={"main": "http://127.0.0.1:8000/metrics"}, limit=60)
    assert not outcome.failed
    gateway = position(outcome.commands, "--signal=USR2 -- rigup-gateway@main.service")
    assert "/etc/rigup/gateways/main.cfg" in outcome.commands[gateway]
    assert gateway < position(outcome.commands, "curl")
    assert "the gateway of main answers new requests with 503" in outcome.told
    assert "waiting for 2 requests (2 at main)" in outcome.told
    assert "all requests have ended" in outcome.told


def test_an_endpoint_that_does_not_count_its_requests_is_named_once_and_not_waited_for() -> None:
    actor = Actor().answers("sed -i", Said(ok=False))
    actor.answers(":8000/", ["404 page not found"]).answers(":8001/", BUSY, IDLE)
    urls = {name: f"http://127.0.0.1:{port}/metrics" for name, port in {"sg": 8000, "main": 8001}.items()}
    outcome = actor.does(drain.drained, endpoints=urls, limit=60)
    assert outcome.told.count("sg does not report its running requests") == 1
    assert "waiting for 2 requests (2 at main)" in outcome.told
    assert "503" not in outcome.told


def test_an_endpoint_that_is_down_is_neither_waited_for_nor_named() -> None:
    url = f"http://{OWN_ADDRESS}:{free_port()}/metrics"
    actor = Actor().answers("sed -i", Said(ok=False)).answers("curl", really)
    outcome = actor.does(drain.drained, endpoints={"main": url}, limit=60)
    assert outcome.told.endswith("[@fake/rig1] Success")
    assert not [line for line in outcome.told.splitlines() if "request" in line]


def test_an_endpoint_that_is_too_busy_to_count_its_requests_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/metrics"
        actor = Actor().answers("sed -i", Said(ok=False)).answers("curl", hurried, IDLE)
        outcome = actor.does(drain.drained, endpoints={"main": url}, limit=60)
    assert "waiting for 1 request (1 at main)" in outcome.told
    assert "all requests have ended" in outcome.told


def test_apt_that_is_at_work_is_waited_for_and_not_stopped() -> None:
    at_work, done = shown("activating", "start"), shown("active", "exited")
    actor = Actor().answers("show", at_work, at_work, done)
    actor.answers("list-units", ["llm@main.service loaded active running x", "rigup-switch.service loaded activating"])
    outcome = actor.does(units.stopped, ledger=BOOK)
    assert not outcome.failed
    waits = [number for number, command in enumerate(outcome.commands) if "systemctl show" in command]
    assert len(waits) == 3
    assert waits[-1] < position(outcome.commands, "systemctl disable")
    # A switch would start again what was stopped under it.
    stops = [command for command in outcome.commands if command.startswith("systemctl stop")]
    assert stops[-2:] == ["systemctl stop -- rigup-switch.service", "systemctl stop -- llm@main.service"]


def test_only_units_that_a_deploy_wrote_are_looked_for() -> None:
    actor = Actor().answers("systemctl show", NO_UNIT)
    book = replace(BOOK, images=(f"vllm@sha256:{'a' * 64}",), engines=(f"{ENGINES}/0123456789abcdef",))
    outcome = actor.does(units.stopped, ledger=book)
    (listing,) = [command for command in outcome.commands if "list-units --all" in command]
    patterns = shlex.split(listing.partition(" -- ")[2])
    assert "llm@main.service" in patterns

    def found(unit: str) -> bool:
        return any(fnmatch(unit, pattern) for pattern in patterns)

    # The commands that run as units have no file; what they were to fetch is in the ledger.
    pull, engine = f"rigup-pull-{'a' * 12}.service", "rigup-engine-0123456789abcdef.service"
    assert all(map(found, (APT_UNIT, SWITCH_UNIT, pull, engine)))
    theirs = ("rigup-backup.service", "rigup-backup.timer", "rigup-pull-secrets.service", "rigup-engine-room.service")
    assert not any(map(found, theirs))
    remains = shlex.split(str(Remains().command(**remains_of(book))))
    assert not any(fnmatch(unit, word) for unit in theirs for word in remains if word.endswith(".service"))


# Docker


def test_containers_are_known_by_our_label_and_volumes_by_the_ledger() -> None:
    actor = Actor().answers("--filter label=rigup.plan", ["llm-main"])
    actor.answers("docker ps", ["llm-webui"]).answers("docker volume ls", ["llm-webui-data"])
    kept = Kept()
    outcome = actor.does(docker.docker_emptied, ledger=BOOK, kept=kept)
    removals = [command for command in outcome.commands if " rm " in command]
    assert removals == [
        "docker rm --force -- llm-main",
        "docker volume rm --force -- llm-main-root-.cache",
        "docker image rm -- vllm@sha256:1",
    ]
    assert kept.docker == ["container llm-webui", "volume llm-webui-data"]


# Packages


def test_edited_configuration_is_found_and_what_is_as_published_is_not(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("same", "edited", "obsolete", "gone", "with space")}
    for name, path in files.items():
        path.write_text(name)
    sums = {name: hashlib.md5(path.read_bytes()).hexdigest() for name, path in files.items()}
    files["gone"].unlink()
    for name in ("edited", "obsolete", "with space"):
        files[name].write_text("by hand")
    listed = "".join(
        f" {path} {sums[name]}{' obsolete' if name == 'obsolete' else ''}\n" for name, path in files.items()
    )
    fake = tmp_path / "bin/dpkg-query"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\ncat {tmp_path}/listed\n")
    fake.chmod(0o755)
    (tmp_path / "listed").write_text(listed)
    command = Conffiles().command(["haproxy"]).get_raw_value()
    found = parse_edited(sh(command, PATH=f"{fake.parent}:{os.environ['PATH']}"))
    assert found == {str(files[name]) for name in ("edited", "obsolete", "with space")}


def test_edited_configuration_of_a_package_is_put_aside_before_the_purge_and_told() -> None:
    edited = ["/etc/haproxy/haproxy.cfg: FAILED", "/etc/apt/keyrings/docker.asc: FAILED"]
    actor = Actor().answers("Conffiles", edited)
    # One is gone already, of another only the configuration is left.
    actor.answers("dpkg-query", ["config-files docker-ce", "installed haproxy", "not-installed nvidia-persistenced"])
    actor.answers("systemctl show rigup-apt", NO_UNIT).answers("systemctl show", shown("active", "exited"))
    kept = Kept()
    outcome = actor.does(packages.packages_purged, ledger=BOOK, kept=kept)
    assert not outcome.failed, outcome.told
    copy = position(outcome.commands, "/var/backups/rigup/etc/haproxy/haproxy.cfg")
    purge = position(outcome.commands, "systemd-run")
    assert copy < purge and "purge docker-ce haproxy" in outcome.commands[purge]
    assert "nvidia-persistenced" not in outcome.commands[purge]
    # What we have written there ourselves nobody else has edited.
    assert kept.notes == [
        "/etc/haproxy/haproxy.cfg as it was changed by hand: saved as /var/backups/rigup/etc/haproxy/haproxy.cfg"
    ]


def test_packages_that_others_need_stay_and_so_does_their_configuration() -> None:
    actor = Actor().answers("dpkg-query -W -f '${db:Status-Status}", ["installed docker-ce", "installed haproxy"])
    actor.answers("--simulate purge docker-ce haproxy", ["Purg docker-ce", "Purg haproxy", "Purg their-balancer"])
    actor.answers("apt-cache depends", ["their-balancer", "  Depends: haproxy"])
    actor.answers("systemctl show", NO_UNIT, NO_UNIT, shown("active", "exited"))
    kept = Kept()
    outcome = actor.does(packages.packages_purged, ledger=BOOK, kept=kept)
    assert kept.packages == {"haproxy"}
    (asked,) = [command for command in outcome.commands if "Conffiles" in command]
    assert "-- docker-ce 2>" in asked


# The store


def test_checkpoints_on_a_disk_of_their_own_are_removed_from_that_disk_or_not_at_all() -> None:
    mounts = ["srv-models.mount"]
    outcome = Actor().does(files.store_removed, ledger=BOOK, mounts=mounts)
    assert position(outcome.commands, "systemctl start -- srv-models.mount") < position(outcome.commands, "rm -rf")
    missing = Actor().answers("systemctl start", Said(ok=False, errors=["no such device"]))
    outcome = missing.does(files.store_removed, ledger=BOOK, mounts=mounts)
    assert outcome.failed and outcome.ran("rm -rf") == 0
    assert "is not mounted, so they cannot be removed" in outcome.told


@pytest.mark.parametrize(
    ("word", "meant"), [("y", True), ("Yes", True), ("on", True), (1, True), (True, True), ("n", False), (0, False)]
)
def test_remove_store_takes_every_usual_word(word: object, meant: bool) -> None:
    assert _yes_or_no(word) is meant


def test_remove_store_refuses_a_word_that_is_neither_yes_nor_no() -> None:
    with pytest.raises(Refused, match=r"remove_store=please is neither .* Write remove_store=yes to remove"):
        _yes_or_no("please")


def test_a_fleet_is_rebuilt_host_by_host() -> None:
    state = State(Inventory((["@fake/rig2", "@fake/rig1"], {})), Config())
    state.current_stage = StateStage.Connect
    state.activate_host(state.inventory.get_host("@fake/rig1"))
    with ctx_state.use(state):
        _check_max_unavailable(1)
        state.activate_host(state.inventory.get_host("@fake/rig2"))
        with pytest.raises(Refused, match=r"max_unavailable is 1: rebuild and deploy @fake/rig1 first"):
            _check_max_unavailable(1)
        _check_max_unavailable(2)


# The check that nothing is left


def test_what_only_bears_our_name_is_kept_and_told_and_what_was_cut_short_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "SEARCHED", (str(tmp_path),))
    ours, theirs = tmp_path / "sources/.rigup-new.docker.sources", tmp_path / "opt/rigup-checkout"
    for path in (ours, theirs):
        path.mkdir(parents=True)
    remains = parse_remains(sh(Remains().command(**remains_of(Ledger())).get_raw_value()))
    assert str(ours) in remains.words() and str(theirs) not in remains.words()
    assert str(theirs) in remains.named and str(ours) not in remains.named

    actor = Actor().answers("list-units", ["--- named", str(theirs)])
    outcome = actor.does(finish.verified_bare, ledger=BOOK, kept=Kept())
    assert not outcome.failed
    assert f"kept: {theirs}, which no deploy has created" in outcome.told
    left = Actor().answers("list-units", ["--- paths", str(ours)])
    assert not left.does(finish.verified_bare, ledger=BOOK, kept=Kept()).changed


def test_a_file_of_others_that_was_put_back_does_not_count_as_ours() -> None:
    path = "/etc/apt/keyrings/docker.asc"
    actor = Actor().answers("list-units", ["--- paths", path])
    actor.answers("sha256sum", [f"cc  {path}", f"cc  /var/lib/rigup/before{path}"])
    assert not actor.does(finish.verified_bare, ledger=BOOK, kept=Kept()).failed
    ours = Actor().answers("list-units", ["--- paths", path]).answers("sha256sum", [f"bb  {path}"])
    outcome = ours.does(finish.verified_bare, ledger=BOOK, kept=Kept())
    assert outcome.failed and f"not bare yet: {path}" in outcome.told


def test_links_and_trials_are_those_of_our_own_units(tmp_path: Path) -> None:
    odd = Ledger(files={"/etc/systemd/system/srv-m\\x2d1.mount": frozenset({"aa"}), **BOOK.files})
    assert links_of(odd) == [
        "/etc/systemd/system/*.wants/llm@main.service",
        "/run/systemd/system/llm@main.service",
        "/etc/systemd/system/*'.wants/srv-m\\x2d1.mount'",
        "'/run/systemd/system/srv-m\\x2d1.mount'",
    ]
