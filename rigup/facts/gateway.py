"""The gateways in front of endpoints: which ones exist, and the state of their keys and firewall rules."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.facts.reading import ONE_LINE_EACH, Value, reading
from rigup.paths import GATEWAYS
from rigup.render.firewall import chain_of
from rigup.render.gateway import parse_gateway_names

KEY = "key="
RULE = re.compile(r'drop comment "rigup ([0-9a-f]{12})"')


@dataclass(frozen=True)
class GatewayStateValue(Value):
    """Owner and mode of the key file (empty: it is missing or empty), and the digest of the loaded firewall rule."""

    key: str = ""
    rule: str = ""

    @property
    def key_is_safe(self) -> bool:
        return self.key == "root 600"


def parse_gateway_state(lines: list[str]) -> GatewayStateValue:
    """Parse `stat` and `nft list chain`."""
    key = rule = ""
    for line in lines:
        if line.startswith(KEY):
            owner, size = line.removeprefix(KEY).rsplit(" ", 1)
            key = owner if int(size) else ""
        elif match := RULE.search(line):
            rule = match[1]
    return GatewayStateValue(key, rule)


class GatewayState(FactBase[GatewayStateValue]):
    """The state of the gateway of `endpoint`, whose key is the file `key`. The key itself is not read."""

    @staticmethod
    def default() -> GatewayStateValue:
        return GatewayStateValue()

    def command(self, endpoint: str, key: str) -> StringCommand:
        return StringCommand(
            f"stat -c '{KEY}%U %a %s' --",
            QuoteString(key),
            "2>/dev/null; nft list chain inet rigup",
            QuoteString(chain_of(endpoint)),
            "2>/dev/null || true",
        )

    @reading
    def process(self, output: list[str]) -> GatewayStateValue:
        return parse_gateway_state(output)


class GatewayNames(FactBase[list[str]]):
    """The endpoints that have a gateway on this host."""

    @staticmethod
    def default() -> list[str]:
        return []

    def command(self) -> str:
        return f"find {GATEWAYS}/ -mindepth 1 -maxdepth 1 -printf '%f\\0' {ONE_LINE_EACH}"

    @reading
    def process(self, output: list[str]) -> list[str]:
        return parse_gateway_names(output)
