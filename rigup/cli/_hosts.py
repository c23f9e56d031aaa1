"""HOST[/ENDPOINT] on the command line, and the inventory that these names come from."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rigup.config.inventory import Host, Inventory, find_inventory, load_inventory
from rigup.errors import RigupError, suggestion

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """A host, and one of its endpoints if the command line names one."""

    host: Host
    endpoint: str | None


def add_host(
    parser: argparse.ArgumentParser, nargs: str | None = None, *, endpoints: bool = False, **more: Any
) -> None:
    """Add HOST or, with `endpoints`, HOST[/ENDPOINT]: `host` in the options, or a list `hosts` for several."""
    several = nargs in ("*", "+")
    what = "hosts or endpoints" if endpoints else "hosts"
    shown = f"{what} of the inventory" if several else f"a {what[:4]} of the inventory"
    action = parser.add_argument(
        "hosts" if several else "host",
        nargs=nargs,
        **{
            "metavar": "HOST[/ENDPOINT]" if endpoints else "HOST",
            "help": f"{shown} (default: all)" if nargs == "*" else shown,
            **more,
        },
    )
    action.completer = _completer(endpoints)  # type: ignore[attr-defined]


def _completer(endpoints: bool) -> Callable[..., list[str]]:
    """Return a function for argcomplete, which returns the names in the inventory."""

    def names(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
        try:
            hosts = read_inventory(parsed_args).hosts
        except RigupError:
            return []
        found = list(hosts)
        if endpoints:
            found += [f"{name}/{endpoint}" for name, host in hosts.items() for endpoint in host.settings.endpoints]
        return found

    return names


def add_inventory(parser: argparse.ArgumentParser, **more: Any) -> None:
    """Add the option that names another inventory file."""
    parser.add_argument(
        "--inventory", type=Path, metavar="FILE", help="the inventory file (default: the one that deploys use)", **more
    )


def read_inventory(options: argparse.Namespace) -> Inventory:
    """Read the inventory of `--inventory`, or the one that deploys use. Raises RigupError."""
    use_inventory(options)
    return load_inventory(find_inventory(Path.cwd() / "inventory"))


def use_inventory(options: argparse.Namespace) -> None:
    """Make `--inventory` the inventory of this process, of those that it starts, and of the commands that it prints."""
    if options.inventory is not None:
        os.environ["RIGUP_INVENTORY"] = str(options.inventory)


def find_target(inventory: Inventory, word: str) -> Target:
    """Find what HOST or HOST/ENDPOINT names. Raises RigupError, with near names, for an unknown one."""
    name, slash, endpoint = word.partition("/")
    host = inventory.host(name)
    if not slash:
        return Target(host, None)
    endpoints = host.settings.endpoints
    if endpoint not in endpoints:
        raise RigupError(
            f"{host.name} has no endpoint {endpoint!r}",
            suggestion(endpoint, endpoints, f"endpoints: {', '.join(endpoints)}"),
        )
    return Target(host, endpoint)


def find_endpoint(inventory: Inventory, word: str) -> tuple[Host, str]:
    """Find the host and the endpoint that HOST/ENDPOINT names, or HOST where it has only one. Raises RigupError."""
    target = find_target(inventory, word)
    return target.host, one_endpoint(target)


def find_host(inventory: Inventory, word: str) -> Host:
    """Find the host that HOST names, for commands about whole hosts. Raises RigupError, also for HOST/ENDPOINT."""
    target = find_target(inventory, word)
    if target.endpoint is not None:
        raise RigupError(f"{word}: this command works on whole hosts", f"write {target.host.name}")
    return target.host


def one_endpoint(target: Target) -> str:
    """Return the endpoint that HOST[/ENDPOINT] names. Raises RigupError if it names none of several."""
    host, endpoints = target.host, target.host.settings.endpoints
    if target.endpoint is None and len(endpoints) > 1:
        names = ", ".join(f"{host.name}/{name}" for name in endpoints)
        raise RigupError(f"{host.name} has several endpoints", f"name one: {names}")
    return target.endpoint or next(iter(endpoints))


def find_targets(inventory: Inventory, words: Iterable[str]) -> list[Target]:
    """Find what each word names, or all hosts if there are no words. Raises RigupError."""
    return [find_target(inventory, word) for word in words or inventory.hosts]


def on_each(hosts: Mapping[str, Host], function: Callable[[Host], T]) -> dict[str, T]:
    """Call a function for all hosts in parallel, and return its results by name.

    Ctrl-C ends it at once: the threads are not waited for.
    """
    pool = ThreadPoolExecutor(min(32, len(hosts)))
    try:
        return dict(zip(hosts, pool.map(function, hosts.values()), strict=True))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
