"""Rolling updates: so many hosts at a time, and none after one that failed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import gevent
import pytest
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host

from rigup.operations._rolling import RollingUpdate


@dataclass
class Name:
    """As much of a host as a rolling update looks at."""

    name: str
    said: list[str] = field(default_factory=list)

    def log(self, message: str) -> None:
        self.said.append(message.strip())


def run(rolling: RollingUpdate, max_unavailable: int, work: Callable[[str], None], count: int = 4) -> dict[str, str]:
    """The result of each host: empty, or why it got no slot."""

    def one(host: Name) -> str:
        try:
            with rolling.slot(cast(Host, host), max_unavailable):
                work(host.name)
        except OperationError as error:
            return str(error)
        return ""

    jobs = {name: gevent.spawn(one, Name(name)) for name in (f"rig{number}" for number in range(1, count + 1))}
    gevent.joinall(jobs.values(), raise_error=True)
    return {name: job.value for name, job in jobs.items()}


@pytest.mark.parametrize("max_unavailable", [1, 2])
def test_no_more_hosts_than_the_setting_says_are_interrupted_at_a_time(max_unavailable: int) -> None:
    busy: set[str] = set()
    most = 0

    def work(name: str) -> None:
        nonlocal most
        busy.add(name)
        most = max(most, len(busy))
        gevent.sleep(0)
        busy.remove(name)

    assert set(run(RollingUpdate(), max_unavailable, work).values()) == {""}
    assert most == max_unavailable


def test_a_host_that_failed_may_try_again_and_no_other() -> None:
    rolling = RollingUpdate()

    def work(name: str) -> None:
        rolling.failed = rolling.failed or name

    assert run(rolling, 1, work, count=1) == {"rig1": ""}
    came = run(rolling, 1, work, count=2)
    assert came["rig1"] == ""
    assert "rolling update stopped: rig1 failed" in came["rig2"]


def test_after_a_host_that_failed_none_starts() -> None:
    begun: list[str] = []

    def work(name: str) -> None:
        begun.append(name)
        gevent.sleep(0)
        if name == "rig2":
            raise OperationError("it does not serve")

    came = run(RollingUpdate(), 1, work)
    assert begun == ["rig1", "rig2"]
    assert came["rig1"] == ""
    assert came["rig2"] == "it does not serve"
    for name in ("rig3", "rig4"):
        assert came[name].startswith(f"rolling update stopped: rig2 failed. {name} was not changed")
        assert "--exclude rig2" in came[name]
