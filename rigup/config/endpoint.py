"""The endpoints of a host: what each of them serves, on which GPUs, and who may connect."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from rigup.config.types import Gpus, ListenAddress, Name, Network, Port, RecipeOrNeed
from rigup.config.yaml_file import complaint


class Endpoint(BaseModel):
    """A named instance of a recipe on a host."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: RecipeOrNeed | None = Field(
        None,
        description="Recipe of this endpoint; without it, the host's `recipe` applies.",
        examples=["vllm-nvfp4-cu130"],
    )
    gpus: Gpus = Field(
        "all",
        description="`all`, or GPUs by number or UUID, as `nvidia-smi -L` prints them.",
        examples=[[0, 1, 2, 3]],
    )
    listen: ListenAddress = Field(
        "127.0.0.1",
        description="Address to listen on. Beyond loopback, every request needs the endpoint's key (`rigup key`).",
    )
    port: Port = Field(8000, description="TCP port to listen on.")
    allowed_networks: tuple[Network, ...] = Field(
        (),
        description="Networks that may connect beyond loopback, such as `[192.168.1.0/24]`; the firewall drops all "
        "other packets.",
        examples=[["192.168.1.0/24"]],
    )

    @property
    def is_public(self) -> bool:
        """Whether other hosts can reach it."""
        return not ipaddress.ip_address(self.listen).is_loopback

    @model_validator(mode="after")
    def _networks_fit_the_address(self) -> Endpoint:
        if self.is_public and not self.allowed_networks:
            raise complaint(
                f"{self.listen} is reachable from other hosts, and allowed_networks is not set",
                "allowed_networks: [192.168.1.0/24], or leave listen out and use "
                f"`ssh -L {self.port}:127.0.0.1:{self.port}`",
            )
        if self.allowed_networks and not self.is_public:
            raise complaint(
                f"allowed_networks has no effect on {self.listen}", "set listen to an address of the host, or remove it"
            )
        family = ipaddress.ip_address(self.listen).version
        if other := [each for each in self.allowed_networks if ipaddress.ip_network(each).version != family]:
            raise complaint(f"{', '.join(other)} cannot reach {self.listen}", f"use IPv{family} networks")
        return self


def _share_nothing(endpoints: dict[str, Endpoint]) -> dict[str, Endpoint]:
    """Refuse a port or GPU that two endpoints use.

    A GPU that one names by number and another by UUID is only known on the host; preflight checks that.
    """
    if not endpoints:
        raise complaint("endpoints is empty", "name one, for example `endpoints: {main: {}}`")
    ports: dict[int, str] = {}
    taken: dict[int | str, str] = {}
    for name, endpoint in endpoints.items():
        if (other := ports.setdefault(endpoint.port, name)) != name:
            raise complaint(f"endpoints {other} and {name} both listen on port {endpoint.port}", "change one")
        if endpoint.gpus == "all":
            if len(endpoints) > 1:
                raise complaint(
                    f"endpoint {name} uses all GPUs, and there are other endpoints", "give each its own list of GPUs"
                )
            continue
        for gpu in endpoint.gpus:
            if (other := taken.setdefault(gpu, name)) != name:
                raise complaint(f"endpoints {other} and {name} both use GPU {gpu}", "change one")
    return endpoints


Endpoints = Annotated[dict[Name, Endpoint], AfterValidator(_share_nothing)]


def gpu_indices(
    gpus: Literal["all"] | tuple[int | str, ...], present: int, numbers: Mapping[str, int]
) -> tuple[int, ...]:
    """Return the GPU numbers that an endpoint uses on a host with `present` GPUs.

    `numbers` maps the UUIDs of that host's GPUs to numbers; a UUID that it lacks is skipped.
    """
    if gpus == "all":
        return tuple(range(present))
    found = (numbers.get(gpu) if isinstance(gpu, str) else gpu for gpu in gpus)
    return tuple(number for number in found if number is not None)
