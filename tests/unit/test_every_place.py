"""Mechanisms that hold only if every place of their kind uses them: the places are read from the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("rigup", "files", "tasks") for path in (ROOT / folder).rglob("*.py")]
LISTENING = sorted((ROOT / "templates").glob("*.cfg.j2"))


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def texts(node: ast.AST) -> set[object]:
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}


def test_a_file_that_outlives_its_writer_is_appended_to_in_two_places_which_begin_a_line_of_their_own() -> None:
    """A line that a power cut left torn would swallow what is appended to it."""
    # Events of one run only; and bytes of a file that continues where it was cut, verified as a whole.
    others = {"rigup/run/event_log.py", "files/rigup_host/fetch/hub_worker.py"}
    found = set()
    for path in SOURCES:
        if any(">>" in texts(call) for call in calls(path) if ast.unparse(call.func) == "StringCommand"):
            found.add(str(path.relative_to(ROOT)))
        if "O_APPEND" in path.read_text() or any(
            ast.unparse(call.func).endswith("open") and texts(call) & {"a", "ab", "at", "a+", "ab+"}
            for call in calls(path)
        ):
            found.add(str(path.relative_to(ROOT)))
    assert found - others == {"rigup/operations/_ledger.py", "rigup/ssh/host_keys.py"}


def test_every_rsync_of_a_download_has_a_limit_for_what_it_writes() -> None:
    path = ROOT / "files/rigup_host/fetch/peers.py"
    commands = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.List)]
    commands = [node for node in commands if any(ast.unparse(each) == "*RSYNC" for each in node.elts)]
    assert len(commands) == 2
    for command in commands:
        assert ast.unparse(command.elts[0]).startswith("*_limited("), ast.unparse(command)
    assert [each for each in SOURCES if '"rsync", "--' in each.read_text()] == [path]


@pytest.mark.parametrize("template", LISTENING, ids=lambda path: path.name)
def test_every_proxy_lets_no_client_without_a_key_keep_the_others_out(template: Path) -> None:
    text = template.read_text()
    for protection in (
        "timeout http-request ",
        "timeout client ",
        "tcp-request connection track-sc0 src",
        "tcp-request connection reject if { sc0_conn_cur gt ",
        "http-after-response set-header connection close unless ",
        "tcp-request connection reject unless { src ",
    ):
        assert protection in text, f"{template.name} lacks `{protection}`"


def test_every_proxy_is_known_here() -> None:
    assert [path.name for path in LISTENING] == ["balancer.cfg.j2", "gateway.cfg.j2"]
