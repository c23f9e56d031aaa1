"""What the steps work from."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.operation import OperationMeta

from rigup.config.settings import Settings
from rigup.host_config import NO_PROXIES, Proxies
from rigup.lock.lockfile import Lock
from rigup.plan.balancer import Balancer
from rigup.plan.model import Plan
from rigup.plan.peers import Peer


@dataclass(frozen=True)
class Context:
    """A host's plan and settings, the lock, NVIDIA's name for its distribution, and how many GPUs it has.

    `peers` are the other hosts of the inventory, including those that this run leaves out. `proxies` are the host's.
    `prepared` collects the operations that write the files of endpoints. `balancer` is the inventory's load balancer.
    """

    plan: Plan
    settings: Settings
    lock: Lock
    distro: str
    gpus: int
    peers: tuple[Peer, ...] = ()
    proxies: Proxies = NO_PROXIES
    prepared: list[OperationMeta] = field(default_factory=list)
    balancer: Balancer | None = None

    @property
    def balances(self) -> bool:
        """Whether the load balancer runs on this host."""
        return self.balancer is not None and self.plan.host in self.balancer.hosts


class Refused(PyinfraError):
    """The run was refused before anything was changed."""
