"""The network of a host: its addresses, listeners and proxies, and what it can reach."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.facts.reading import Value, reading
from rigup.host_config import NAMES, Proxies, apt_variables, variables
from rigup.paths import DOCKER_DROP_INS, ENVIRONMENT

LISTEN = "0A"
REACHED = "reached"
ENDED = "ended"
TIMEOUT_S = 5


@dataclass(frozen=True, order=True)
class Listener(Value):
    """A listening TCP socket."""

    address: str
    port: int


@dataclass(frozen=True)
class Reachability(Value):
    """Whether a TCP connection succeeded, and the host's message if it did not."""

    ok: bool
    reason: str = ""


def parse_listeners(lines: list[str]) -> set[Listener]:
    """Parse /proc/net/tcp and tcp6, whose addresses are 32-bit words in the machine's byte order (proc(5))."""
    found: set[Listener] = set()
    for line in lines:
        fields = line.split()
        if len(fields) > 3 and fields[3] == LISTEN:
            words, _, port = fields[1].partition(":")
            packed = b"".join(struct.pack("<I", int(words[start : start + 8], 16)) for start in range(0, len(words), 8))
            found.add(Listener(str(ipaddress.ip_address(packed)), int(port, 16)))
    return found


def parse_reachability(lines: list[str]) -> Reachability:
    """Parse the marker of a connection to any of the addresses, or bash's error messages."""
    if REACHED in lines:
        return Reachability(True)
    if lines == [ENDED]:
        return Reachability(False, "Name or service not known")
    message = lines[0].rpartition(": ")[2] if len(lines) > 1 else f"no answer within {TIMEOUT_S} s"
    return Reachability(False, message)


def parse_addresses(lines: list[str]) -> list[str]:
    """Parse `hostname -I`: all addresses except loopback and link-local ones."""
    return sorted(str(ipaddress.ip_address(word)) for word in " ".join(lines).split())


def parse_proxies(lines: list[str]) -> Proxies:
    """Parse `grep -H` lines of the environment and of drop-ins of Docker's unit, and `apt-config dump`."""
    split = [line.partition(":")[::2] for line in lines]
    environment = variables(text for path, text in split if path == ENVIRONMENT)
    docker = variables(text for path, text in split if path.endswith(".conf"))
    return Proxies(environment, apt_variables(lines, environment), docker)


class Addresses(FactBase[list[str]]):
    """The IP addresses at which others can reach the host."""

    @staticmethod
    def default() -> list[str]:
        return []

    def command(self) -> str:
        return "hostname -I 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> list[str]:
        return parse_addresses(output)


class ListeningPorts(FactBase[set[Listener]]):
    """All listening TCP sockets, read from /proc because a bare host may lack ss."""

    @staticmethod
    def default() -> set[Listener]:
        return set()

    def command(self) -> str:
        return "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> set[Listener]:
        return parse_listeners(output)


class Reachable(FactBase[Reachability]):
    """Whether the host can connect to `address`:`port`, tried with bash because a bare host has no curl.

    All addresses of a name are tried at the same time: one family without a route must not hide the other one.
    """

    @staticmethod
    def default() -> Reachability:
        return Reachability(False, "not tried")

    def command(self, address: str, port: int) -> StringCommand:
        return StringCommand(
            f"timeout {TIMEOUT_S} getent ahosts",
            QuoteString(address),
            "2>/dev/null | sed -n 's/ *STREAM.*//p' | xargs -P 16 -I ADDRESS",
            f"timeout {TIMEOUT_S} bash -c 'exec 3<>\"/dev/tcp/$0/$1\" && echo {REACHED}' ADDRESS",
            str(int(port)),
            f"2>&1 && echo {ENDED} || echo failed",
        )

    @reading
    def process(self, output: list[str]) -> Reachability:
        return parse_reachability(output)


class HostProxies(FactBase[Proxies]):
    """The proxies configured on the host, except those in Docker's daemon.json."""

    @staticmethod
    def default() -> Proxies:
        return Proxies()

    def command(self) -> str:
        return (
            f"grep -HiE '({NAMES})=' {ENVIRONMENT} {DOCKER_DROP_INS}/*.conf 2>/dev/null; "
            "apt-config dump Acquire 2>/dev/null | grep -i '::proxy' || true"
        )

    @reading
    def process(self, output: list[str]) -> Proxies:
        return parse_proxies(output)


class HttpStatus(FactBase[int]):
    """The HTTP status of `url` as seen from the host; 0 if nothing answers."""

    @staticmethod
    def default() -> int:
        return 0

    def command(self, url: str) -> StringCommand:
        return StringCommand(
            f"curl -q -s --noproxy '*' -m {TIMEOUT_S} -o /dev/null -w '%{{http_code}}'",
            QuoteString(url),
            "2>/dev/null || true",
        )

    @reading
    def process(self, output: list[str]) -> int:
        return int("".join(output).strip() or 0)
