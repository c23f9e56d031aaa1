"""Eight hosts at once, one of them dead. The steps base and kernel alone: eight that serve would not fit here."""

from collections.abc import Iterator

import pytest

from lab import machine, world
from tests.lab.rigs import Rigs

NAMES = [f"rig{number}" for number in range(11, 19)]
DEAD = "rig16"


@pytest.fixture(scope="module")
def fleet(services: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rigs]:
    """Eight bare hosts."""
    hosts = {name: machine.get(name) for name in NAMES}
    for host in hosts.values():
        host.create(machine.Spec())
    machine.write_known_hosts()
    rigs = Rigs(
        tmp_path_factory.mktemp("fleet"),
        {name: world.connection(host) for name, host in hosts.items()},
        world.defaults(),
    )
    rigs.write()
    yield rigs
    for host in hosts.values():
        host.remove()
    machine.write_known_hosts()


def test_seven_hosts_finish_and_the_eighth_is_named(fleet: Rigs) -> None:
    machine.get(DEAD).stop()
    first = fleet.run("pyinfra", "inventory/lab.py", "tests/lab/first_steps.py", "-y")
    assert first.code != 0, first.output
    hosts = first.report["hosts"]
    assert hosts[DEAD]["result"] == "unreachable"
    assert f"{DEAD}: unreachable" in first.output
    for name in set(NAMES) - {DEAD}:
        assert hosts[name]["result"] == "ok", first.output
        assert hosts[name]["changed"] > 0
        assert machine.get(name).shell("test -e /etc/modprobe.d/rigup.conf", check=False).returncode == 0
    second = fleet.run("pyinfra", "inventory/lab.py", "tests/lab/first_steps.py", "-y")
    assert second.code != 0
    assert second.changed() == []


def test_the_dead_host_catches_up_once_it_is_back(fleet: Rigs) -> None:
    machine.get(DEAD).start()
    result = fleet.run("pyinfra", "inventory/lab.py", "tests/lab/first_steps.py", "-y")
    assert result.code == 0, result.output
    assert {line.split()[0] for line in result.changed()} == {DEAD}
