"""The keys of the load balancer: made once, on one host, and known to others by their SHA-256."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from rigup.facts.balancer import BalancerValue, ServerValue, parse_balancer
from rigup.operations import balancer
from tests.unit.deploys import Outcome, on_this_machine

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a key is root's")
FORM = "{label}={digest}"


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], str]:
    """What this run has seen of keys; nothing yet."""
    found: dict[tuple[str, str], str] = {}
    monkeypatch.setattr(balancer, "_digests", found)
    return found


def keys(*paths: Path) -> Outcome:
    return on_this_machine(balancer.keys, paths={str(path): "key " if path.name == "own" else "" for path in paths})


def digests(dest: Path, **listed: tuple[str, Path]) -> Outcome:
    keys = {label: (host, str(path)) for label, (host, path) in listed.items()}
    return on_this_machine(balancer.digests, dest=str(dest), keys=keys, form=FORM)


def test_keys_are_made_once_and_their_digests_are_known(tmp_path: Path, seen: dict[tuple[str, str], str]) -> None:
    own, client = tmp_path / "keys/own", tmp_path / "keys/default"
    first = keys(own, client)
    assert first.foreseen and first.changed
    word, secret = own.read_text().split()
    assert (word, len(secret), len(client.read_text().strip())) == ("key", 64, 64)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (own, client)} == {0o600}
    assert {path: digest for (_, path), digest in seen.items()} == {
        str(own): hashlib.sha256(secret.encode()).hexdigest(),
        str(client): hashlib.sha256(client.read_text().strip().encode()).hexdigest(),
    }
    before = own.read_text()
    assert not keys(own, client).foreseen
    client.unlink()
    own.chmod(0o644)
    assert keys(own, client).changed
    assert own.read_text() == before
    assert stat.S_IMODE(own.stat().st_mode) == 0o600
    assert all(secret not in command for outcome in (first,) for command in (*outcome.commands, outcome.told))


def test_a_key_that_was_planted_counts(tmp_path: Path, seen: dict[tuple[str, str], str]) -> None:
    planted = tmp_path / "default"
    planted.write_text("planted\r\nand another\n")
    planted.chmod(0o600)
    assert not keys(planted).foreseen
    assert [*seen.values()] == [hashlib.sha256(b"planted").hexdigest()]


def test_digests_of_hosts_that_a_run_leaves_out_stay(tmp_path: Path, seen: dict[tuple[str, str], str]) -> None:
    dest, path = tmp_path / "known", Path("/key")
    seen["rig1", "/key"], seen["rig2", "/key"] = "a" * 64, "b" * 64
    listed = {"one": ("rig1", path), "two": ("rig2", path)}
    assert digests(dest, **listed).changed
    assert dest.read_text() == f"one={'a' * 64}\ntwo={'b' * 64}\n"
    assert stat.S_IMODE(dest.stat().st_mode) == 0o600
    del seen["rig2", "/key"]
    assert not digests(dest, **listed).foreseen
    seen["rig1", "/key"] = "c" * 64
    assert digests(dest, **listed).changed
    assert dest.read_text() == f"one={'c' * 64}\ntwo={'b' * 64}\n"
    assert digests(dest, one=("rig1", path)).changed
    assert dest.read_text() == f"one={'c' * 64}\n"


def test_a_key_that_nobody_has_made_yet_is_named(tmp_path: Path) -> None:
    dest = tmp_path / "known"
    outcome = digests(dest, one=("rig9", Path("/key")))
    assert "no key of rig9 for one is known yet: deploy rig9 too" in outcome.told
    assert dest.read_text() == ""


def test_what_a_load_balancer_tells_is_read() -> None:
    told = '{"rig1:main":{"up":1,"running":[2,1]},"rig2:main":{"up":0,"running":[0,0]}}'
    servers = (ServerValue("rig1:main", True, 3), ServerValue("rig2:main", False, 0))
    assert parse_balancer(["192.0.2.11:8080", told]) == BalancerValue("192.0.2.11:8080", servers)
    assert parse_balancer(["192.0.2.11:8080"]) == BalancerValue("192.0.2.11:8080")
    assert parse_balancer([]) == BalancerValue()
