"""Gateways in front of endpoints that are reachable from beyond their host: key and firewall rule."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Generator

from pyinfra.api.command import FunctionCommand, QuoteString, StringCommand
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.facts.gateway import GatewayNames, GatewayState, GatewayStateValue
from rigup.operations._host import check, say, work
from rigup.render.gateway import GATEWAYS

__all__ = ["absent_others", "firewall", "key"]

Commands = Generator[FunctionCommand, None, None]


@operation()
def key(endpoint: str, path: str) -> Commands:
    """Have a key for `endpoint` in the file `path`: made once, on the host, and readable by root alone.

    It never leaves the host over this operation; whoever removes the file gets another key with the next deploy.
    """
    state: GatewayStateValue = host.get_fact(GatewayState, endpoint=endpoint, key=path)
    if state.key_is_safe:
        host.noop(f"{endpoint} has its key")
        return

    def make(host: Host) -> None:
        file, beside = QuoteString(path), QuoteString(f"{path}.new")
        failing = f"could not make the key of {endpoint} on {host.name}"
        if state.key:
            check(host, "chown root:root --", file, "&& chmod 600 --", file, failing=failing)
            return
        check(
            host,
            StringCommand("( umask 022 && mkdir -p --", QuoteString(posixpath.dirname(path)), ") && umask 077"),
            StringCommand("&& openssl rand -hex -out", beside, "32 && sync", beside, "&& mv -T --", beside, file),
            failing=failing,
        )

    yield work(make, f"make the key of {endpoint}")


@operation()
def firewall(endpoint: str, key: str, rules: str, digest: str) -> Commands:
    """Have the firewall rule of `endpoint` in force; others' tables are not touched.

    + key: the endpoint's key file
    + rules: the file with its rules, as `nft -f` reads it
    + digest: what the rule in force must be marked with
    """
    state: GatewayStateValue = host.get_fact(GatewayState, endpoint=endpoint, key=key)
    if state.rule == digest:
        host.noop(f"the firewall knows who may reach {endpoint}")
        return

    def load(host: Host) -> None:
        check(host, "nft -f", QuoteString(rules), failing=f"{host.name}: nft did not take {rules}")

    yield work(load, f"load {rules}")


@operation()
def absent_others(keep: Collection[str]) -> Commands:
    """Have no gateway but those of the endpoints in `keep`. Keys stay, so that a gateway that comes back has its old
    one."""
    there: list[str] = host.get_fact(GatewayNames)
    extra = sorted(set(there) - set(keep))
    if not extra:
        host.noop("no other gateway is there")
        return

    def close(host: Host) -> None:
        for name in extra:
            unit = QuoteString(f"rigup-gateway@{name}.service")
            files = [QuoteString(f"{GATEWAYS}/{name}.{kind}") for kind in ("nft", "cfg")]
            check(
                host,
                StringCommand("systemctl disable --quiet --now --", unit, "&& rm -f --", *files),
                failing=f"could not close the gateway of {name} on {host.name}",
            )
            say(host, f"{name} is on the host's loopback alone now")

    yield work(close, "close gateways")
