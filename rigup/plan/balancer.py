"""The load balancer of an inventory: where it runs, and which endpoints answer for which model. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from rigup.catalog.loader import Catalog
from rigup.catalog.select import recipe_of
from rigup.config.load_balancer import ClientKey, LoadBalancer
from rigup.config.settings import Settings
from rigup.errors import RigupError
from rigup.plan.model import url_of

NAME = "load_balancer"
"""Its name among the gateways of a host: no endpoint has an underscore in its name."""

SERVERS_PATH = "/rigup/servers"
"""The path at which hosts behind the load balancer ask whether it still sends them requests."""


@dataclass(frozen=True)
class Member:
    """A host of the inventory, its address for ssh, and its settings."""

    name: str
    login: str
    settings: Settings


@dataclass(frozen=True)
class Backend:
    """An endpoint behind the load balancer: its host, its name, and the address and port of its gateway."""

    host: str
    endpoint: str
    address: str
    port: int

    @property
    def name(self) -> str:
        """Its name in HAProxy's configuration, in logs and in what the load balancer tells of its backends."""
        return f"{self.host}:{self.endpoint}"


@dataclass(frozen=True)
class Model:
    """A model by the name that the engines serve it as, and the endpoints that do."""

    name: str
    backends: tuple[Backend, ...]

    @property
    def pool(self) -> str:
        """Its name in names of HAProxy's configuration, which have no slash."""
        return self.name.replace("/", ":")


@dataclass(frozen=True)
class Balancer:
    """The load balancer. `hosts` are the IP addresses by the name of each host on which it runs."""

    hosts: Mapping[str, str]
    port: int
    allowed_networks: tuple[str, ...]
    models: tuple[Model, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, ClientKey] = field(default_factory=dict)

    @property
    def first(self) -> str:
        """The host on which the keys for clients are made; the others have their SHA-256."""
        return next(iter(self.hosts))

    @property
    def backends(self) -> tuple[Backend, ...]:
        """The endpoints of all models."""
        return tuple(backend for model in self.models for backend in model.backends)

    @property
    def names(self) -> dict[str, str]:
        """The model for each name that a request may ask for: models and aliases."""
        return {model.name: model.name for model in self.models} | dict(self.aliases)

    def url(self, host: str) -> str:
        """Return the URL of the load balancer on a host."""
        return url_of(self.hosts[host], self.port)

    def names_for(self, key: str) -> list[str]:
        """Return the names that requests with this key may ask for, sorted."""
        allowed = self.keys[key].models
        models = {self.names[name] for name in allowed}
        return sorted(name for name, model in self.names.items() if not allowed or name in allowed or model in models)


def balancer_of(
    wanted: LoadBalancer,
    members: Iterable[Member],
    catalog: Catalog,
    choices: Mapping[str, str],
    ip_of: Callable[[str], str | None],
) -> Balancer:
    """Return the load balancer of an inventory with these hosts.

    `choices` are the lock's recipes for needs. `ip_of` returns the IP address that others reach for a host's address.

    Raises RigupError for a host without an address, for an alias or key that names an unknown model, for a gateway
    that the load balancer cannot reach, and for what `recipe_of` refuses.
    """
    by_name = {member.name: member for member in members}
    hosts: dict[str, str] = {}
    for name in wanted.hosts:
        member = by_name[name]
        address = ip_of(member.settings.peer_address or member.login)
        if address is None:
            raise RigupError(
                f"load_balancer: the address of {name} does not resolve to one that others reach",
                f"set peer_address of {name} to its IP address",
            )
        hosts[name] = address
    found: dict[str, list[Backend]] = {}
    for member in by_name.values():
        for name, endpoint in sorted(member.settings.endpoints.items()):
            if endpoint.is_public:
                recipe = recipe_of(member.settings, name, catalog, choices)
                backend = Backend(member.name, name, endpoint.listen, endpoint.port)
                _check_family(backend, hosts)
                found.setdefault(recipe.served_name, []).append(backend)
    models = tuple(Model(name, tuple(backends)) for name, backends in sorted(found.items()))
    balancer = Balancer(hosts, wanted.port, wanted.allowed_networks, models, dict(wanted.aliases), dict(wanted.keys))
    _check_names(balancer)
    return balancer


def _check_family(backend: Backend, hosts: Mapping[str, str]) -> None:
    version = ip_address(backend.address).version
    for host, address in hosts.items():
        if ip_address(address).version != version:
            raise RigupError(
                f"load_balancer: {host} has the address {address}, and endpoint {backend.endpoint} of {backend.host} "
                f"listens on {backend.address}",
                f"set peer_address of {host}, or listen, so that both are of IPv{version}",
            )


def _check_names(balancer: Balancer) -> None:
    known = {model.name for model in balancer.models}
    listed = f"models: {', '.join(sorted(known)) or 'none'}"
    for alias, model in balancer.aliases.items():
        if alias in known:
            raise RigupError(f"load_balancer.aliases.{alias}: a model has this name", "choose another")
        if model not in known:
            raise RigupError(f"load_balancer.aliases.{alias}: no endpoint with a gateway serves {model!r}", listed)
    for key, rules in balancer.keys.items():
        for name in rules.models:
            if name not in balancer.names:
                raise RigupError(f"load_balancer.keys.{key}.models: there is no model or alias {name!r}", listed)
