"""The load balancer: one address and named keys for all endpoints of the inventory that other hosts can reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from rigup.config.types import HostName, Name, Network, Port, ServedName
from rigup.config.yaml_file import complaint


class ClientKey(BaseModel):
    """What the holder of one key of the load balancer may do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[ServedName, ...] = Field(
        (),
        description="Models and aliases that requests with this key may ask for; without it, all.",
        examples=[["agents"]],
    )
    requests_per_minute: Annotated[int, Strict(), Field(ge=1, le=1_000_000)] | None = Field(
        None, description="Requests per minute at each host of the load balancer; more get 429.", examples=[60]
    )
    concurrency: Annotated[int, Strict(), Field(ge=1, le=1000)] | None = Field(
        None, description="Requests at the same time at each host of the load balancer; more get 429.", examples=[8]
    )


class LoadBalancer(BaseModel):
    """HAProxy on some hosts of the inventory, in front of the gateways of all hosts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    LISTED_BY: ClassVar[str] = "`rigup settings` lists all"
    RENAMED: ClassVar[Mapping[str, str]] = {}

    hosts: Annotated[tuple[HostName, ...], Field(min_length=1)] = Field(
        description="Hosts of the inventory on which the load balancer runs, each at its `peer_address` or address "
        "for ssh.",
        examples=[["rig1"]],
    )
    port: Port = Field(8080, description="TCP port of the load balancer.")
    allowed_networks: Annotated[tuple[Network, ...], Field(min_length=1)] = Field(
        description="Networks that may connect; the firewall drops all other packets.",
        examples=[["192.168.1.0/24"]],
    )
    aliases: dict[ServedName, ServedName] = Field(
        {},
        description="Further names of models: requests for an alias go to the endpoints of its model.",
        examples=[{"agents": "Qwen3.5-397B-A17B"}],
    )
    keys: Annotated[dict[Name, ClientKey], Field(min_length=1)] = Field(
        {"default": ClientKey.model_validate({})},
        description="The keys, by name: `{models, requests_per_minute, concurrency}` each. `rigup key` prints them.",
        examples=[{"agents": {"models": ["agents"], "concurrency": 8}}],
    )

    @model_validator(mode="after")
    def _aliases_end(self) -> LoadBalancer:
        for alias, model in self.aliases.items():
            if model in self.aliases:
                raise complaint(f"alias {alias} names {model}, which is an alias too", f"write {self.aliases[model]}")
        if len({*self.hosts}) != len(self.hosts):
            raise complaint("lists a host twice", "list each host once")
        return self
