"""Preflight's network checks: addresses and ports to serve on, and servers that a host must reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from rigup.config.settings import Settings
from rigup.distros.table import DISTROS
from rigup.host_config import NO_PROXIES, Proxies, place, proxy_for
from rigup.lock.packages import cuda_group, docker_group, driver_group, toolkit_group
from rigup.lock.registry import HUB, registry_of
from rigup.plan.model import Plan
from rigup.preflight.snapshot import HostCheck, Listener

APT = ("cuda_mirror", "docker_mirror", "toolkit_mirror")
HUBS = ("hub_mirror", "hub_endpoint")


@dataclass(frozen=True)
class Connection:
    """How a host reaches the server of a setting: the host and port to connect to, and whether they are a proxy's."""

    setting: str
    destination: tuple[str, int]
    proxied: bool


def destinations(plan: Plan, settings: Settings, proxies: Proxies = NO_PROXIES) -> dict[tuple[str, int], str]:
    """Return where a bare host must be able to connect to: `(host, port)` to the setting that requires it."""
    found: dict[tuple[str, int], str] = {}
    for connection in _connections(plan, settings, proxies):
        found.setdefault(connection.destination, connection.setting)
    return found


def _connections(plan: Plan, settings: Settings, proxies: Proxies) -> list[Connection]:
    urls = [(name, getattr(settings, name), proxies.apt) for name in APT]
    others = ["pypi_index", "hub_endpoint", *(["hub_mirror"] if settings.hub_mirror else [])]
    others += ["python_mirror"] if plan.venvs else []
    urls += [(name, getattr(settings, name), proxies.environment) for name in others]
    for tag in plan.images.values():
        base, _, _ = registry_of(tag, settings.registry_mirror)
        name = "registry_mirror" if base in (settings.registry_mirror, HUB) else f"image {tag}"
        urls.append((name, base, proxies.docker))
    return [
        Connection(name, place(proxy_for(url, names) or url), bool(proxy_for(url, names))) for name, url, names in urls
    ]


def public_addresses(host: HostCheck) -> None:
    """Check that the public address of every endpoint belongs to the host."""
    addresses = host.facts.network.addresses
    for endpoint in host.plan.endpoints:
        if endpoint.public_address and endpoint.public_address not in addresses:
            own = [each for each in sorted(addresses) if not ip_address(each).is_loopback]
            host.problem(
                "network-address",
                f"{endpoint.public_address} of endpoint {endpoint.name} is not an address of this host",
                f"set endpoints.{endpoint.name}.listen to one of its addresses: {', '.join(own) or 'it has none'}",
            )


def ports(host: HostCheck) -> None:
    """Check that the port of every endpoint is free."""
    for endpoint in host.plan.endpoints:
        # An endpoint of ours may hold it: it either stays, or is stopped before another one takes its port.
        required = [] if endpoint.port in host.facts.endpoints.ports else [endpoint.address]
        if endpoint.public_address and host.facts.endpoints.gateways.get(endpoint.name) != endpoint.port:
            required.append(endpoint.public_address)
        listeners = host.facts.network.listeners
        if taken := sorted({each.address for each in listeners if _blocks(each, required, endpoint.port)}):
            host.problem(
                "network-port",
                f"port {endpoint.port} of endpoint {endpoint.name} is already in use on {', '.join(taken)}",
                f"stop that program (`ss -tlnp sport = :{endpoint.port}` shows it), or set "
                f"endpoints.{endpoint.name}.port",
            )


def network(host: HostCheck) -> None:
    """Check that the host reaches every server that the deploy still needs."""
    needed = _needed_settings(host)
    # One mirror may serve several settings: it is needed as long as any of them is.
    names: dict[tuple[tuple[str, int], bool], set[str]] = {}
    for connection in _connections(host.plan, host.settings, host.facts.network.proxies):
        names.setdefault((connection.destination, connection.proxied), set()).add(connection.setting)
    for ((name, port), proxied), settings in names.items():
        tried = host.facts.network.reachable.get((name, port))
        if not needed & settings or (tried is not None and tried.ok):
            continue
        reason = tried.reason if tried is not None else "the connection was not tried"
        mirrors = f"set {', '.join(sorted(settings))} to a mirror that it can reach"
        if proxied:
            found = f"the host cannot connect to its proxy {name}:{port}: {reason}"
            host.problem("network-reach", found, f"correct the proxy in /etc/environment, apt or Docker, or {mirrors}")
        else:
            found = f"the host cannot connect to {name}:{port}: {reason}"
            host.problem("network-reach", found, f"allow the connection, configure a proxy on the host, or {mirrors}")


def _needed_settings(host: HostCheck) -> set[str]:
    """Return the settings whose servers are still needed."""
    connections = _connections(host.plan, host.settings, host.facts.network.proxies)
    software = host.facts.software
    needed = {connection.setting for connection in connections}
    cuda = cuda_group(host.settings)
    if not host.lacks_packages(driver_group(host.settings), *([cuda] if cuda else [])):
        needed.discard("cuda_mirror")
    if not host.lacks_packages(docker_group(host.settings)):
        needed.discard("docker_mirror")
    if not host.lacks_packages(toolkit_group(host.settings)):
        needed.discard("toolkit_mirror")
    missing = host.missing_checkpoints()
    # One of them is enough: files that the mirror lacks come from the hub, and vice versa.
    hubs = [host.facts.network.reachable.get(each.destination) for each in connections if each.setting in HUBS]
    reached = any(tried is not None and tried.ok for tried in hubs)
    if reached or all(each.path in host.facts.disk.in_model_source for each in missing):
        needed.difference_update(HUBS)
    if not missing and software.has_client and all(venv.path in software.venvs for venv in host.plan.venvs):
        needed.discard("pypi_index")
    distro = DISTROS.get(host.distro or "")
    if all(venv.path in software.venvs or (distro and distro.python == venv.python) for venv in host.plan.venvs):
        needed.discard("python_mirror")
    if all(image in software.images for image in host.plan.images):
        needed -= {name for name in needed if name == "registry_mirror" or name.startswith("image ")}
    return needed


def _blocks(listener: Listener, addresses: Sequence[str], port: int) -> bool:
    """Return whether that socket prevents others from listening on one of the addresses."""
    wildcards = ("0.0.0.0", "::", "::ffff:0.0.0.0") if addresses else ()
    mapped = (f"::ffff:{address}" for address in addresses)
    return listener.port == port and listener.address in (*wildcards, *addresses, *mapped)
