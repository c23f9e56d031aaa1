"""rigup-host fetch between hosts: each file comes from the hub once, and whatever a peer does, the bytes are right.

The hosts are directories on this machine, each with a real rsync daemon on an address of its own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import pytest

from rigup.plan.peers import Peer
from rigup.render.peers import daemon_config
from rigup_host.fetch.peers import Report
from rigup_host.fetch.store import Store
from tests.unit.host_world import LAUNCH, run_program
from tests.unit.own_address import OWN_ADDRESS, free_port, is_open
from tests.unit.store_world import REPO, SHARD_BYTES, SHARDS, STALL_S, Rig, RunningHub, ended, hub_of, listing
from tests.unit.waiting import HANG_S, until

pytestmark = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")

pytest_plugins = ("tests.unit.store_world_plugin",)

FIRST, SECOND, THIRD = SHARDS


@contextmanager
def serving(rig: Rig, port: int, allowed: str = "127.0.0.1") -> Iterator[subprocess.Popen[bytes]]:
    """The daemon of one host."""
    rig.store.mkdir(parents=True, exist_ok=True)
    config = rig.directory / "rsyncd.conf"
    text = daemon_config(str(rig.store), port, [allowed], [str(rig.dest)], str(rig.directory), shlex.join(LAUNCH))
    # As root the daemon would continue as nobody, and permissions would hide what the configuration allows.
    config.write_text(text.replace("port =", "uid = 0\ngid = 0\nport =", os.geteuid() == 0))
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
        written = (first.dest / FIRST).stat()
        with (first.dest / FIRST).open("r+b") as file:
            file.seek(5000)
            file.write(b"?!")
        # The disk has lost it: nobody has written to it.
        os.utime(first.dest / FIRST, ns=(written.st_atime_ns, written.st_mtime_ns))
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
def mortal(port: int, life: int, stuck: threading.Event | None = None) -> Iterator[int]:
    """A port that leads to `port` until so many bytes have come back through it: then nobody is there any more.

    With `stuck` its connections stay, and no file comes through them from when that event is set.
    """
    over, left, sockets = threading.Event(), [life], [socket.create_server(("127.0.0.1", 0))]
    copies: set[socket.socket] = set()

    def die() -> None:
        over.set()
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def pump(source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 14):
                if b"models\n" in data and not counted:
                    copies.add(sink)
                left[0] -= len(data) if counted else 0
                if left[0] < 0 and stuck:
                    stuck.set()
                    # A report that never ends would hold up the run for as long as a peer may be silent.
                    if source in copies:
                        over.wait()
                elif left[0] < 0:
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


def pass_time(rig: Rig, process: subprocess.Popen[str]) -> None:
    """Let more time pass than a copy may take, and return once the run has looked at the clock."""
    told = rig.progress.stat().st_ino
    rig.later(STALL_S + 60)
    until(lambda: rig.progress.stat().st_ino != told, lambda: process.poll() is None)


def test_a_peer_that_sends_too_slowly_is_left(hub: RunningHub, tmp_path: Path) -> None:
    rig, other = Rig(tmp_path / "rig1", hub, options=(f"--stall={STALL_S}",)), Rig(tmp_path / "rig2", hub, "rig2")
    port, stuck = free_port(), threading.Event()
    assert other.fetch().returncode == 0
    with (
        serving(other, port),
        mortal(port, 4_000_000, stuck) as slow,
        rig.fetching(peers=[asdict(Peer("rig2", "127.0.0.1", slow))]) as process,
    ):
        assert stuck.wait(HANG_S)
        until(lambda: "from rig2" in rig.told().get("doing", ""))
        # A copy may begin after any of these, and its time counts from then.
        while "from rig2" in rig.told().get("doing", ""):
            pass_time(rig, process)
        said = process.communicate(timeout=HANG_S)[0]

    assert process.returncode == 0, said
    assert "rig2 sends" in said and "too slowly; it is not asked again" in said
    assert rig.is_as_published() and rig.is_clean()


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
        first.shared.write_text(json.dumps({**HONEST, "fetching": [FIRST]}))
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


@contextmanager
def served(rig: Rig, target: Path) -> Iterator[Callable[..., list[str]]]:
    """Run a host's daemon; yield a function that asks it as any client can, and returns the files that came."""
    port = free_port()

    def copied(*paths: str, options: Sequence[str] = (), module: str = "models") -> list[str]:
        shutil.rmtree(target, ignore_errors=True)
        urls = [f"rsync://{OWN_ADDRESS}:{port}/{module}/{path}" for path in paths]
        argv = ["rsync", "--timeout=30", *options, *urls, f"{target}/"]
        subprocess.run(argv, stderr=subprocess.DEVNULL, timeout=HANG_S)
        return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())

    with serving(rig, port):
        yield copied


def test_peers_get_only_what_the_downloader_has_written(hub: RunningHub, tmp_path: Path) -> None:
    rig = Rig(tmp_path / "rig1", hub)
    assert rig.fetch().returncode == 0
    own = rig.dest.parent
    private = [own / "tuned" / FIRST, own / ("f" * 40) / FIRST, rig.store / "org" / "mine" / FIRST, own / "notes.txt"]
    for path in private:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")
    place = f"{REPO}/{rig.dest.name}"
    with served(rig, tmp_path / "copied") as copied:
        assert copied(f"{place}/{FIRST}") == [FIRST]
        assert copied(f"{place}/sub/tokenizer.json") == ["tokenizer.json"]
        assert copied(f"{place}/", options=["--recursive"]) == sorted(hub.repository.entries)
        assert copied(f"{place}.shared.json", module="reports") == [rig.shared.name]
        for path in (*private, rig.stamp):
            name = path.relative_to(rig.store).as_posix()
            assert not copied(name) and not copied(name, module="reports")
        assert not copied(f"{place}/{FIRST}", module="reports")
        for above in ("", "org/", f"{REPO}/"):
            assert not copied(above, options=["--recursive"])
            assert copied(above, options=["--recursive"], module="reports") in (
                [],
                [f"{REPO}/{rig.shared.name}"[len(above) :]],
            )


def by_hand(rig: Rig) -> None:
    """The checkpoint as somebody has put it there, complete and as published."""
    rig.stamp.unlink()


def restamped(rig: Rig, **changes: object) -> None:
    rig.stamp.write_text(json.dumps({**json.loads(rig.stamp.read_text()), **changes}))


@pytest.mark.parametrize(
    "change",
    [
        by_hand,
        lambda rig: restamped(rig, revision="f" * 40),
        lambda rig: restamped(rig, repo="org/other"),
        lambda rig: restamped(rig, machine="f" * 32),
        lambda rig: rig.stamp.write_text("{"),
        lambda rig: rig.stamp.rename(rig.stamp.with_name(f"{'f' * 40}.verified.json")),
        lambda rig: (rig.dest / "notes.txt").write_text("mine"),
        lambda rig: (rig.dest / FIRST).write_bytes(b"x" * SHARD_BYTES),
        lambda rig: (rig.dest / "link").symlink_to("/etc/passwd"),
    ],
    ids=["no stamp", "commit", "repository", "machine", "no JSON", "name", "added", "written to", "link"],
)
def test_what_this_machine_has_not_verified_is_not_served(
    hub: RunningHub, tmp_path: Path, change: Callable[[Rig], object]
) -> None:
    rig = Rig(tmp_path / "rig1", hub)
    assert rig.fetch().returncode == 0
    place = f"{REPO}/{rig.dest.name}"
    with served(rig, tmp_path / "copied") as copied:
        # Each connection is judged by what is there then.
        assert copied(f"{place}/config.json") == ["config.json"]
        change(rig)
        assert not copied(f"{place}/config.json") and not copied(f"{place}/", options=["--recursive"])
        # The next download verifies it.
        assert rig.fetch().returncode == 0
        assert copied(f"{place}/config.json") == ["config.json"]


def test_of_a_download_only_what_this_machine_has_verified_is_served(hub: RunningHub, tmp_path: Path) -> None:
    rig = Rig(tmp_path / "rig1", hub)
    place = f"{REPO}/{rig.staging.name}"
    rig.staging.mkdir(parents=True)
    (rig.staging / "config.json").write_text("somebody's")
    hub.tap.close_after(1000)
    with served(rig, tmp_path / "copied") as copied:
        assert not copied(f"{place}/config.json")
        with rig.fetching() as process:
            mark, config = rig.staging / ".arriving/.arriving", rig.staging / "config.json"
            # The mark says that what was there before counts as not verified.
            until(lambda: mark.exists() and config.exists(), lambda: process.poll() is None)
            assert copied(f"{place}/config.json") == ["config.json"]
            assert (tmp_path / "copied/config.json").read_text() != "somebody's"
            # As a peer asks, who does not know whether the download has ended.
            both = [f"{place}/config.json", f"{REPO}/{rig.dest.name}/config.json"]
            assert copied(*both) == ["config.json"]
            assert not copied(f"{place}/.arriving/{FIRST}")
        mark.write_text("f" * 32)
        assert not copied(f"{place}/config.json")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([".", "{own}/config.json"], 0),
        (["-r", "--timeout=30", ".", "{own}/"], 0),
        # A peer that does not know whether a download has ended asks for both.
        ([".", "{staging}/config.json", "{own}/config.json"], 0),
        ([".", "{own}/config.json", "{other}/config.json"], 1),
        # rsync takes any word that is not an option for a path.
        (["{other}/config.json", ".", "{own}/config.json"], 1),
        (["--files-from", "/wanted", ".", "{own}/"], 1),
        (["--files-from", ".", ".", "{own}/"], 1),
        ([".", "{own}/../{revision}/config.json"], 1),
        ([".", "{own}/.."], 1),
        ([".", "org//model/{revision}/config.json"], 1),
        ([".", "org/./model/{revision}/config.json"], 1),
        ([".", "/{own}/config.json"], 1),
        ([".", "org/model"], 1),
        ([".", "."], 1),
        (["."], 1),
        ([], 1),
    ],
)
def test_a_request_is_served_only_if_all_its_paths_lead_into_what_is_verified(
    tmp_path: Path, words: list[str], status: int
) -> None:
    own = Store(REPO, "1" * 40, tmp_path / REPO / ("1" * 40), {})
    other = tmp_path / REPO / ("2" * 40)
    for place in (own.dest, other):
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
    own.stamp(own.dest)
    names = {"own": f"{REPO}/{'1' * 40}", "other": f"{REPO}/{'2' * 40}", "staging": f"{REPO}/.{'1' * 40}.incoming"}
    given = ["--server", "--sender", *(word.format(**names, revision="1" * 40) for word in words)]
    environment = {f"RSYNC_ARG{at}": word for at, word in enumerate(["rsyncd", *given])}
    result = run_program("may-serve", **environment, RSYNC_MODULE_PATH=str(tmp_path))
    assert result.returncode == status, result.stdout
    assert bool(result.stdout) == bool(status) and not result.stderr


def test_nothing_else_can_be_read_or_written(hub: RunningHub, tmp_path: Path) -> None:
    """18 reads and 2 writes that were tried in an audit from outside, in the forms in which a client can ask."""
    rig = Rig(tmp_path / "rig1", hub)
    assert rig.fetch().returncode == 0
    place, revision = f"models/{REPO}", rig.dest.name
    secret = tmp_path / "secret"
    secret.write_text("secret")
    private = {
        rig.stamp: "stamp",
        rig.store / "own.txt": "next to owners",
        rig.store / "org/own.txt": "next to repositories",
        rig.dest.parent / "own.txt": "next to commits",
        rig.dest.parent / "main" / FIRST: "a branch",
        rig.dest.parent / ("f" * 40) / FIRST: "another commit",
        rig.store / "org/tuned" / revision / FIRST: "another repository",
        rig.store / "mine/model" / revision / FIRST: "another owner",
        rig.staging / ".arriving" / FIRST: "not verified",
        rig.store / ".hidden/key": "hidden",
    }
    for path, content in private.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without its stamp nothing would be served.
        if path != rig.stamp:
            path.write_text(content)
    (rig.dest.parent / "link").symlink_to(secret)
    up = "/".join([".."] * 8)
    reads = [
        *(f"models/{path.relative_to(rig.store)}" for path in private),
        f"{place}/link",
        f"{place}/{revision}/../link",
        f"{place}/{revision}/../../../own.txt",
        f"models/{up}{secret}",
        f"models/{secret}",
        f"{secret}",
        "rsyncd.conf",
        f"models/{up}/etc/passwd",
    ]
    assert len(reads) == 18
    port, target, mine = free_port(), tmp_path / "copied", tmp_path / "mine"
    writes = [mine / "config.json", mine / "new.json"]
    mine.mkdir()
    for path in writes:
        path.write_text("mine")
    options = ["--recursive", "--links", "--safe-links", "--timeout=30"]

    def copied(*arguments: str) -> int:
        return subprocess.run(["rsync", *arguments], capture_output=True, timeout=HANG_S).returncode

    with serving(rig, port):
        url = f"rsync://{OWN_ADDRESS}:{port}"
        assert copied(*options, f"{url}/{place}/{revision}/{FIRST}", f"{target}/") == 0
        shutil.rmtree(target)
        for name in reads:
            copied(*options, f"{url}/{name}", f"{target}/")
            # With the client's own filter, too.
            copied(*options, "--include=*", "--copy-links", f"{url}/{name}", f"{target}/")
            assert not [each for each in target.rglob("*") if not each.is_dir()], name
        for path in writes:
            assert copied(str(path), f"{url}/{place}/{revision}/") != 0
    assert rig.is_as_published()


def test_the_daemon_serves_so_many_connections_and_no_more(hub: RunningHub, tmp_path: Path) -> None:
    rig = Rig(tmp_path / "rig1", hub)
    assert rig.fetch().returncode == 0
    port = free_port()
    with serving(rig, port), ExitStack() as stack:

        def answer() -> bytes:
            """What comes of one more connection that asks for files and then says nothing."""
            connection = stack.enter_context(socket.create_connection((OWN_ADDRESS, port), HANG_S))
            lines = stack.enter_context(connection.makefile("rb"))
            lines.readline()
            connection.sendall(b"@RSYNCD: 31.0 md5\nmodels\n")
            return bytes(lines.readline())

        assert {answer() for _ in range(16)} == {b"@RSYNCD: OK\n"}
        assert answer().startswith(b"@ERROR: max connections (16) reached")


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


@contextmanager
def hostile(hub: RunningHub, directory: Path) -> Iterator[tuple[Rig, Path]]:
    """A host with one peer, whose daemon serves whatever is in the second value, the directory of the checkpoint."""
    port = free_port()
    rig = Rig(directory / "rig1", hub, "rig1", {"peers": [asdict(Peer("rig2", OWN_ADDRESS, port))]})
    place = directory / "rig2" / REPO
    place.mkdir(parents=True)
    config = directory / "rsyncd.conf"
    modules = "".join(f"[{name}]\npath = {directory / 'rig2'}\n" for name in ("reports", "models"))
    config.write_text(f"port = {port}\nuse chroot = no\n{modules}")
    argv = ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--address={OWN_ADDRESS}"]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        until(lambda: is_open(port), lambda: process.poll() is None)
        yield rig, place
    finally:
        process.kill()
        process.wait()


HONEST = {"beat": 1, "active": True, "held": [], "wants": [], "fetching": []}


@pytest.mark.parametrize("text", ["[" * 200_000, '{"held":5}', 1 << 30], ids=["deep", "typed", "long"])
def test_a_report_that_is_none_costs_only_the_peer(hub: RunningHub, tmp_path: Path, text: str | int) -> None:
    """An int: so many bytes of nothing."""
    with hostile(hub, tmp_path) as (rig, place):
        report = place / rig.shared.name
        with report.open("w") as file:
            file.truncate(text) if isinstance(text, int) else file.write(text)
        result = rig.fetch()

    assert result.returncode == 0, result.stdout + result.stderr
    assert rig.is_as_published() and rig.is_clean()
    assert list((rig.directory / "home" / "heard").iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [{"held": 5}, {"held": [[1]]}, {"beat": "x"}, {"beat": True}, {"active": 3}, {"wants": {}}, {"fetching": None}],
    ids=str,
)
def test_a_report_has_the_types_of_an_honest_one(change: dict[str, object]) -> None:
    assert Report.read(json.dumps(HONEST).encode()) == Report(1, active=True)
    with pytest.raises(ValueError, match="not "):
        Report.read(json.dumps({**HONEST, **change}).encode())


@pytest.mark.parametrize("text", [b"", b"5", b"null", b"\xff\xfe", b"[" * 200_000, b'{"beat": 1' + b"0" * 5000])
def test_other_bytes_are_no_report(text: bytes) -> None:
    with pytest.raises(ValueError):
        Report.read(text)


def test_a_file_of_a_peer_ends_at_its_published_size(hub: RunningHub, tmp_path: Path) -> None:
    with hostile(hub, tmp_path) as (rig, place):
        (place / rig.shared.name).write_text(json.dumps({**HONEST, "held": [FIRST]}))
        (place / rig.dest.name).mkdir()
        with (place / rig.dest.name / FIRST).open("wb") as file:
            file.truncate(50 * SHARD_BYTES)
        # Only the peer can deliver: what it sends stays until it is verified.
        hub.tap.close_after(0)
        longest = 0
        with rig.fetching() as process:

            def said() -> bool:
                nonlocal longest
                arriving = rig.staging / ".arriving" / FIRST
                longest = max(longest, arriving.stat().st_size if arriving.exists() else 0)
                return bool(hub.server.connections) and not arriving.exists()

            lines = iter(process.stdout or ())
            assert any(f"{FIRST} from rig2 is not as published" in line for line in lines)
            until(said, lambda: process.poll() is None)
            hub.tap.open()
            rest = "".join(lines)
            assert process.wait(HANG_S) == 0, rest

    assert longest <= SHARD_BYTES
    assert rig.is_as_published() and rig.is_clean()


def test_a_peer_that_claims_to_fetch_forever_keeps_nobody_waiting(hub: RunningHub, tmp_path: Path) -> None:
    with hostile(hub, tmp_path) as (rig, place):
        rig.options = (f"--stall={STALL_S}",)
        process, said = beside_a_claim(rig, place, [FIRST])

    assert process.returncode == 0, said
    assert rig.is_as_published()


def test_waiting_for_peers_ends_with_patience(hub: RunningHub, tmp_path: Path) -> None:
    with hostile(hub, tmp_path) as (rig, place), hub_of(hub.repository, tmp_path / "gated", gated=True) as gated:
        rig.hub, rig.options = gated, (f"--patience={STALL_S}",)
        process, said = beside_a_claim(rig, place, [])

    assert process.returncode == 3, said
    assert "given up: peers sent nothing" in said and "token" in said


def beside_a_claim(rig: Rig, place: Path, fetching: list[str]) -> tuple[subprocess.Popen[str], str]:
    """Run a download to its end beside a peer that always claims to fetch these files; return it and its output."""
    claims = claimed(place / rig.shared.name, fetching)
    next(claims)
    with rig.fetching() as process:
        until(lambda: next(claims) and rig.told().get("step") == "waiting for peers", lambda: process.poll() is None)
        rig.later(STALL_S + 60)
        until(lambda: next(claims) and ended(process))
        return process, process.communicate(timeout=HANG_S)[0]


def claimed(path: Path, fetching: list[str]) -> Iterator[bool]:
    """Write a new report of a peer that always fetches, at each step."""
    while True:
        path.with_suffix(".new").write_text(json.dumps({**HONEST, "beat": time.time_ns(), "fetching": fetching}))
        path.with_suffix(".new").replace(path)
        yield True


@contextmanager
def dripping() -> Iterator[int]:
    """A port at which a daemon greets, and never comes to the end of its message of the day."""
    with socket.create_server((OWN_ADDRESS, 0)) as listening:

        def drip(connection: socket.socket) -> None:
            with suppress(OSError), connection:
                connection.sendall(b"@RSYNCD: 31.0 md5\n")
                connection.settimeout(0.2)
                while True:
                    connection.sendall(b"moment\n")
                    with suppress(TimeoutError):
                        connection.recv(100)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=drip, args=(listening.accept()[0],), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]


def test_a_report_that_never_ends_costs_only_the_peer(hub: RunningHub, tmp_path: Path) -> None:
    rig = Rig(tmp_path / "rig1", hub, options=("--silence=1",))
    with dripping() as port:
        result = rig.fetch(peers=[asdict(Peer("rig2", OWN_ADDRESS, port))])

    assert result.returncode == 0, result.stdout + result.stderr
    assert "rig2 has not completed its report" in result.stdout
    assert rig.is_as_published()
