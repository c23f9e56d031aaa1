"""Hosts that answer what no healthy host answers: each ends its own run only, by name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from loopback_sshd import Sshd, programs_first, running_sshd

from rigup.config.inventory import load_inventory
from rigup.ssh import batch, client
from rigup.ssh.batch import Command
from rigup.ssh.client import Client, Unreachable
from rigup.ssh.transport import BadAnswer
from tests.unit.waiting import HANG_S

MARK = "0123456789abcdef" * 2
COMMANDS = [Command("first"), Command("second")]

# Frames of a hostile host; M stands for the mark.
HOSTILE = {
    "a negative length, which once was an endless loop": b"M 0 0 0 -43\n",
    "two lengths that cancel each other out": b"M 0 0 50 -50\nM 0 0 50 -50\n",
    "a negative index": b"M -1 0 0 0\n",
    "an index that was not sent": b"M 2 0 0 0\n",
    "a second answer": b"M 0 0 2 0\nokM 0 0 3 0\nbad",
    "an answer after it was refused": b"M 0 slow 0 0\nM 0 0 3 0\nbad",
    "an unknown status": b"M 0 fine 0 0\n",
    "a status that is not an exit code": b"M 0 99999 0 0\n",
    "a huge length": b"M 0 0 99999999 0\n",
    "a length of many digits": b"M 0 0 " + b"9" * 10_000 + b" 0\n",
    "a number in other digits": "M 0 0 ٣ 0\nabc".encode(),
    "a missing field": b"M 0 0 0\n",
    "a field too many": b"M 0 0 0 0 0\n",
    "a header without end": b"M 0 0 " + b" " * 10_000,
    "bytes after a frame": b"M 0 0 2 0\nokM" + b"\x00" * 40,
}


@pytest.mark.parametrize("frames", HOSTILE.values(), ids=HOSTILE)
def test_a_frame_that_no_healthy_host_sends_is_refused(frames: bytes) -> None:
    with pytest.raises(BadAnswer):
        in_time(lambda: batch.parse(frames.replace(b"M", MARK.encode()), COMMANDS, MARK))


def test_an_answer_may_be_as_long_as_a_healthy_host_can_send_it() -> None:
    # batch.pl stops a command after at most one more read of each stream.
    most = batch.CAP_BYTES + 2 * 65_536
    for out, errors in ((most, 0), (most - 1, 1), (0, most)):
        assert batch.parse(f"{MARK} 0 0 {out} {errors}\n".encode(), COMMANDS, MARK).results == {}
    for out, errors in ((most + 1, 0), (most, 1)):
        with pytest.raises(BadAnswer, match="more than 4194304 bytes"):
            batch.parse(f"{MARK} 0 0 {out} {errors}\n".encode(), COMMANDS, MARK)


@given(st.lists(st.sampled_from([MARK.encode(), b" ", b"\n", b"0", b"1", b"-", b"43", b"slow", b"big"]) | st.binary()))
@example([MARK.encode(), b" 0 0 0 -43\n"])
def test_no_bytes_end_in_another_error(parts: list[bytes]) -> None:
    try:
        found = batch.parse(b"".join(parts), COMMANDS, MARK)
    except BadAnswer:
        return
    assert {*found.results, *found.refused} <= {*COMMANDS}


def in_time(work: Callable[[], object]) -> None:
    """Do the work; fail, and do not hang, if it has no end."""
    raised = list[BaseException]()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(HANG_S)
    assert not thread.is_alive(), "it has no end"
    if raised:
        raise raised[0]


class Hostile:
    """A host with a program `perl` of its own, a shell script that knows the batch's $mark."""

    def __init__(self, server: Sshd) -> None:
        self.server = server

    def answers(self, script: str) -> Hostile:
        programs = self.server.folder / "programs"
        programs.mkdir(exist_ok=True)
        perl = programs / "perl"
        perl.write_text(f"#!/bin/sh\nmark=$(grep -aoE '^[0-9a-f]{{32}}' | head -n 1)\n{script}\n")
        perl.chmod(0o755)
        return self

    @property
    def host(self) -> client.Host:
        self.server.lab()
        return load_inventory(Path(self.server.environment["RIGUP_INVENTORY"])).host("box")


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Hostile]:
    with running_sshd(tmp_path, programs_first(tmp_path / "programs")) as server:
        yield Hostile(server)


def test_the_run_ends_with_the_hosts_name(hostile: Hostile) -> None:
    host = hostile.answers("echo $mark 0 0 0 -43").host
    with Client(host) as connection, pytest.raises(Unreachable, match=r"^box: it answered .* malformed frame"):
        in_time(lambda: connection.run_all(COMMANDS))


@pytest.fixture
def two(hostile: Hostile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[str, Path]]]:
    """Deploys to `bad`, the hostile host, and to `good`; `then` is the deploy's code for each."""
    with running_sshd(tmp_path_factory.mktemp("good")) as good:
        parts = [server.inventory(name=name).read_text() for name, server in (("bad", hostile.server), ("good", good))]
        inventory = hostile.server.folder / "both.py"
        inventory.write_text("\n".join(parts).replace("hosts = [(", "hosts = [*globals().get('hosts', []), ("))
        done = good.folder / "done"

        def deploy(then: str) -> tuple[str, Path]:
            done.unlink(missing_ok=True)
            (hostile.server.folder / "deploy.py").write_text(
                "from pyinfra import host\nfrom pyinfra.api import FactBase\nfrom pyinfra.operations import server\n"
                f"from pyinfra.facts.server import Kernel\n{then}\n"
                f"if host.name == 'good':\n    server.shell(commands=['touch {done}'])\n"
            )
            return hostile.server.pyinfra(str(inventory), "deploy.py", "-y").stderr, done

        yield deploy


def test_a_deploy_goes_on_with_the_other_hosts(hostile: Hostile, two: Callable[[str], tuple[str, Path]]) -> None:
    said, done = two("host.get_fact(Kernel)")
    assert done.exists(), said
    hostile.answers("echo $mark 0 0 0 -43")
    said, done = two("host.get_fact(Kernel)")
    assert "bad: it answered a batch of commands with a malformed frame" in said
    assert "Traceback" not in said, said
    assert done.exists(), said


@pytest.mark.parametrize(
    ("limit", "prints", "says"),
    [
        ("MAX_BYTES = 1_000_000", "yes", "bad: a command printed more than 1000000 bytes"),
        ("FACT_S = 2", "exec tail -f /dev/null", "bad: a command did not end within 2 s"),
        ("FACT_S = 2", "exec sleep 600 >&- 2>&-", "bad: a command did not end within 2 s"),
    ],
)
def test_a_fact_has_limits(two: Callable[[str], tuple[str, Path]], limit: str, prints: str, says: str) -> None:
    said, done = two(
        f"from rigup.ssh import connector\nconnector.{limit}\n"
        f"class Much(FactBase):\n    def command(self): return {prints!r}\n"
        "host.name == 'bad' and host.get_fact(Much)"
    )
    assert says in said
    assert "Traceback" not in said, said
    assert done.exists(), said


def test_bytes_that_are_no_text_are_read_alike_live_and_ahead(two: Callable[[str], tuple[str, Path]]) -> None:
    for _ in range(2):
        said, done = two(
            "class Odd(FactBase):\n    def command(self): return \"printf 'a\\\\377b'\"\n"
            "assert host.get_fact(Odd) == 'a\N{REPLACEMENT CHARACTER}b'"
        )
        assert done.exists(), said
        assert "Traceback" not in said


@pytest.mark.parametrize("silence", ["exec tail -f /dev/null", "while echo; do sleep 0.1; done", "yes"])
def test_a_batch_without_end_is_given_up(hostile: Hostile, monkeypatch: pytest.MonkeyPatch, silence: str) -> None:
    """The commands are run on their own afterwards."""
    monkeypatch.setattr(batch, "MAX_BYTES", 1_000_000)
    host = hostile.answers(silence).host
    with Client(host) as connection:

        def ask() -> None:
            assert batch.run(connection.transport, COMMANDS, total_s=1).results == {}

        if silence == "yes":
            with pytest.raises(BadAnswer, match="more than 1000000 bytes"):
                in_time(ask)
        else:
            in_time(ask)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("yes >&2", "sent more than 1000000 bytes"),
        ("while echo; do sleep 0.1; done", "did not end within 1 s"),
        ("exec tail -f /dev/null", "did not end within 1 s"),
        ("exec sleep 600 >&- 2>&-", "did not end within 1 s"),
    ],
)
def test_a_single_command_has_limits(hostile: Hostile, monkeypatch: pytest.MonkeyPatch, command: str, why: str) -> None:
    monkeypatch.setattr(client, "MAX_BYTES", 1_000_000)
    with Client(hostile.host) as connection, pytest.raises(Unreachable, match=f"^box: .*{why}"):
        in_time(lambda: connection.run(Command(command), limit_s=600 if "yes" in command else 1))
