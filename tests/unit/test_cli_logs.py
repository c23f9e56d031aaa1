"""`rigup logs`: an endpoint's journal over ssh, as it is written."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rigup.cli import main
from tests.unit.loopback_sshd import Sshd, programs_first, running_sshd
from tests.unit.test_hostile_text import EVIL, is_harmless
from tests.unit.waiting import HANG_S

JOURNAL = "2026-11-23T20:56:02+0000 docker[4711]: INFO vLLM API server version 0.33.0\n"


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    (tmp_path / "programs").mkdir()
    with running_sshd(tmp_path, programs_first(tmp_path / "programs")) as server:
        server.lab(endpoints={"main": {"gpus": [0]}, "small": {"gpus": [1], "port": 8001}})
        monkeypatch.setenv("RIGUP_INVENTORY", server.environment["RIGUP_INVENTORY"])
        journalctl(server, f"printf %s {shlex.quote(JOURNAL)}")
        yield server


def journalctl(sshd: Sshd, script: str) -> None:
    program = sshd.folder / "programs/journalctl"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{sshd.folder}/words\n{script}\n')
    program.chmod(0o755)


def words(sshd: Sshd) -> set[str]:
    """What the host's journalctl was asked, besides the format."""
    asked = (sshd.folder / "words").read_text().splitlines()
    return {*asked} - {"--no-pager", "--quiet", "--output=short-iso", "--no-hostname"}


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ([], {"--lines=100"}),
        (["-n", "5"], {"--lines=5"}),
        (["-f"], {"--lines=100", "--follow"}),
        (["--since", "10 min ago"], {"--since=10 min ago"}),
        (["-f", "--since=today"], {"--since=today", "--follow", "--no-tail"}),
    ],
)
def test_the_lines_of_the_endpoints_unit_are_printed(
    sshd: Sshd, capsys: pytest.CaptureFixture[str], options: list[str], asked: set[str]
) -> None:
    assert main.main(["logs", "box/main", *options]) == 0
    assert capsys.readouterr().out == JOURNAL
    assert words(sshd) == {"--unit=llm@main.service", *asked}


def test_the_endpoint_of_several_must_be_named(sshd: Sshd, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["logs", "box"]) == 1
    assert "box has several endpoints: name one: box/main, box/small" in capsys.readouterr().err


def test_an_empty_log_is_an_answer_and_a_failure_has_the_words_of_the_host(
    sshd: Sshd, capsys: pytest.CaptureFixture[str]
) -> None:
    journalctl(sshd, "")
    assert main.main(["logs", "box/main"]) == 2
    assert capsys.readouterr() == ("", "No line in this log.\n")
    journalctl(sshd, "echo 'Failed to parse timestamp: soon' >&2; exit 1")
    assert main.main(["logs", "box/main", "--since", "soon"]) == 1
    assert capsys.readouterr() == ("", "box: Failed to parse timestamp: soon\n")


def test_no_terminal_obeys_a_log(sshd: Sshd, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "".join(each for each in EVIL.values() if each != "\ud800")
    (sshd.folder / "evil").write_bytes(evil.encode() + b"\xff\n")
    journalctl(sshd, f"/bin/cat {sshd.folder}/evil")
    assert main.main(["logs", "box/main"]) == 0
    shown = capsys.readouterr().out
    assert is_harmless(shown) and "owned" in shown


def followed(sshd: Sshd) -> subprocess.Popen[str]:
    """Follow a log that does not end."""
    journalctl(sshd, f"printf %s {shlex.quote(JOURNAL)}; exec {sshd.forever}")
    argv, pipe = [sys.executable, "-m", "rigup.cli", "logs", "box/main", "-f"], subprocess.PIPE
    return subprocess.Popen(argv, env=dict(os.environ), stdout=pipe, stderr=pipe, text=True)


def test_a_log_is_followed_until_ctrl_c_which_is_one_line(sshd: Sshd) -> None:
    with followed(sshd) as following:
        assert following.stdout
        # It arrives while the host's program still runs.
        assert following.stdout.readline() == JOURNAL
        following.send_signal(signal.SIGINT)
        out, err = following.communicate(timeout=HANG_S)
    assert (following.returncode, out, err) == (130, "", "Interrupted.\n")


def test_a_connection_that_breaks_is_an_error(sshd: Sshd) -> None:
    with followed(sshd) as following:
        assert following.stdout
        assert following.stdout.readline() == JOURNAL
        sshd.cut()
        _, err = following.communicate(timeout=HANG_S)
    assert following.returncode == 1
    assert err.startswith("box: the connection broke: ")
