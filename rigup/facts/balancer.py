"""The load balancer of a host: where it sends requests, and the SHA-256 of its keys, which are not read themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.facts.reading import Value, reading
from rigup.paths import GATEWAYS
from rigup.plan.balancer import NAME, SERVERS_PATH
from rigup.text import from_json

SAFE = "root 600"
# HAProxy's form of a key has a word before it; whoever writes a file by hand may end the line with CR.
_LAST_WORD = """awk 'NR == 1 { sub(/\\r$/, ""); printf "%s", $NF }'"""


@dataclass(frozen=True)
class KeyValue(Value):
    """A key's file: its owner and mode, such as `root 600`, and the SHA-256 of the key."""

    owner: str
    digest: str


def parse_keys(lines: list[str]) -> dict[str, KeyValue]:
    """Parse lines of owner, mode, SHA-256 and path."""
    found = {}
    for line in lines:
        owner, mode, digest, path = line.split(" ", 3)
        found[path] = KeyValue(f"{owner} {mode}", digest)
    return found


class KeyDigests(FactBase[dict[str, KeyValue]]):
    """The keys in the files `paths`, by path, without those that are missing or empty."""

    @staticmethod
    def default() -> dict[str, KeyValue]:
        return {}

    def command(self, paths: Sequence[str]) -> StringCommand:
        return StringCommand(*(part for path in paths for part in self._one(QuoteString(path))), "true")

    @staticmethod
    def _one(path: QuoteString) -> tuple[str | QuoteString, ...]:
        digest = (f'"$({_LAST_WORD}', path, '2>/dev/null | sha256sum | cut -c 1-64)"')
        return ("! test -s", path, "|| echo", "\"$(stat -c '%U %a' --", path, ')"', *digest, path, ";")

    @reading
    def process(self, output: list[str]) -> dict[str, KeyValue]:
        return parse_keys(output)


@dataclass(frozen=True)
class ServerValue(Value):
    """An endpoint behind a load balancer: whether it gets new requests, and how many of them run there."""

    name: str
    up: bool
    running: int


@dataclass(frozen=True)
class BalancerValue(Value):
    """The load balancer on a host: its address and port, empty for none, and what it says of its endpoints."""

    at: str = ""
    servers: tuple[ServerValue, ...] = ()


def parse_balancer(lines: list[str]) -> BalancerValue:
    """Parse the address, and the JSON object that the load balancer answers with, if it does."""
    if not lines:
        return BalancerValue()
    told = from_json("".join(lines[1:]) or "{}")
    servers = [ServerValue(name, bool(each["up"]), sum(each["running"])) for name, each in told.items()]
    return BalancerValue(lines[0], tuple(servers))


# The address that HAProxy listens on, as a URL has it.
_ADDRESS = (
    """awk '$1 == "bind" { sub(/.*@/, "", $2); port = match($2, /:[0-9]+$/); host = substr($2, 1, port - 1); """
    """print (host ~ /:/ ? "[" host "]" : host) substr($2, port); exit }'"""
)


class BalancerState(FactBase[BalancerValue]):
    """The load balancer on this host, if it has one."""

    @staticmethod
    def default() -> BalancerValue:
        return BalancerValue()

    def command(self) -> str:
        return (
            f'at="$({_ADDRESS} {GATEWAYS}/{NAME}.cfg 2>/dev/null)"; test -z "$at" || {{ echo "$at"; '
            f"curl -q -s --noproxy '*' -m 5 \"http://$at{SERVERS_PATH}\" 2>/dev/null; }}; true"
        )

    @reading
    def process(self, output: list[str]) -> BalancerValue:
        return parse_balancer(output)
