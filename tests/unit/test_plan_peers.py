"""Who is whose peer, and what the daemon that serves them allows."""

import pytest

from rigup.lock.addresses import ip_of
from rigup.plan.peers import Peer, peers_of
from rigup.render.peers import daemon_config
from rigup.render.systemd import fetch_unit_text, peers_allow_text, peers_unit_text

FLEET = [Peer("a", "10.0.0.1"), Peer("b", "10.0.0.2"), Peer("c", "10.0.0.3")]


def test_the_others_of_a_fleet_are_peers() -> None:
    assert peers_of("b", FLEET) == (FLEET[0], FLEET[2])
    assert peers_of("b", FLEET[1:2]) == ()


def test_a_host_that_does_not_share_has_none() -> None:
    assert peers_of("d", FLEET) == ()


def test_hosts_behind_one_address_are_left_out() -> None:
    fleet = [*FLEET, Peer("d", "10.0.0.3")]
    assert peers_of("a", fleet) == (FLEET[1],)
    assert peers_of("c", fleet) == ()


def test_the_daemon_only_reads_and_only_for_the_peers() -> None:
    lines = daemon_config("/srv/models", 8730, ["10.0.0.3", "10.0.0.1"], ["/srv/models/a/b/c"]).splitlines()
    assert {"read only = yes", "hosts allow = 10.0.0.1 10.0.0.3", "hosts deny = *", "list = no"} <= set(lines)
    assert {"path = /srv/models", "exclude = *", "max connections = 32"} <= set(lines)


def test_the_kernel_drops_what_others_send_to_the_daemon_which_runs_as_nobody_else() -> None:
    lines = peers_unit_text().splitlines()
    allowed = peers_allow_text(["2001:db8::1", "10.0.0.1"]).splitlines()
    assert {"IPAddressAllow=10.0.0.1 2001:db8::1", "TasksMax=128"} <= set(allowed)
    assert {"User=rigup-peers", "IPAddressDeny=any"} <= set(lines) and "User=rigup-peers" not in fetch_unit_text()


@pytest.mark.parametrize(("name", "address"), [("10.0.0.1", "10.0.0.1"), ("2001:DB8::1", "2001:db8::1")])
def test_an_address_is_its_own(name: str, address: str) -> None:
    assert ip_of(name) == address


@pytest.mark.parametrize("name", ["localhost", "no-such-host.invalid", "x" * 70, ""])
def test_a_name_that_leads_others_nowhere_has_no_address(name: str) -> None:
    assert ip_of(name) is None
