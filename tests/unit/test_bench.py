"""The benchmark's own parts: distance, and what is made of the measurements."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from bench.delay import delayed
from bench.summary import ratios, render
from bench.timing import BenchError, Case, Command, run
from tests.unit.waiting import HANG_S


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back what it gets, and closes when the other side does."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield server.getsockname()
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def test_an_answer_takes_a_round_trip_and_no_byte_is_lost(echo: tuple[str, int]) -> None:
    data = bytes(range(256)) * 4096
    with delayed([echo], 0.1) as (proxy,), socket.create_connection(proxy, timeout=HANG_S) as connection:
        connection.sendall(b"first")
        assert connection.recv(100) == b"first"
        began = time.monotonic()
        connection.sendall(b"second")
        assert connection.recv(100) == b"second"
        assert time.monotonic() - began >= 0.1
        threading.Thread(target=lambda: (connection.sendall(data), connection.shutdown(socket.SHUT_WR))).start()
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
    assert received == data


def test_many_small_pieces_travel_side_by_side(echo: tuple[str, int]) -> None:
    # Read in pieces of at most 64 KiB, each of which travels for a quarter of a second: two minutes one by one.
    data = bytes(480 << 16)
    with delayed([echo], 0.5) as (proxy,), socket.create_connection(proxy, timeout=HANG_S) as connection:
        began = time.monotonic()
        threading.Thread(target=lambda: (connection.sendall(data), connection.shutdown(socket.SHUT_WR))).start()
        received = 0
        while piece := connection.recv(1 << 16):
            received += len(piece)
        assert received == len(data)
        assert time.monotonic() - began < 120


def test_a_connection_over_a_distance_takes_longer_to_make(echo: tuple[str, int]) -> None:
    with delayed([echo], 0.1) as (proxy,):
        began = time.monotonic()
        with socket.create_connection(proxy, timeout=HANG_S) as connection:
            connection.sendall(b"x")
            assert connection.recv(100) == b"x"
        assert time.monotonic() - began >= 0.2


def test_ratios_are_of_medians_and_say_whether_the_goal_was_reached() -> None:
    cases = [
        Case("deploy", "rig", 1, 0, [1.0, 9.0, 2.0], executions=1.0),
        Case("deploy", "ssh", 1, 0, [10.0]),
        Case("deploy", "ansible", 1, 0, [60.0]),
        Case("floor", "empty deploy", 1, 0, [0.5]),
    ]
    found = {ratio["what"]: (ratio["value"], ratio["reached"]) for ratio in ratios(cases)["ratios"]}
    assert found == {
        "Ansible / @rig": (30.0, True),
        "stock pyinfra / @rig": (5.0, False),
        "@rig / a deploy of nothing": (4.0, False),
        "remote executions per host": (1.0, True),
    }


def test_the_summary_lists_missed_goals_and_what_was_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        Case("deploy", "rig", 1, 0, [2.0], executions=1.0),
        Case("deploy", "ssh", 1, 0, [10.0]),
        Case("deploy", "ansible", 1, 0, [60.0]),
        Case("audit", "rig", 1, 0, [1.0]),
        Case("audit", "testinfra-ssh", 1, 0, [11.0]),
        Case("audit", "paramiko", 1, 0, [5.0]),
        Case("deploy", "rig", 8, 10, [4.0], executions=1.0),
        Case("deploy", "rig", 8, 50, [4.0], executions=1.0),
        Case("audit", "rig", 8, 10, [4.0]),
    ]
    measured = {"processor": "x", "processors": 2, "ansible-core": "1", "pyinfra": "1", "python": "3"}
    render({"measured": measured, "cases": [case.as_json() for case in cases], **ratios(cases)})
    told = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "stock pyinfra / @rig 1 0 ms 5 >= 6 missed" in told
    assert "Ansible / @rig 1 0 ms 30 >= 20 reached" in told
    assert "testinfra ssh / rigup's audit 1 0 ms 11 >= 10 reached" in told
    left_out = [line.partition(": it ")[0] for line in told if line.startswith("Not measured: ")]
    assert left_out == [
        "Not measured: no-op playbook: Ansible, pipelining, 8 hosts at 10 ms; 8 hosts at 50 ms",
        "Not measured: audit: testinfra's ssh backend, 8 hosts at 10 ms",
        "Not measured: audit: testinfra's paramiko backend, 8 hosts at 10 ms",
    ]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (Command(["sh", "-c", "echo broken; exit 3"]), "exited with 3:\nbroken"),
        (Command(["echo", "3 changes"], expect="nothing changed"), "printed nothing that matches 'nothing changed'"),
    ],
)
def test_a_run_that_failed_or_changed_something_does_not_count(command: Command, why: str) -> None:
    with pytest.raises(BenchError, match=why):
        run(command)
