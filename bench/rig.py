"""The measured host, which can pose as eight.

A small machine cannot run eight converged hosts, so all names point to one lab host. Each name has its own sshd there,
in a mount namespace where /etc/rigup/plan.json is that name's plan; all else is the same on every host anyway. The
eight share one processor: a real fleet is faster.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench import desired
from bench.delay import Address
from lab import state, world
from lab.machine import Host
from rigup.config.inventory import Inventory, load_inventory, lock_path
from rigup.paths import PLAN
from rigup.ssh.login import login_of

HOSTS = 8
FIRST_PORT = 2201
RUN = "/run/rigup-bench"


def names(count: int) -> list[str]:
    return [f"bench{number}" for number in range(1, count + 1)]


@dataclass(frozen=True)
class Bench:
    """A deployed lab host, and a directory for inventories of it."""

    host: Host
    directory: Path

    def inventory(self, label: str, reached_at: Sequence[Address]) -> Path:
        """Write an inventory with one host per address; return its path."""
        known = self.directory / f"{label}.known_hosts"
        key = (self.host.directory / "ssh_host_ed25519_key.pub").read_text().split()[:2]
        known.write_text("".join(f"[{address}]:{port} {' '.join(key)}\n" for address, port in reached_at))
        path = self.directory / f"{label}.yaml"
        hosts = {
            name: {"address": address, "port": port, "user": self.host.spec.login}
            for name, (address, port) in zip(names(len(reached_at)), reached_at, strict=True)
        }
        path.write_text(yaml.safe_dump({"defaults": {**world.defaults(), "known_hosts": str(known)}, "hosts": hosts}))
        if path != self.deployed:
            shutil.copy(lock_path(self.deployed), lock_path(path))
        return path

    @property
    def deployed(self) -> Path:
        """The inventory that deploys the host under its own name."""
        return self.directory / "host.yaml"

    @property
    def facts(self) -> Path:
        """Where the connector records which facts were read."""
        return self.directory / "facts"

    def write_own_inventory(self, lock: Path | None) -> None:
        """Write the inventory of the host itself, with the lock of its last deploy, if any."""
        defaults, hosts = world.defaults(), {self.host.name: world.connection(self.host)}
        self.deployed.write_text(yaml.safe_dump({"defaults": defaults, "hosts": hosts}))
        if lock is not None and lock.exists():
            shutil.copy(lock, lock_path(self.deployed))

    @contextmanager
    def doubles(self) -> Iterator[list[Address]]:
        """Run the eight sshds while the context lasts; yield their addresses."""
        addresses = [(self.host.address, FIRST_PORT + index) for index in range(HOSTS)]
        inventory = load_inventory(self.inventory("doubles", addresses))
        self.host.shell(f"mkdir -p {RUN}")
        units = [f"rigup-{name}.service" for name in names(HOSTS)]
        self.host.shell(f"systemctl stop {' '.join(units)}", check=False)
        try:
            for name, unit, (_, port) in zip(names(HOSTS), units, addresses, strict=True):
                plan = f"{RUN}/{name}.json"
                self.host.shell(f"cat > {plan} && chmod 600 {plan}", stdin=desired.plan_of(inventory, name).text())
                self.host.shell(
                    f"systemd-run --quiet --unit={unit} --property=BindReadOnlyPaths={plan}:{PLAN} "
                    f"/usr/sbin/sshd -D -o PidFile=none -o Port={port}"
                )
            yield addresses
        finally:
            self.host.shell(f"systemctl stop {' '.join(units)}; rm -rf {RUN}", check=False)

    def ssh_config(self, inventory: Path) -> Path:
        """Write the ssh configuration for the inventory's hosts, for OpenSSH and testinfra's backends."""
        path = inventory.with_suffix(".ssh")
        path.write_text(
            "".join(_ssh_block(load_inventory(inventory), name) for name in load_inventory(inventory).hosts)
        )
        return path

    def ansible_inventory(self, inventory: Path, variables: dict[str, Any]) -> Path:
        """Write the same hosts as an inventory for Ansible."""
        path = inventory.with_suffix(".ansible.json")
        loaded, config = load_inventory(inventory), self.ssh_config(inventory)
        hosts = {}
        for name in loaded.hosts:
            plan = self.directory / f"{name}.plan.json"
            plan.write_text(desired.plan_of(loaded, name).text())
            hosts[name] = {"plan": str(plan)}
        shared = {"ansible_ssh_common_args": f"-F {config}", **variables}
        path.write_text(json.dumps({"all": {"hosts": hosts, "vars": shared}}))
        return path


def _ssh_block(inventory: Inventory, name: str) -> str:
    login = login_of(inventory.host(name))
    return (
        f"Host {name}\n  HostName {login.address}\n  Port {login.port}\n  User {login.user}\n"
        f"  IdentityFile {state.KEY}\n  IdentitiesOnly yes\n  UserKnownHostsFile {login.known_hosts[0]}\n"
        "  BatchMode yes\n"
    )
