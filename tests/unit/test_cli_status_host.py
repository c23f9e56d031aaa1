"""rigup status of a host that answers: in one round trip, as text, as JSON, as a page, and again and again."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from loopback_sshd import Sshd, programs_first, running_sshd
from status_world import LOAD, RECORD, UNIT, Rig

from rigup.ssh import batch
from tests.unit.host_world import program
from tests.unit.own_command import rigup
from tests.unit.status_sample import in_zone
from tests.unit.waiting import HANG_S, until

NONE = "\N{EN DASH}"


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with running_sshd(tmp_path, f"LogLevel VERBOSE\n{programs_first(tmp_path / 'programs')}") as server:
        yield server


@pytest.fixture
def rig(sshd: Sshd) -> Iterator[Rig]:
    with in_zone("Europe/Berlin"):
        yield Rig(sshd)
    patch.stopall()


def status(rig: Rig, *words: str) -> subprocess.CompletedProcess[str]:
    return rigup("status", *words, "--inventory", str(rig.inventory), cwd=rig.sshd.folder)


def test_json_has_what_the_host_and_its_engine_and_its_cards_say(rig: Rig) -> None:
    done = status(rig, "--json")
    assert done.returncode == 0, done.stderr
    box = json.loads(done.stdout)["hosts"]["box"]
    assert box["endpoints"] == [
        {
            "name": "main",
            "recipe": "vllm-nvfp4-cu130",
            "model": "qwen",
            "gpus": "all",
            "url": "http://127.0.0.1:8000",
            "public_url": None,
            "state": "serving",
            "on_trial": False,
            "health": 200,
            "since": "2026-11-23T20:56:03+00:00",
            "restarts": 0,
            "verified": "2026-11-23T20:57:00+00:00",
            "tokens_per_s": 412.6,
            "running": 7,
            "waiting": 0,
            "kv_cache": 0.31,
            "last_start_s": None,
        }
    ]
    assert box["gpus"][1] == {
        "index": 1,
        "used": 92160,
        "total": 97887,
        "busy": 97,
        "temperature": 94,
        "watts": 487.2,
        "watt_limit": 600.0,
        "throttled": ["power limit", "heat"],
        "address": "0000:21:00.0",
        "name": "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
    }
    assert box["xids"] == [{"address": "0000:41:00.0", "number": 79, "count": 2, "last": 1795420800.5}]
    assert (box["error"], box["notes"], box["downloads"], box["audit"]) == (None, [], [], None)


def test_text_begins_with_what_needs_attention_and_names_the_time_zone(rig: Rig) -> None:
    done = status(rig)
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines == [
        "! box: GPU 1 is slowed by power limit, heat",
        "! box: GPU 2 reported Xid 79 (2 times), last at 2026-11-23 09:00 CET: "
        f"`RIGUP_INVENTORY={rig.inventory} rigup diagnose box`",
        "host endpoint state tok/s running waiting KV cache since",
        "box main serving 413 7 0 31 % 2026-11-23 21:56 CET",
        "",
        "host GPU temp power memory busy slowed by Xid since boot",
        f"box 0 71 °C 487 of 600 W 90.0 of 95.6 GiB 97 % {NONE} {NONE}",
        f"1 94 °C 487 of 600 W 90.0 of 95.6 GiB 97 % power limit, heat {NONE}",
        f"2 70 °C 487 of 600 W 90.0 of 95.6 GiB 97 % {NONE} 79 (2 times)",
        f"3 70 °C 487 of 600 W 90.0 of 95.6 GiB 97 % {NONE} {NONE}",
        "",
        "box/main: qwen at http://127.0.0.1:8000, recipe vllm-nvfp4-cu130",
    ]


def sessions(sshd: Sshd) -> int:
    return (sshd.folder / "sshd.log").read_text().count("Starting session")


def test_a_host_is_read_in_one_round_trip(rig: Rig, sshd: Sshd) -> None:
    """The connection's own check of the login is one session, and everything else is another."""
    assert status(rig, "--json").returncode == 0
    assert sessions(sshd) == 2


def test_an_endpoint_that_the_inventory_does_not_name_is_read_too(rig: Rig, sshd: Sshd) -> None:
    rig.say("record", json.dumps({**RECORD, "name": "former"}))
    rig.say("units", "/usr/local/lib/systemd/system/llm@former.service:Generation=abc")
    rig.say("load", json.dumps({"former": LOAD}))
    (endpoint,) = json.loads(status(rig, "--json").stdout)["hosts"]["box"]["endpoints"]
    assert (endpoint["name"], endpoint["state"], endpoint["running"]) == ("former", "serving", 7)


def test_a_host_without_the_program_that_asks_engines_has_a_health_and_no_load(rig: Rig) -> None:
    rig.say("load", "usage: rigup-host [-h]")
    (endpoint,) = json.loads(status(rig, "--json").stdout)["hosts"]["box"]["endpoints"]
    # Nothing listens at its port here.
    assert (endpoint["health"], endpoint["state"], endpoint["running"]) == (0, "not healthy", None)


def test_an_nvidia_smi_that_hangs_hides_its_cards_and_nothing_else(rig: Rig, sshd: Sshd) -> None:
    program(rig.programs, "nvidia-smi", sshd.forever)
    with patch.object(batch, "LIMIT_S", 1):
        box = json.loads(status(rig, "--json").stdout)["hosts"]["box"]
    assert (box["error"], box["gpus"]) == (None, [])
    assert "no answer within 10 s: nvidia-smi" in box["notes"]


def test_a_start_says_how_long_it_takes_and_what_is_left_of_that(rig: Rig) -> None:
    rig.say("unit", UNIT.replace("ActiveState=active", "ActiveState=activating"))
    rig.say("load", json.dumps({"main": {**LOAD, "health": 0, "last_start_s": 10**9}}))
    done = status(rig)
    assert done.returncode == 2
    assert re.search(r"main is starting, [\dhmins ]+, about [\dhmin ]+ left", done.stdout), done.stdout


def test_a_page_is_written_whole_and_names_its_findings(rig: Rig) -> None:
    done = status(rig, "box", "--html", "page.html")
    assert (done.returncode, done.stdout) == (0, "wrote page.html\n"), done.stderr
    text = (rig.sshd.folder / "page.html").read_text()
    for words in ("GPU 1 is slowed by power limit, heat", "Xid 79 (2 times)", "413", "2026-11-23 21:56 CET"):
        assert words in text
    assert [path.name for path in rig.sshd.folder.glob("*page*")] == ["page.html"]


def test_the_page_goes_where_the_inventory_says(rig: Rig) -> None:
    refused = status(rig, "--html")
    assert refused.returncode == 1
    assert "lab.yaml sets no `status_page`: set it, or name a file: --html status.html" in refused.stderr
    rig.inventory.write_text("status_page: out/rigs.html\n" + rig.inventory.read_text())
    missing = status(rig, "--html")
    assert missing.returncode == 1
    assert "rigs.html: No such file or directory: create its directory, or name another" in missing.stderr
    (rig.sshd.folder / "out").mkdir()
    assert status(rig, "--html").returncode == 0
    assert (rig.sshd.folder / "out/rigs.html").read_text().startswith("<!doctype html>")


class Watcher:
    """`rigup status --watch` in a terminal of 200 columns."""

    def __init__(self, rig: Rig) -> None:
        ours, theirs = pty.openpty()
        stand_in = f"from rigup.facts import serving; serving.HOST_PROGRAM = {str(rig.programs / 'rigup-host')!r}"
        run = "import sys; from rigup.cli.__main__ import main; sys.exit(main())"
        argv = [sys.executable, "-c", f"{stand_in}; {run}", "status", "--watch", "--interval", "0.5"]
        environment = {**os.environ, "COLUMNS": "200", "LINES": "50", "TERM": "xterm"}
        self.process = subprocess.Popen(
            [*argv, "--inventory", str(rig.inventory)],
            stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=rig.sshd.folder,
        )  # fmt: skip
        os.close(theirs)
        self.seen = b""
        threading.Thread(target=self._read, args=(ours,), daemon=True).start()

    def _read(self, terminal: int) -> None:
        try:
            while data := os.read(terminal, 65536):
                self.seen += data
        except OSError:
            # The other end is closed.
            os.close(terminal)

    def shows(self, words: str) -> None:
        """Wait until the terminal has shown these words since the last call."""
        until(lambda: words.encode() in self.seen, lambda: self.process.poll() is None)
        self.seen = b""


def test_a_watched_host_goes_away_and_comes_back_over_one_connection_and_ctrl_c_is_quiet(rig: Rig, sshd: Sshd) -> None:
    watcher = Watcher(rig)
    try:
        watcher.shows("serving")
        watcher.shows("serving")
        log = (sshd.folder / "sshd.log").read_text()
        assert log.count("Accepted publickey") == 1
        sshd.cut()
        sshd.process.terminate()
        watcher.shows("unknown")
        with sshd.again():
            watcher.shows("serving")
            watcher.process.send_signal(signal.SIGINT)
            assert watcher.process.wait(HANG_S) == 130
        assert b"Traceback" not in watcher.seen
    finally:
        watcher.process.kill()


def test_watching_in_a_pipe_is_refused_without_json(rig: Rig) -> None:
    done = status(rig, "--watch")
    assert done.returncode == 1
    assert "standard output is not one: use --watch --json in a pipe" in done.stderr
