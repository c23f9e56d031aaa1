"""`rigup key` for the load balancer: which host it asks, and what it says without one."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from loopback_sshd import programs_first, running_sshd

from tests.unit.own_command import rigup
from tests.unit.test_config_load_balancer import BASE, HOSTS

KEY = "0123456789abcdef" * 4


def said(directory: Path, balancer: str, *words: str) -> str:
    """What it says of what is wrong."""
    inventory = directory / "lab.yaml"
    inventory.write_text(f"{balancer}{HOSTS}")
    done = rigup("key", *words, "--inventory", str(inventory), cwd=directory)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def test_a_key_that_the_load_balancer_does_not_have_is_refused(tmp_path: Path) -> None:
    with_keys = f"load_balancer: {{{BASE}, keys: {{agents: {{}}}}}}"
    assert "the load balancer has no key 'agent': did you mean agents?" in said(
        tmp_path, with_keys, "--load-balancer", "agent"
    )
    assert "has no load balancer: add `load_balancer:`" in said(tmp_path, "", "--load-balancer")


@pytest.mark.parametrize("words", [(), ("rig1", "--load-balancer=default")])
def test_one_thing_is_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert "name either an endpoint or --load-balancer" in said(tmp_path, "", *words)


def test_the_key_is_read_from_the_first_host(tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    cat = programs / "cat"
    cat.write_text(f'#!/bin/sh\ncase "$*" in "-- /etc/rigup/load-balancer/keys/agents") echo {KEY};; esac\n')
    cat.chmod(cat.stat().st_mode | stat.S_IXUSR)
    with running_sshd(tmp_path, programs_first(programs)) as server:
        server.lab(endpoints={"main": {"listen": "192.0.2.7", "allowed_networks": ["192.0.2.0/24"]}})
        inventory = Path(server.environment["RIGUP_INVENTORY"])
        balancer = "load_balancer: {hosts: [box], allowed_networks: [192.0.2.0/24], keys: {agents: {}}}\n"
        inventory.write_text(balancer + inventory.read_text())
        done = rigup("key", "--load-balancer", "agents", "--header", "--inventory", str(inventory), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"Authorization: Bearer {KEY}\n"), done.stderr
