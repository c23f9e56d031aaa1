"""Gateways in front of endpoints that are reachable from other hosts: keys and firewall rules."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Sequence

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.host import Host
from pyinfra.api.operation import OperationMeta, operation
from pyinfra.context import host

from rigup.facts.gateway import GatewayNames, GatewayState, GatewayStateValue
from rigup.facts.units import UnitState, UnitStateValue
from rigup.operations._host import Commands, check, work
from rigup.operations._units import show
from rigup.operations._wait import say
from rigup.paths import GATEWAYS, NFTABLES_UNIT, gateway_unit
from rigup.plan.balancer import NAME


@operation()
def key(endpoint: str, path: str) -> Commands:
    """Generate a key for `endpoint` in the file `path`: once, on the host, and readable only by root.

    This operation never reads the key. If the file is removed, the next deploy generates a new key.
    """
    state: GatewayStateValue = host.get_fact(GatewayState, endpoint=endpoint, key=path)
    if state.key_is_safe:
        host.noop(f"{endpoint} has a key")
        return

    def make(host: Host) -> None:
        file, new_file = QuoteString(path), QuoteString(f"{path}.new")
        failing = f"could not generate the key of {endpoint} on {host.name}"
        if state.key:
            check(host, "chown root:root --", file, "&& chmod 600 --", file, failing=failing)
            return
        check(
            host,
            StringCommand("( umask 022 && mkdir -p --", QuoteString(posixpath.dirname(path)), ") && umask 077"),
            StringCommand("&& openssl rand -hex -out", new_file, "32 && sync", new_file, "&& mv -T --", new_file, file),
            failing=failing,
        )

    yield work(make, f"generate the key of {endpoint}")


@operation()
def firewall(endpoint: str, key: str, rules: str, digest: str) -> Commands:
    """Load the firewall rule of `endpoint`; the tables of others are not changed.

    + key: the endpoint's key file
    + rules: the file with its rules, as `nft -f` reads it
    + digest: the mark of that rule
    """
    state: GatewayStateValue = host.get_fact(GatewayState, endpoint=endpoint, key=key)
    # A run that was killed may have left nftables without its drop-in.
    stale = host.get_fact(UnitState, unit=NFTABLES_UNIT).needs_reload
    if state.rule == digest and not stale:
        host.noop(f"the firewall rule of {endpoint} is loaded")
        return

    def load(host: Host) -> None:
        if stale:
            check(host, "systemctl daemon-reload", failing=f"systemd on {host.name} could not reload its units")
        check(host, "nft -f", QuoteString(rules), failing=f"{host.name}: nft refused {rules}")

    yield work(load, f"load {rules}")


@operation()
def reloaded(unit: str, inputs: Sequence[str], mark: str, reload_for: Sequence[OperationMeta] = ()) -> Commands:
    """Make the HAProxy of `unit`, which runs, read its files again if they are newer; requests that run go on.

    + inputs: the files that it reads at its start
    + mark: a file that is written before each reload
    + reload_for: operations that write these files, so that a dry run can predict the change
    """
    state: UnitStateValue = host.get_fact(UnitState, unit=unit, inputs=[*inputs, mark])
    foreseen = any(not meta.is_complete() and meta.will_change for meta in reload_for)
    if state.active == "active" and not _unread(state, inputs, mark) and not foreseen:
        host.noop(f"{unit} has read its present files")
        return

    def reload(host: Host) -> None:
        now = show(host, unit, [*inputs, mark])
        if not (unread := _unread(now, inputs, mark)):
            return
        say(host, f"reloading {unit}: {unread[0]} is newer")
        check(
            host,
            StringCommand("( umask 022 && mkdir -p --", QuoteString(posixpath.dirname(mark)), ") && touch --"),
            StringCommand(QuoteString(mark), "&& systemctl kill --kill-whom=main --signal=USR2 --", QuoteString(unit)),
            failing=f"could not reload {unit} on {host.name}",
        )

    yield work(reload, f"reload {unit}")


def _unread(state: UnitStateValue, inputs: Sequence[str], mark: str) -> list[str]:
    """Return the files that were written after the unit's start and after its last reload."""
    return [path for path in state.newer_inputs if path in inputs and state.inputs[path] >= state.inputs.get(mark, 0)]


@operation()
def absent_others(keep: Collection[str]) -> Commands:
    """Remove all gateways but those of the endpoints in `keep`. Keys stay, for a gateway that is added again."""
    there: list[str] = host.get_fact(GatewayNames)
    extra = sorted(set(there) - set(keep))
    if not extra:
        host.noop("no other gateway exists")
        return

    def close(host: Host) -> None:
        for name in extra:
            unit = QuoteString(gateway_unit(name))
            files = [QuoteString(f"{GATEWAYS}/{name}.{kind}") for kind in ("nft", "cfg")]
            check(
                host,
                StringCommand("systemctl disable --quiet --now --", unit, "&& rm -f --", *files),
                failing=f"could not remove the gateway of {name} on {host.name}",
            )
            what = "the load balancer is gone" if name == NAME else f"{name} is now reachable only from the host itself"
            say(host, what)

    yield work(close, "remove gateways")
