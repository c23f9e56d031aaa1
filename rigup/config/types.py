"""Types of single settings: each checks one value, and its error says how to write that value."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    Tag,
)
from pydantic_core import CoreSchema, core_schema

from rigup.config.mistakes import shown
from rigup.config.need import Need, name_or_need
from rigup.config.yaml_file import complaint

GPU_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
URL_EXAMPLE = "for example https://mirror.example.org/cuda"


@dataclass(frozen=True)
class Matching:
    """The validator of text that must match a pattern as a whole; a number is valid as it is."""

    pattern: str
    wrong: str
    remedy: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "pattern": f"^({self.pattern})$"}

    def check(self, value: int | str) -> int | str:
        if isinstance(value, str) and not re.fullmatch(self.pattern, value, re.ASCII):
            raise complaint(f"{value!r} {self.wrong}", self.remedy)
        return value


def _address(value: str) -> str:
    """Check the host name or IP address of a host, without the user and port that ssh's own addresses may have."""
    scheme, _, rest = value.rpartition("://")
    user, _, place = rest.rstrip("/").rpartition("@")
    # In brackets, before a port, or alone; an IPv6 address without brackets has several colons.
    match = re.fullmatch(r"\[(?P<six>.*)\](?::(?P<p>.*))?|(?P<name>[^:]*):(?P<port>[^:]*)", place)
    host = (match["six"] or match["name"] or "") if match else place
    port = (match["p"] or match["port"] or "") if match else ""
    if scheme or user or (match and host):
        lines = [f"address: {host}", *([f"user: {user}"] if user else []), *([f"port: {port}"] if port else [])]
        what = [name for name, is_there in (("a scheme", scheme), ("a user", user), ("a port", port)) if is_there]
        remedy = f"write {', '.join(f'`{line}`' for line in lines)}" + (", each on its own line" * (len(lines) > 1))
        raise complaint(f"{value!r} is an address with {' and '.join(what) or 'brackets around it'}", remedy)
    if re.fullmatch(r"[0-9]+(\.[0-9]+)+", value):
        _check_numbers(value, value.split("."))
    elif ":" in value:
        try:
            ipaddress.IPv6Address(value if "%" not in value else "")
        except ValueError:
            raise complaint(f"{value!r} is not an IPv6 address", "for example 2001:db8::11") from None
    elif not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", value):
        raise complaint(f"{value!r} is neither a host name nor an IP address", "for example rig1.lan or 192.0.2.11")
    return value


def _check_numbers(value: str, numbers: Sequence[str]) -> None:
    """Refuse what looks like an IPv4 address and is none: resolvers take it for a name, or for another address."""
    why = f"it has {len(numbers)} numbers, not 4" if len(numbers) != 4 else ""
    for number in numbers:
        if int(number) > 255:
            why = f"{number} is above 255"
        elif number != str(int(number)):
            why = f"{number} begins with a zero"
    if why:
        raise complaint(f"{value!r} is not an IP address: {why}", "for example 192.0.2.11")


def _day(value: Any) -> Any:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    try:
        return date.fromisoformat(value if re.fullmatch(r"\d{4}-\d\d-\d\d", value) else "")
    except (TypeError, ValueError):
        raise complaint(f"{shown(value)} is not a day", "write year-month-day, for example 2027-01-31") from None


def _gpus(value: Any) -> Any:
    if value == "all":
        return value
    if not isinstance(value, list | tuple) or not value:
        raise complaint(f"must be `all` or a list of GPU numbers, got {shown(value)}", "for example [0, 1, 2, 3]")
    for gpu in value:
        if isinstance(gpu, str) and GPU_UUID.fullmatch(gpu):
            continue
        if isinstance(gpu, bool) or not isinstance(gpu, int) or gpu < 0:
            raise complaint(
                f"{shown(gpu)} is not a GPU number or UUID", "as nvidia-smi -L prints them: 0, or GPU-1a2b..."
            )
    if len(set(value)) != len(value):
        raise complaint("lists a GPU twice", "list each GPU once")
    return tuple(value)


def _listen_address(value: str) -> str:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        raise complaint(f"{value!r} is not an IP address", "use 127.0.0.1, or an address of the host") from None
    if getattr(address, "scope_id", None):
        raise complaint(f"{value!r} has a zone", "use an address without %, which is valid on all interfaces")
    if address.is_unspecified or address.is_multicast:
        # The engine listens on loopback on the same port, so the gateway cannot bind that port on all addresses.
        kind = "wildcard" if address.is_unspecified else "multicast address"
        raise complaint(f"{value} must be a specific address, not a {kind}", "use the address that clients connect to")
    return str(address)


def _network(value: str) -> str:
    try:
        # Its own check of a zone lets through any text.
        return str(ipaddress.ip_network(value if "%" not in value else ""))
    except ValueError:
        remedy = "for example 192.168.1.0/24 or 192.168.1.20; 0.0.0.0/0 allows everyone"
        raise complaint(f"{value!r} is not a network", remedy) from None


def _host_path(value: str) -> str:
    path = PurePosixPath(value)
    if not path.is_absolute() or ".." in path.parts or path == PurePosixPath("/"):
        raise complaint(f"{value!r} is not an absolute path below /", "for example /srv/models")
    if any(path.is_relative_to(temporary) for temporary in ("/tmp", "/var/tmp")):
        raise complaint(
            f"{value!r} is invisible to rigup's units, which have a private /tmp", "for example /srv/models"
        )
    # Docker splits `--mount` values at commas, systemd and fstab at white space.
    if not re.fullmatch(r"[A-Za-z0-9_./+@=-]+", value):
        raise complaint(f"{value!r} contains a character that breaks mounts", "use letters, digits and _ . / + @ = -")
    return str(path)


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError as error:
        raise complaint(f"{value!r} is not a URL: {error}", URL_EXAMPLE) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise complaint(f"{value!r} is not an http or https URL", URL_EXAMPLE)
    if parts.username or parts.password:
        raise complaint("contains a user name or password, which would appear in logs", "remove it")
    # What apt's sources, shells, units and JSON all carry unchanged.
    if not re.fullmatch(r"https?://([A-Za-z0-9.:_/\[\]~@+,-]|%[0-9A-Fa-f]{2})+", value):
        raise complaint(f"{value!r} contains more than a host and a path", URL_EXAMPLE)
    return value.rstrip("/")


def _cuda_toolkit(value: Any) -> Any:
    # YAML reads a bare `off` as false; `--data cuda_toolkit=off` passes text.
    if value is None or value is False or value == "off":
        return None
    if isinstance(value, float):
        # 13.10 is the number 13.1, which is another toolkit.
        raise complaint("is a number, which does not keep its last zeros", "write 13-2, or off")
    match = re.fullmatch(r"([0-9]+)[.-]([0-9]+)", value) if isinstance(value, str) else None
    if not match:
        raise complaint(
            f"{shown(value)} is not a CUDA toolkit", "write 13-2 (for the package cuda-toolkit-13-2), or off"
        )
    return f"{match[1]}-{match[2]}"


def _driver_branch(value: int) -> int:
    # 575 is the first branch that supports these cards, and NVIDIA no longer supports those below 580.
    if not 580 <= value <= 999:
        raise complaint(
            f"{value} is not a driver branch for these GPUs",
            "leave driver_branch out for the default; 580 is the oldest",
        )
    return value


def _fingerprint(value: str) -> str:
    digits = value.replace(" ", "").upper()
    if not re.fullmatch(r"[0-9A-F]{40}([0-9A-F]{24})?", digits):
        raise complaint(f"{value!r} is not a key's fingerprint", "the 40 digits that `gpg --show-keys FILE` prints")
    return digits


def _line(value: str) -> str:
    if not value.isprintable():
        raise complaint(f"{value!r} contains a line break or a control character", "write one line of plain text")
    return value


def _gpu_power(value: Any) -> Any:
    if value is None:
        return {}
    limits = {"all": value} if isinstance(value, int) else value
    if isinstance(limits, list | tuple):
        limits = dict(enumerate(limits))
    if isinstance(value, bool) or not isinstance(limits, Mapping):
        raise complaint(f"{shown(value)} is not a power limit", "write watts, such as 450, or [450, 300] in GPU order")
    for gpu, watts in limits.items():
        if gpu != "all" and not GPU_UUID.fullmatch(str(gpu)) and not re.fullmatch(r"[0-9]{1,3}", str(gpu)):
            raise complaint(
                f"{gpu!r} is not a GPU's UUID", "write [450, 300] in GPU order, or the UUIDs of nvidia-smi -L"
            )
        # The lowest limit of any supported card, and more than any of them takes.
        if isinstance(watts, bool) or not isinstance(watts, int) or not 50 <= watts <= 1500:
            raise complaint(
                f"{shown(watts)} is not a power limit", "write whole watts within the card's range, such as 450"
            )
    return {str(gpu): watts for gpu, watts in limits.items()}


CudaVersion = Annotated[str, Field(pattern=r"^[0-9]+[.-][0-9]+$")]
# In pydantic's lax mode `true` is a number, and so is "8000"; whoever writes those means something else.
Int = Annotated[int, Strict()]
Bool = Annotated[bool, Strict()]
Port = Annotated[int, Strict(), Field(ge=1, le=65535)]
Seconds = Annotated[int, Strict(), Field(ge=10, le=86400)]

Address = Annotated[str, AfterValidator(_address)]
CudaToolkit = Annotated[
    str | None, BeforeValidator(_cuda_toolkit, json_schema_input_type=Literal["off", False] | CudaVersion | None)
]
Date = Annotated[date, BeforeValidator(_day)]
DriverBranch = Annotated[Int, AfterValidator(_driver_branch)]
Fingerprint = Annotated[str, AfterValidator(_fingerprint)]
GpuPower = Annotated[
    dict[str, int],
    BeforeValidator(_gpu_power, json_schema_input_type=int | list[int] | dict[str, int] | None),
]
Gpus = Annotated[Literal["all"] | tuple[int | str, ...], BeforeValidator(_gpus)]
HostName = Annotated[
    str, Matching("[A-Za-z0-9]([A-Za-z0-9.-]{0,62})?", "is not a host name", "use letters, digits, dots and -")
]
HostPath = Annotated[str, AfterValidator(_host_path)]
Limit = Annotated[str, Matching("[a-z]+", "is not a limit of Docker", "for example memlock or nofile")]
Identifier = Annotated[
    str, Matching(r"[A-Za-z0-9_-]+", "is not a module or option name", "use letters, digits, _ and -")
]
KernelArg = Annotated[
    str,
    Matching(
        r"[A-Za-z0-9_.,:/=@+-]+", "is not a single kernel argument", "one list entry each, without quotes or spaces"
    ),
]
Label = Annotated[
    str,
    Matching(
        r"[A-Za-z0-9_.-]{1,36}", "is not a label", "use letters, digits, _ . and -; `lsblk -o NAME,LABEL` lists them"
    ),
]
Line = Annotated[str, AfterValidator(_line)]
ListenAddress = Annotated[str, AfterValidator(_listen_address)]
ModuleOption = Annotated[
    Int | str,
    Matching(
        r"[A-Za-z0-9_.,:;/=@+-]+",
        "contains a character that breaks modprobe.d",
        "use letters, digits and _ . , : ; / = @ + -",
    ),
]
Name = Annotated[
    str,
    Matching(
        r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", "is not a valid name", "use at most 32 lower-case letters, digits and -"
    ),
]
Network = Annotated[str, AfterValidator(_network)]
RecipeOrNeed = Annotated[
    Annotated[str, Field(min_length=1), Tag("name")] | Annotated[Need, Tag("need")], Discriminator(name_or_need)
]
ServedName = Annotated[
    str,
    Matching("[A-Za-z0-9][A-Za-z0-9._/-]*", "is not a name to serve a model as", "use letters, digits and . _ / -"),
]
SysctlKey = Annotated[
    str, Matching(r"[a-z0-9_]+([./][A-Za-z0-9_*-]+)+", "is not a sysctl", "for example vm.swappiness")
]
SysctlValue = Annotated[
    Int | str,
    Matching(r"[!-~]+( [!-~]+)*", "is not a sysctl value", "use a number, or words with one space between them"),
]
Url = Annotated[str, AfterValidator(_url)]
User = Annotated[
    str,
    Matching(r"[A-Za-z_][A-Za-z0-9_.-]*\$?", "is not a user name", "use letters, digits, _ . and -, for example ops"),
]
Version = Annotated[
    str,
    Matching(
        r"[0-9]+(\.[0-9]+){1,3}", "is not a version", 'for example "1.20.1", quoted, without the part after a dash'
    ),
]
