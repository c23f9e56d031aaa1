"""rigup-host fetch between hosts: each file comes from the hub once, and whatever a peer does, the bytes are right.

The hosts are directories on this machine, each with a real rsync daemon on an address of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import pytest

from rigup.plan.peers import Peer
from rigup.render.peers import daemon_config
from tests.unit.own_address import OWN_ADDRESS, free_port, is_open
from tests.unit.store_world import REPO, SHARD_BYTES, SHARDS, STALL_S, Rig, RunningHub, listing
from tests.unit.waiting import HANG_S, until

pytestmark = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")

pytest_plugins = ("tests.unit.store_world_plugin",)

FIRST, SECOND, THIRD = SHARDS


@contextmanager
def serving(rig: Rig, port: int, allowed: str = "127.0.0.1") -> Iterator[subprocess.Popen[bytes]]:
    """The daemon of one host."""
    rig.store.mkdir(parents=True, exist_ok=True)
    config = rig.directory / "rsyncd.conf"
    config.write_text(daemon_config(str(rig.store), port, [allowed]))
    argv = ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--address={OWN_ADDRESS}"]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        until(lambda: is_open(port), lambda: process.poll() is None)
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def fleet(hub: RunningHub, directory: Path, count: int) -> Iterator[list[Rig]]:
    """So many hosts, each with its daemon, that know each other."""
    everybody = [Peer(f"rig{number}", OWN_ADDRESS, free_port()) for number in range(1, count + 1)]
    rigs = []
    with ExitStack() as stack:
        for own in everybody:
            others = [asdict(each) for each in everybody if each != own]
            rig = Rig(directory / own.name, hub, own.name, {"peers": others})
            stack.enter_context(serving(rig, own.port))
            rigs.append(rig)
        yield rigs


def total(hub: RunningHub) -> int:
    return sum(entry.size for entry in hub.repository.entries.values())


def test_a_host_beside_one_that_has_it_asks_the_hub_for_nothing(hub: RunningHub, tmp_path: Path) -> None:
    with fleet(hub, tmp_path, 2) as (first, second):
        assert first.fetch().returncode == 0
        # Of a host that was rebuilt, the store is all that is left.
        shutil.rmtree(first.directory / "home")
        hub.forget()
        result = second.fetch()

        assert result.returncode == 0, result.stdout + result.stderr
        assert second.is_as_published() and second.is_clean()
        assert hub.journal == []


def test_hosts_that_begin_together_bring_each_file_from_the_hub_once(hub: RunningHub, tmp_path: Path) -> None:
    hub.tap.close_after(300_000)
    with fleet(hub, tmp_path, 3) as rigs, ThreadPoolExecutor(3) as pool:
        results = pool.map(lambda rig: rig.fetch(), rigs)
        until(lambda: all(rig.shared.exists() for rig in rigs))
        hub.tap.open()
        results = list(results)

        assert [result.returncode for result in results] == [0, 0, 0], [r.stdout + r.stderr for r in results]
        assert all(rig.is_as_published() and rig.is_clean() for rig in rigs)
        assert hub.sent() == total(hub)


def test_a_corrupt_file_of_a_peer_is_noticed_and_comes_from_the_hub(hub: RunningHub, tmp_path: Path) -> None:
    with fleet(hub, tmp_path, 2) as (first, second):
        assert first.fetch().returncode == 0
        with (first.dest / FIRST).open("r+b") as file:
            file.seek(5000)
            file.write(b"?!")
        hub.forget()
        result = second.fetch()

        assert result.returncode == 0, result.stdout + result.stderr
        assert f"{FIRST} from rig1 is not as published" in result.stdout
        assert second.is_as_published()
        assert hub.sent() == hub.sent(FIRST) == SHARD_BYTES


def test_a_killed_run_leaves_nothing_in_the_directory_for_temporary_files(
    hub: RunningHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    hub.tap.close_after(1_000_000)
    with fleet(hub, tmp_path, 2) as (first, _):
        with first.fetching() as process:
            until(lambda: first.arrived() > 1_000_000, lambda: process.poll() is None)

        assert list(temporary.iterdir()) == []


@contextmanager
def mortal(port: int, life: int) -> Iterator[int]:
    """A port that leads to `port` until so many bytes have come back through it: then nobody is there any more."""
    left, sockets = [life], [socket.create_server(("127.0.0.1", 0))]

    def die() -> None:
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def pump(source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 14):
                left[0] -= len(data) if counted else 0
                if left[0] < 0:
                    die()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = sockets[0].accept()
                server = socket.create_connection((OWN_ADDRESS, port))
                sockets.extend((client, server))
                threading.Thread(target=pump, args=(client, server, False), daemon=True).start()
                threading.Thread(target=pump, args=(server, client, True), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield int(sockets[0].getsockname()[1])
    finally:
        die()


def test_what_a_peer_that_dies_in_the_middle_of_its_files_did_not_send_comes_from_the_hub(
    hub: RunningHub, tmp_path: Path
) -> None:
    rig, other = Rig(tmp_path / "rig1", hub), Rig(tmp_path / "rig2", hub, "rig2")
    port = free_port()
    assert other.fetch().returncode == 0
    hub.forget()
    with serving(other, port), mortal(port, 4_000_000) as last:
        result = rig.fetch(peers=[asdict(Peer("rig2", "127.0.0.1", last))])

    assert result.returncode == 0, result.stdout + result.stderr
    assert rig.is_as_published() and rig.is_clean()
    broken = re.findall(r"(\S+) from rig2: rsync exited with", result.stdout)
    # A dead one is asked whether it is there before it is asked for files again.
    assert 1 <= len(broken) == len(set(broken)), result.stdout
    # At most three files were on their way, and what had come of them is kept.
    assert 3 * SHARD_BYTES - 4_000_000 <= hub.sent() <= 3 * SHARD_BYTES - 3_000_000


def test_the_files_of_a_client_that_dies_while_peers_are_asked_are_not_forgotten(
    hub: RunningHub, tmp_path: Path
) -> None:
    rig = Rig(tmp_path / "rig1", hub)
    hub.tap.close_after(1_000_000)
    hub.err(f"503,path={FIRST},times=1")
    refused, killed = threading.Event(), threading.Event()

    def peer(listening: socket.socket) -> None:
        """It hangs up when it is asked, and once the hub has refused a file, not before the client was killed."""
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection:
                    if refused.is_set() and not killed.is_set():
                        rig.kill_client(process)
                        killed.set()
                        hub.tap.open()

    with socket.create_server((OWN_ADDRESS, 0)) as listening:
        port = listening.getsockname()[1]
        with rig.fetching(peers=[asdict(Peer("rig2", OWN_ADDRESS, port))]) as process:
            threading.Thread(target=peer, args=(listening,), daemon=True).start()
            assert process.stdout is not None
            assert any("answered 503" in line for line in process.stdout)
            refused.set()
            said = process.communicate(timeout=HANG_S)[0]

    assert process.returncode == 0, said
    assert "the hub's client exited with -9" in said and "no byte for" not in said
    assert rig.is_as_published() and rig.is_clean()


def test_what_a_host_that_died_was_fetching_is_fetched_by_another(hub: RunningHub, tmp_path: Path) -> None:
    with fleet(hub, tmp_path, 2) as (first, second):
        first.shared.parent.mkdir(parents=True)
        said = {"beat": 1, "active": True, "held": [], "wants": [], "fetching": [FIRST]}
        first.shared.write_text(json.dumps(said))
        second.options = (f"--silence={STALL_S}",)
        with second.fetching() as process:
            until(lambda: second.told().get("step") == "waiting for peers", lambda: process.poll() is None)
            second.later(STALL_S)
            said = process.communicate(timeout=HANG_S)[0]

        assert process.returncode == 0, said
        assert second.is_as_published()
        assert json.loads(second.progress.read_text())["step"] == "complete"


def test_a_host_that_can_fetch_nothing_now_keeps_no_other_one_waiting(hub: RunningHub, tmp_path: Path) -> None:
    """Of several that want a file the first by name fetches it, once all the others have said that they do not."""
    hub.err(f"429,path={SECOND},times=1,value=3600")
    with fleet(hub, tmp_path, 3) as (_, rig, other):
        other.shared.parent.mkdir(parents=True)

        def wants() -> list[str]:
            """What it says that it wants, while the other one goes on to want the first file."""
            said = {"beat": time.time_ns(), "active": True, "held": [], "wants": [FIRST], "fetching": []}
            other.shared.with_suffix(".new").write_text(json.dumps(said))
            other.shared.with_suffix(".new").replace(other.shared)
            return list(json.loads(rig.shared.read_text())["wants"]) if rig.shared.exists() else []

        wants()
        files = listing(hub.repository)
        with rig.fetching(files={name: files[name] for name in (FIRST, SECOND)}):
            until(lambda: wants() == [] and rig.told().get("step") == "waiting before the next try")


def test_a_host_that_is_no_peer_gets_nothing_and_nobody_can_write(hub: RunningHub, tmp_path: Path) -> None:
    rig = Rig(tmp_path / "rig1", hub)
    assert rig.fetch().returncode == 0
    port = free_port()
    url = f"rsync://{OWN_ADDRESS}:{port}/models/{REPO}/{hub.repository.commit}/config.json"
    target = tmp_path / "stolen"
    with serving(rig, port, allowed="192.0.2.1"):
        refused = subprocess.run(["rsync", url, str(target)], capture_output=True, text=True)
        assert refused.returncode != 0 and not target.exists()
    with serving(rig, port):
        listed = subprocess.run(["rsync", f"rsync://{OWN_ADDRESS}:{port}"], capture_output=True, text=True)
        assert listed.stdout.strip() == ""
        (tmp_path / "mine").write_text("{}")
        written = subprocess.run(["rsync", str(tmp_path / "mine"), url], capture_output=True, text=True)
        assert "read only" in written.stderr
        assert subprocess.run(["rsync", url, str(target)]).returncode == 0
    assert rig.is_as_published()
