"""Preflight's look at the network: addresses and ports to serve on, and servers that a host must reach."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from rigup.packages import DISTROS, cuda_group, docker_group, driver_group, toolkit_group
from rigup.plan import Plan
from rigup.preflight.seen import Case, Listener
from rigup.registry import HUB, registry_of
from rigup.settings import Settings

__all__ = ["destinations", "network", "ports", "public_addresses"]

HUBS = ("hub_mirror", "hub_endpoint")


def destinations(plan: Plan, settings: Settings) -> dict[tuple[str, int], str]:
    """Where a bare host must be able to connect: `(host, port)` to the setting that says so."""
    found: dict[tuple[str, int], str] = {}
    for name, url in _urls(plan, settings):
        found.setdefault(_place(url), name)
    return found


def _urls(plan: Plan, settings: Settings) -> list[tuple[str, str]]:
    urls = [(name, getattr(settings, name)) for name in ("cuda_mirror", "docker_mirror", "toolkit_mirror")]
    urls += [("pypi_index", settings.pypi_index), ("hub_endpoint", settings.hub_endpoint)]
    if settings.hub_mirror:
        urls.append(("hub_mirror", settings.hub_mirror))
    if plan.venvs:
        urls.append(("python_mirror", settings.python_mirror))
    for tag in plan.images.values():
        base, _, _ = registry_of(tag, settings.registry_mirror)
        urls.append(("registry_mirror" if base in (settings.registry_mirror, HUB) else f"image {tag}", base))
    return urls


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def public_addresses(case: Case) -> None:
    for endpoint in case.plan.endpoints:
        if endpoint.public_address and endpoint.public_address not in case.facts.addresses:
            own = [each for each in sorted(case.facts.addresses) if not ip_address(each).is_loopback]
            case.problem(
                "address",
                f"{endpoint.public_address} of endpoint {endpoint.name} is no address of this host",
                f"set endpoints.{endpoint.name}.address to one of its own: {', '.join(own) or 'it has none'}",
            )


def ports(case: Case) -> None:
    for endpoint in case.plan.endpoints:
        # One of ours: it stays, or gives way before another one takes its port.
        wanted = [] if endpoint.port in case.facts.our_ports else [endpoint.address]
        if endpoint.public_address and case.facts.gates.get(endpoint.name) != endpoint.port:
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
    urls = [(name, _place(url)) for name, url in _urls(case.plan, case.settings)]
    for host, port in destinations(case.plan, case.settings):
        names = sorted({name for name, place in urls if place == (host, port)})
        seen = case.facts.reachable.get((host, port))
        if not needed.intersection(names) or (seen is not None and seen.ok):
            continue
        reason = seen.reason if seen is not None else "it was not tried"
        case.problem(
            "network",
            f"the host cannot connect to {host}:{port}: {reason}",
            f"open the way from the host, or set {', '.join(names)} to a mirror that it reaches",
        )


def _needed_settings(case: Case) -> set[str]:
    """The settings whose servers are still needed."""
    needed = {name for name, _ in _urls(case.plan, case.settings)}
    cuda = cuda_group(case.settings)
    if not case.missing(driver_group(case.settings), *([cuda] if cuda else [])):
        needed.discard("cuda_mirror")
    if not case.missing(docker_group(case.settings)):
        needed.discard("docker_mirror")
    if not case.missing(toolkit_group(case.settings)):
        needed.discard("toolkit_mirror")
    missing = case.checkpoints_to_come()
    # A host that reaches one of them can go on; files that the mirror lacks come from the hub, and the other way.
    hubs = {name: _place(url) for name, url in _urls(case.plan, case.settings) if name in HUBS}
    reached = any(seen is not None and seen.ok for seen in map(case.facts.reachable.get, hubs.values()))
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
