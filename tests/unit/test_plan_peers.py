"""Who is whose peer, and what the daemon that serves them allows."""

from rigup.plan.peers import Peer, peers_of
from rigup.render.peers import daemon_config

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
    lines = daemon_config("/srv/models", 8730, ["10.0.0.3", "10.0.0.1"]).splitlines()
    assert {"read only = yes", "hosts allow = 10.0.0.1 10.0.0.3", "hosts deny = *", "list = no"} <= set(lines)
    assert "path = /srv/models" in lines
