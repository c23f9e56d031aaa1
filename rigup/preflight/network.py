"""Preflight's look at the network: addresses and ports to serve on, and servers that a host must reach."""

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
from rigup.preflight.snapshot import Case, Listener

__all__ = ["destinations", "network", "ports", "public_addresses"]

APT = ("cuda_mirror", "docker_mirror", "toolkit_mirror")
HUBS = ("hub_mirror", "hub_endpoint")


@dataclass(frozen=True)
class Way:
    """How a host reaches the server that a setting names: the place to connect to, and whether it is a proxy's."""

    setting: str
    place: tuple[str, int]
    proxied: bool


def destinations(plan: Plan, settings: Settings, proxies: Proxies = NO_PROXIES) -> dict[tuple[str, int], str]:
    """Where a bare host must be able to connect: `(host, port)` to the setting that says so."""
    found: dict[tuple[str, int], str] = {}
    for way in _ways(plan, settings, proxies):
        found.setdefault(way.place, way.setting)
    return found


def _ways(plan: Plan, settings: Settings, proxies: Proxies) -> list[Way]:
    urls = [(name, getattr(settings, name), proxies.apt) for name in APT]
    others = ["pypi_index", "hub_endpoint", *(["hub_mirror"] if settings.hub_mirror else [])]
    others += ["python_mirror"] if plan.venvs else []
    urls += [(name, getattr(settings, name), proxies.environment) for name in others]
    for tag in plan.images.values():
        base, _, _ = registry_of(tag, settings.registry_mirror)
        name = "registry_mirror" if base in (settings.registry_mirror, HUB) else f"image {tag}"
        urls.append((name, base, proxies.docker))
    return [Way(name, place(proxy_for(url, names) or url), bool(proxy_for(url, names))) for name, url, names in urls]


def public_addresses(case: Case) -> None:
    for endpoint in case.plan.endpoints:
        if endpoint.public_address and endpoint.public_address not in case.facts.addresses:
            own = [each for each in sorted(case.facts.addresses) if not ip_address(each).is_loopback]
            case.problem(
                "address",
                f"{endpoint.public_address} of endpoint {endpoint.name} is no address of this host",
                f"set endpoints.{endpoint.name}.listen to one of its own: {', '.join(own) or 'it has none'}",
            )


def ports(case: Case) -> None:
    for endpoint in case.plan.endpoints:
        # One of ours: it stays, or gives way before another one takes its port.
        wanted = [] if endpoint.port in case.facts.our_ports else [endpoint.address]
        if endpoint.public_address and case.facts.gateways.get(endpoint.name) != endpoint.port:
            wanted.append(endpoint.public_address)
        taken = sorted({seen.address for seen in case.facts.listeners if _in_the_way(seen, wanted, endpoint.port)})
        if taken:
            case.problem(
                "port",
                f"port {endpoint.port} of endpoint {endpoint.name} is taken on {', '.join(taken)}",
                f"stop it (`ss -tlnp sport = :{endpoint.port}` names it), or set endpoints.{endpoint.name}.port",
            )


def network(case: Case) -> None:
    needed = _needed_settings(case)
    # One mirror may serve several settings: it is needed as long as any of them is.
    names: dict[tuple[tuple[str, int], bool], set[str]] = {}
    for way in _ways(case.plan, case.settings, case.facts.proxies):
        names.setdefault((way.place, way.proxied), set()).add(way.setting)
    for ((host, port), proxied), settings in names.items():
        seen = case.facts.reachable.get((host, port))
        if not needed & settings or (seen is not None and seen.ok):
            continue
        reason = seen.reason if seen is not None else "it was not tried"
        mirrors = f"set {', '.join(sorted(settings))} to a mirror that it reaches"
        if proxied:
            found = f"the host cannot connect to its proxy {host}:{port}: {reason}"
            case.problem("network", found, f"correct it (/etc/environment, apt's or Docker's own), or {mirrors}")
        else:
            found = f"the host cannot connect to {host}:{port}: {reason}"
            case.problem("network", found, f"open the way from the host, name its proxy there, or {mirrors}")


def _needed_settings(case: Case) -> set[str]:
    """The settings whose servers are still needed."""
    ways = _ways(case.plan, case.settings, case.facts.proxies)
    needed = {way.setting for way in ways}
    cuda = cuda_group(case.settings)
    if not case.missing(driver_group(case.settings), *([cuda] if cuda else [])):
        needed.discard("cuda_mirror")
    if not case.missing(docker_group(case.settings)):
        needed.discard("docker_mirror")
    if not case.missing(toolkit_group(case.settings)):
        needed.discard("toolkit_mirror")
    missing = case.checkpoints_to_come()
    # A host that reaches one of them can go on; files that the mirror lacks come from the hub, and the other way.
    hubs = [case.facts.reachable.get(way.place) for way in ways if way.setting in HUBS]
    reached = any(seen is not None and seen.ok for seen in hubs)
    if reached or all(each.path in case.facts.sourced for each in missing):
        needed.difference_update(HUBS)
    if not missing and case.facts.client and all(venv.path in case.facts.venvs for venv in case.plan.venvs):
        needed.discard("pypi_index")
    distro = DISTROS.get(case.distro or "")
    if all(venv.path in case.facts.venvs or (distro and distro.python == venv.python) for venv in case.plan.venvs):
        needed.discard("python_mirror")
    if all(image in case.facts.images for image in case.plan.images):
        needed -= {name for name in needed if name == "registry_mirror" or name.startswith("image ")}
    return needed


def _in_the_way(listener: Listener, wanted: Sequence[str], port: int) -> bool:
    """Whether that socket keeps others from listening on one of the addresses `wanted`."""
    anywhere = ("0.0.0.0", "::", "::ffff:0.0.0.0") if wanted else ()
    mapped = (f"::ffff:{address}" for address in wanted)
    return listener.port == port and listener.address in (*anywhere, *wanted, *mapped)
