"""IP addresses of hosts that the inventory names otherwise."""

from __future__ import annotations

import ipaddress
import socket


def ip_of(name: str) -> str | None:
    """Return the first IP address of a host as this machine resolves it; None if it has none that others can reach.

    A name for which this machine answers with loopback, such as its own, has none. An address is returned as it is.
    """
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return None
    return next((each for each in found if not ipaddress.ip_address(each).is_loopback and "%" not in each), None)
