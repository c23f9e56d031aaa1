"""The settings of a host: one typed schema that validates `lab.yaml`, `--data` and the README's table.

Every key is flat and in snake case, so that `pyinfra --data KEY=VALUE` reaches each of them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from datetime import date
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)

from rigup.config.need import Need, read_need
from rigup.config.yaml_file import complaint, dotted, words
from rigup.errors import Finding, InputError

__all__ = ["Connection", "Endpoint", "Gpus", "Settings", "Waiver", "gpu_indices", "settings_table"]

# In pydantic's lax mode `true` is a number and "8000" too; a person who writes those meant something else.
Int = Annotated[int, Strict()]
Bool = Annotated[bool, Strict()]

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
GPU_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _gpus(value: Any) -> Any:
    if value == "all":
        return value
    if not isinstance(value, list | tuple) or not value:
        raise complaint(f"must be `all` or a list of GPU numbers, got {value!r}", "for example [0, 1, 2, 3]")
    for gpu in value:
        if isinstance(gpu, str) and GPU_UUID.fullmatch(gpu):
            continue
        if isinstance(gpu, bool) or not isinstance(gpu, int) or gpu < 0:
            raise complaint(f"{gpu!r} is no GPU number or UUID", "as nvidia-smi -L prints them: 0, or GPU-1a2b...")
    if len(set(value)) != len(value):
        raise complaint("names a GPU twice", "keep each number once")
    return tuple(value)


def _address(value: str) -> str:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        raise complaint(f"{value!r} is no IP address", "use 127.0.0.1, or an address of the host") from None
    if address.is_unspecified or address.is_multicast:
        # The engine listens on loopback with the same port, which leaves no room for a socket on all addresses.
        raise complaint(f"{value} is no address of one host", "name the one under which clients reach it")
    return str(address)


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError:
        raise complaint(
            f"{value!r} is no network", "for example 192.168.1.0/24 or 192.168.1.20; 0.0.0.0/0 is everybody"
        ) from None


def _absolute(value: str) -> str:
    path = PurePosixPath(value)
    if not path.is_absolute() or ".." in path.parts or path == PurePosixPath("/"):
        raise complaint(f"{value!r} is no absolute path below /", "for example /srv/models")
    if any(path.is_relative_to(place) for place in ("/tmp", "/var/tmp")):
        raise complaint(
            f"{value!r} is not seen by our units, which have a /tmp of their own", "for example /srv/models"
        )
    # Docker splits `--mount` values at commas, systemd and fstab at white space.
    if not re.fullmatch(r"[A-Za-z0-9_./+@=-]+", value):
        raise complaint(
            f"{value!r} holds a character that mounts cannot carry", "use letters, digits and _ . / + @ = -"
        )
    return str(path)


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError as error:
        raise complaint(f"{value!r} is no URL: {error}", "for example https://mirror.example.org/cuda") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise complaint(f"{value!r} is no http or https URL", "for example https://mirror.example.org/cuda")
    if parts.username or parts.password:
        raise complaint("holds a user name or password, which would stand in logs", "remove it")
    if parts.query or parts.fragment or any(char.isspace() for char in value):
        raise complaint(f"{value!r} holds more than a host and a path", "for example https://mirror.example.org/cuda")
    return value.rstrip("/")


def _version(value: str) -> str:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+){1,3}", value):
        raise complaint(f"{value!r} is no version", 'for example "1.20.1", in quotes, without the part after a dash')
    return value


def _toolkit(value: Any) -> Any:
    # YAML reads a bare `off` as false, `--data cuda_toolkit=off` arrives as text.
    if value is None or value is False or value == "off":
        return None
    match = re.fullmatch(r"(\d+)[.-](\d+)", value) if isinstance(value, str) else None
    if not match:
        raise complaint(f"{value!r} is no CUDA toolkit", "write 13-2 (for the package cuda-toolkit-13-2), or off")
    return f"{match[1]}-{match[2]}"


def _branch(value: int) -> int:
    # 590 renamed the packages and 575 is the first branch that knows these cards; older ones are out of support.
    if not 580 <= value <= 999:
        raise complaint(
            f"{value} is no driver branch for these GPUs", "595 is on all three distributions; 580 is the oldest"
        )
    return value


def _plain_words(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.,:/=@+-]+", value):
        raise complaint(f"{value!r} is no single kernel argument", "one list entry for each, without quotes or spaces")
    return value


def _sysctl_key(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]+([./][A-Za-z0-9_*-]+)+", value):
        raise complaint(f"{value!r} is no sysctl", "for example vm.swappiness")
    return value


def _identifier(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", value):
        raise complaint(f"{value!r} is no module or option name", "letters, digits, _ and - only")
    return value


def _label(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,36}", value):
        raise complaint(f"{value!r} is no label", "letters, digits, _ . and -; `lsblk -o NAME,LABEL` lists them")
    return value


def _option(value: int | str) -> int | str:
    if isinstance(value, str) and not re.fullmatch(r"[^\s\"'\\#]+", value):
        raise complaint(
            f"{value!r} holds a character that modprobe.d cannot carry", "no spaces, quotes, # or backslashes"
        )
    return value


def _sysctl_value(value: int | str) -> int | str:
    if isinstance(value, str) and (not value.strip() or "\n" in value):
        raise complaint(f"{value!r} is no sysctl value", "one line of text, or a number")
    return value


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise complaint(f"{value!r} is no name", "lower case letters, digits and -, at most 32")
    return value


def _modprobe_options() -> dict[str, dict[str, int | str]]:
    return {"nvidia_uvm": {"uvm_disable_hmm": 1}}


def _sysctl() -> dict[str, int | str]:
    return {"kernel.numa_balancing": 0, "vm.swappiness": 1}


Gpus = Annotated[Literal["all"] | tuple[int | str, ...], BeforeValidator(_gpus)]
Address = Annotated[str, AfterValidator(_address)]
Network = Annotated[str, AfterValidator(_network)]
HostPath = Annotated[str, AfterValidator(_absolute)]
Url = Annotated[str, AfterValidator(_url)]
Version = Annotated[str, AfterValidator(_version)]
Name = Annotated[str, AfterValidator(_name)]
Port = Annotated[int, Strict(), Field(ge=1, le=65535)]
Seconds = Annotated[int, Strict(), Field(ge=10, le=86400)]
Scalar = Annotated[int, Strict()] | str
RecipeOrNeed = Annotated[Annotated[str, Field(min_length=1)] | Need, BeforeValidator(read_need)]


class Endpoint(BaseModel):
    """A named instance of a recipe on a host."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: RecipeOrNeed | None = Field(
        None, description="Recipe of this endpoint alone; without it the host's `recipe` holds."
    )
    gpus: Gpus = Field("all", description="`all`, or GPUs by number or UUID, as `nvidia-smi -L` prints them.")
    listen: Address = Field(
        "127.0.0.1",
        description="Address it answers on. Beyond loopback every request needs the endpoint's key (`rigup key`).",
    )
    port: Port = Field(8000, description="TCP port it listens on.")
    allowed_networks: tuple[Network, ...] = Field(
        (),
        description="Who may reach it beyond loopback, such as `[192.168.1.0/24]`; the firewall drops all others.",
    )

    @property
    def is_public(self) -> bool:
        """Whether it can be reached from beyond the host."""
        return not ipaddress.ip_address(self.listen).is_loopback

    @model_validator(mode="after")
    def _has_a_door(self) -> Endpoint:
        if self.is_public and not self.allowed_networks:
            raise complaint(
                f"{self.listen} is reachable from other hosts, and allowed_networks is not set",
                "allowed_networks: [192.168.1.0/24], or leave listen out and use "
                f"`ssh -L {self.port}:127.0.0.1:{self.port}`",
            )
        if self.allowed_networks and not self.is_public:
            raise complaint(
                f"allowed_networks has no meaning on {self.listen}", "set listen to one of the host's, or remove it"
            )
        family = ipaddress.ip_address(self.listen).version
        if other := [each for each in self.allowed_networks if ipaddress.ip_network(each).version != family]:
            raise complaint(f"{', '.join(other)}: nobody there can reach {self.listen}", f"use IPv{family} networks")
        return self


def _side_by_side(endpoints: dict[str, Endpoint]) -> dict[str, Endpoint]:
    """Each has its own port and GPUs. A GPU's number and its UUID only meet on the host: preflight looks there."""
    if not endpoints:
        raise complaint("endpoints is empty", "name one, for example `endpoints: {main: {}}`")
    ports: dict[int, str] = {}
    taken: dict[int | str, str] = {}
    for name, endpoint in endpoints.items():
        if (other := ports.setdefault(endpoint.port, name)) != name:
            raise complaint(f"endpoints {other} and {name} both listen on port {endpoint.port}", "change one")
        if endpoint.gpus == "all":
            if len(endpoints) > 1:
                raise complaint(f"endpoint {name} takes all GPUs beside others", "give each its own list of GPUs")
            continue
        for gpu in endpoint.gpus:
            if (other := taken.setdefault(gpu, name)) != name:
                raise complaint(f"endpoints {other} and {name} both take GPU {gpu}", "change one")
    return endpoints


class Waiver(BaseModel):
    """Why a finding of the audit is accepted, and until when."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: Annotated[str, Field(min_length=8)] = Field(description="Why, for whoever reads the audit.")
    until: date = Field(description="The last day on which it holds, such as 2027-01-31.")


class Connection(BaseModel):
    """How a host is reached. Only the inventory holds these; for one run, pyinfra's own `--data ssh_user=...` works."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: Annotated[str, Field(min_length=1)] = Field(description="Host name or IP address that ssh connects to.")
    port: Port = Field(22, description="Port of its sshd.")
    user: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*\$?$")] = Field(
        "root", description="User to log in as."
    )
    key: str | None = Field(None, description="Private key file; without it ssh's usual keys and agent.")
    known_hosts: str | None = Field(None, description="known_hosts file; without it `~/.ssh/known_hosts`.")
    sudo: Bool | None = Field(None, description="Use sudo, without password; by default where `user` is not root.")


class Settings(BaseModel):
    """What one host shall be. All keys may stand under `defaults`, under a host, or in `--data`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Keys of earlier versions: each is refused, and the error names its replacement.
    RENAMED: ClassVar[Mapping[str, str]] = {
        "at_a_time": "max_unavailable",
        "neighbours": "peers",
        "neighbour_port": "peer_port",
        "neighbour_address": "peer_address",
        "endpoints.*.networks": "allowed_networks",
        "endpoints.*.address": "listen",
    }

    recipe: RecipeOrNeed = Field(
        "vllm-nvfp4-cu130",
        description="How to serve: a name from `rigup recipes`, or a need such as `{for: agents, gpus: 4}`. "
        "The default has reliable tool calls.",
    )
    endpoints: Annotated[dict[Name, Endpoint], AfterValidator(_side_by_side)] = Field(
        default_factory=lambda: {"main": Endpoint()},  # type: ignore[call-arg]
        description="What serves on this host, by name: `{recipe, gpus, listen, port, allowed_networks}` each.",
    )

    driver_branch: Annotated[Int, AfterValidator(_branch)] = Field(
        595, description="NVIDIA driver branch. 595 is the lowest that Debian 12, 13 and Ubuntu 24.04 all have."
    )
    driver_version: Version | None = Field(
        None, description="One exact driver version of that branch, e.g. `595.71.05`."
    )
    cuda_toolkit: Annotated[str | None, BeforeValidator(_toolkit)] = Field(
        "13-2",
        description="CUDA toolkit on the host (nvcc for building); `off` for none, as containers bring their own.",
    )
    persistence: Bool = Field(True, description="Keep the driver loaded between jobs; Ubuntu's unit turns it off.")

    kernel_args: tuple[Annotated[str, AfterValidator(_plain_words)], ...] = Field(
        ("iommu=pt", "pcie_aspm=off", "pcie_port_pm=off"),
        description="Kernel arguments. A translating IOMMU hangs NCCL; link power saving drops GPUs off the bus.",
    )
    modprobe_options: dict[
        Annotated[str, AfterValidator(_identifier)],
        dict[Annotated[str, AfterValidator(_identifier)], Annotated[Scalar, AfterValidator(_option)]],
    ] = Field(
        default_factory=_modprobe_options,
        description="Module options. HMM breaks CUDA's start on many rigs with several GPUs.",
    )
    sysctl: dict[Annotated[str, AfterValidator(_sysctl_key)], Annotated[Scalar, AfterValidator(_sysctl_value)]] = Field(
        default_factory=_sysctl,
        description="Kernel settings; those a kernel lacks are passed over. Page migration and swap stall serving.",
    )

    docker_version: Version | None = Field(
        None, description="Docker's version; without it the newest, kept by the lock."
    )
    docker_log_driver: Literal["local", "json-file", "journald", "none"] = Field(
        "local", description="Docker's log driver; its own default, json-file, grows without bound."
    )
    container_toolkit_version: Version | None = Field(
        None, description="NVIDIA container toolkit's version, 1.20.1 or newer (older ones lose GPUs or leak the host)."
    )
    container_ulimits: dict[Annotated[str, Field(pattern="^[a-z]+$")], Annotated[int, Strict(), Field(ge=-1)]] = Field(
        default_factory=lambda: {"memlock": -1, "stack": 67108864},
        description="Limits in the container (bytes, -1 = none). NCCL pins memory and needs deep stacks.",
    )

    model_store: HostPath = Field("/srv/models", description="Where checkpoints lie, exactly as published.")
    model_disk: Annotated[str, AfterValidator(_label)] | None = Field(
        None, description="Label of a file system of its own that is mounted there; it survives a rebuilt host."
    )
    model_source: HostPath | None = Field(
        None,
        description="Directory on the host with the checkpoint, or a copy of a store: taken before any download.",
    )
    peers: Bool = Field(
        True, description="Take files from the inventory's other hosts, and serve them to these hosts alone."
    )
    peer_port: Port = Field(8730, description="TCP port on which the host serves its peers.")
    peer_address: Annotated[str, Field(pattern=r"^[A-Za-z0-9.:-]+$")] | None = Field(
        None, description="Address at which the other hosts reach this one; without it, that of ssh."
    )

    cuda_mirror: Url = Field(
        "https://developer.download.nvidia.com/compute/cuda/repos", description="Holds `debian13/x86_64/` and the like."
    )
    docker_mirror: Url = Field("https://download.docker.com/linux", description="Holds `debian/` and `ubuntu/`.")
    toolkit_mirror: Url = Field(
        "https://nvidia.github.io/libnvidia-container", description="Holds `gpgkey` and `stable/deb/amd64/`."
    )
    pypi_index: Url = Field("https://pypi.org/simple", description="Python package index for the downloader.")
    python_mirror: Url = Field(
        "https://github.com/astral-sh/python-build-standalone/releases/download",
        description="Pythons for engines without a container, where the host lacks the wanted one.",
    )
    hub_endpoint: Url = Field(
        "https://huggingface.co", description="Hugging Face hub, or a mirror that speaks its protocol."
    )
    hub_mirror: Url | None = Field(
        None,
        description="Mirror of the hub on the LAN, asked first, over plain HTTP; every file is verified. A host must "
        "reach it or the hub.",
    )
    registry_mirror: Url | None = Field(None, description="Mirror of Docker Hub; without it Docker Hub itself.")

    reboot: Literal["when-needed", "never"] = Field(
        "when-needed", description="`never` stops with an error where a reboot is needed."
    )
    reboot_timeout: Seconds = Field(
        1200, description="Seconds for a reboot; boxes with many GPUs take minutes to start."
    )
    ready_timeout: Seconds = Field(
        2700, description="Seconds until an endpoint answers; the first start compiles kernels."
    )
    max_unavailable: Annotated[int, Strict(), Field(ge=1, le=1000)] = Field(
        1, description="Hosts that may stop serving at a time in one run; the others serve on until it is their turn."
    )
    drain_timeout: Annotated[int, Strict(), Field(ge=0, le=86400)] = Field(
        300, description="Seconds that a rebuild waits for running requests before it stops an endpoint."
    )
    stall_timeout: Seconds = Field(
        900, description="Seconds without log line, disk read or change of GPU memory after which a start has stalled."
    )
    retry: Bool = Field(
        False, description="Try again what was tried on the host before and gave way: `--data retry=true`."
    )
    fetch_timeout: Annotated[int, Strict(), Field(ge=10)] = Field(
        86400, description="Seconds to wait for a checkpoint in one run; the download itself goes on."
    )

    daily_audit: Bool = Field(
        False, description="A timer has the host look at itself once a day, at what a deploy has left there."
    )
    waivers: dict[Name, Waiver] = Field(
        default_factory=dict,
        description="Findings of the audit that are accepted for a while, by the check's id: `{reason, until}` each.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if self.driver_version is not None and self.driver_version.split(".")[0] != str(self.driver_branch):
            raise complaint(
                f"driver_version {self.driver_version} is not of driver_branch {self.driver_branch}",
                f"set driver_branch to {self.driver_version.split('.')[0]}, or leave driver_version out",
            )
        # Below: CVE-2025-23266, and 1.19.0 could delete Docker's start job (nvidia-container-toolkit issue 1735).
        if self.container_toolkit_version and _numbers(self.container_toolkit_version) < (1, 20, 1):
            raise complaint(
                f"container_toolkit_version {self.container_toolkit_version} is too old", "use 1.20.1 or newer"
            )
        return self

    @classmethod
    def from_data(cls, data: Mapping[str, Any], host: str = "") -> Settings:
        """The settings in a pyinfra host's data (`host.data.dict()`), pyinfra's and the connector's keys left aside.

        Raises InputError with every wrong key at once. The inventory was checked when it was read, so what is wrong
        here came from `--data` or from a file under `group_data/`.
        """
        ours = {key: value for key, value in data.items() if not key.startswith(("ssh_", "_", "rigup_"))}
        try:
            return cls.model_validate(ours)
        except ValidationError as error:
            findings = []
            for details in error.errors():
                message, remedy = words(details, cls)
                key = dotted(details["loc"])
                if key in Connection.model_fields:
                    message = "says how to reach a host, which only the inventory can"
                    remedy = f"for one run use pyinfra's own, such as --data {PYINFRA_KEYS[key]}=..."
                where = f"{host}: --data or group_data" if host else "--data or group_data"
                findings.append(Finding(where, None, key, message, remedy))
            raise InputError(findings) from error


PYINFRA_KEYS = {
    "address": "ssh_hostname",
    "port": "ssh_port",
    "user": "ssh_user",
    "key": "ssh_key",
    "known_hosts": "ssh_known_hosts_file",
    "sudo": "_sudo",
}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def gpu_indices(
    gpus: Literal["all"] | tuple[int | str, ...], present: int, numbers: Mapping[str, int]
) -> tuple[int, ...]:
    """The GPU numbers meant on a host that has `present` of them; of UUIDs those that `numbers` knows."""
    if gpus == "all":
        return tuple(range(present))
    found = (numbers.get(gpu) if isinstance(gpu, str) else gpu for gpu in gpus)
    return tuple(number for number in found if number is not None)


def settings_table() -> str:
    """The README's table of all keys, in Markdown, made from the schema."""
    lines = ["| key | default | what it is |", "|---|---|---|"]
    for model, prefix in (
        (Connection, ""),
        (Settings, ""),
        (Endpoint, "endpoints.NAME."),
        (Waiver, "waivers.CHECK."),
    ):
        for name, info in model.model_fields.items():
            default = "(required)" if info.is_required() else f"`{_shown(info.get_default(call_default_factory=True))}`"
            text = (info.description or "").replace("|", "\\|")
            lines.append(f"| `{prefix}{name}` | {default} | {text} |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_shown(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, BaseModel):
        return _shown(value.model_dump(exclude_unset=True))
    return str(value)
