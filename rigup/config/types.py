"""Types of single settings: each checks one value, and its error says how to write that value."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, Strict

from rigup.config.need import Need, read_need
from rigup.config.yaml_file import complaint

GPU_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
URL_EXAMPLE = "for example https://mirror.example.org/cuda"


def matching(pattern: str, wrong: str, remedy: str) -> AfterValidator:
    """Return the validator of text that must match `pattern` as a whole; a number is valid as it is."""

    def check(value: int | str) -> int | str:
        if isinstance(value, str) and not re.fullmatch(pattern, value, re.ASCII):
            raise complaint(f"{value!r} {wrong}", remedy)
        return value

    return AfterValidator(check)


def _gpus(value: Any) -> Any:
    if value == "all":
        return value
    if not isinstance(value, list | tuple) or not value:
        raise complaint(f"must be `all` or a list of GPU numbers, got {value!r}", "for example [0, 1, 2, 3]")
    for gpu in value:
        if isinstance(gpu, str) and GPU_UUID.fullmatch(gpu):
            continue
        if isinstance(gpu, bool) or not isinstance(gpu, int) or gpu < 0:
            raise complaint(f"{gpu!r} is not a GPU number or UUID", "as nvidia-smi -L prints them: 0, or GPU-1a2b...")
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
    match = re.fullmatch(r"([0-9]+)[.-]([0-9]+)", value) if isinstance(value, str) else None
    if not match:
        raise complaint(f"{value!r} is not a CUDA toolkit", "write 13-2 (for the package cuda-toolkit-13-2), or off")
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
    if isinstance(value, bool) or not isinstance(limits, Mapping):
        raise complaint(f"{value!r} is not a power limit", "write watts, such as 450, or {0: 450, 1: 300} by GPU")
    for gpu, watts in limits.items():
        if gpu != "all" and not GPU_UUID.fullmatch(str(gpu)) and not re.fullmatch(r"[0-9]{1,3}", str(gpu)):
            raise complaint(
                f"{gpu!r} is not a GPU number or UUID", "for example {0: 450, 1: 300}; nvidia-smi -L has them"
            )
        # The lowest limit of any supported card, and more than any of them takes.
        if isinstance(watts, bool) or not isinstance(watts, int) or not 50 <= watts <= 1500:
            raise complaint(f"{watts!r} is not a power limit", "write whole watts within the card's range, such as 450")
    return {str(gpu): watts for gpu, watts in limits.items()}


# In pydantic's lax mode `true` is a number, and so is "8000"; whoever writes those means something else.
Int = Annotated[int, Strict()]
Bool = Annotated[bool, Strict()]
Port = Annotated[int, Strict(), Field(ge=1, le=65535)]
Seconds = Annotated[int, Strict(), Field(ge=10, le=86400)]

Address = Annotated[
    str,
    matching(
        r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*",
        "is neither a host name nor an IP address",
        "for example rig1.lan or 192.0.2.11",
    ),
]
CudaToolkit = Annotated[str | None, BeforeValidator(_cuda_toolkit)]
DriverBranch = Annotated[Int, AfterValidator(_driver_branch)]
Fingerprint = Annotated[str, AfterValidator(_fingerprint)]
GpuPower = Annotated[dict[str, int], BeforeValidator(_gpu_power)]
Gpus = Annotated[Literal["all"] | tuple[int | str, ...], BeforeValidator(_gpus)]
HostPath = Annotated[str, AfterValidator(_host_path)]
Identifier = Annotated[
    str, matching(r"[A-Za-z0-9_-]+", "is not a module or option name", "use letters, digits, _ and -")
]
KernelArg = Annotated[
    str,
    matching(
        r"[A-Za-z0-9_.,:/=@+-]+", "is not a single kernel argument", "one list entry each, without quotes or spaces"
    ),
]
Label = Annotated[
    str,
    matching(
        r"[A-Za-z0-9_.-]{1,36}", "is not a label", "use letters, digits, _ . and -; `lsblk -o NAME,LABEL` lists them"
    ),
]
Line = Annotated[str, AfterValidator(_line)]
ListenAddress = Annotated[str, AfterValidator(_listen_address)]
ModuleOption = Annotated[
    Int | str,
    matching(
        r"[A-Za-z0-9_.,:;/=@+-]+",
        "contains a character that breaks modprobe.d",
        "use letters, digits and _ . , : ; / = @ + -",
    ),
]
Name = Annotated[
    str,
    matching(
        r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", "is not a valid name", "use at most 32 lower-case letters, digits and -"
    ),
]
Network = Annotated[str, AfterValidator(_network)]
RecipeOrNeed = Annotated[Annotated[str, Field(min_length=1)] | Need, BeforeValidator(read_need)]
SysctlKey = Annotated[
    str, matching(r"[a-z0-9_]+([./][A-Za-z0-9_*-]+)+", "is not a sysctl", "for example vm.swappiness")
]
SysctlValue = Annotated[
    Int | str,
    matching(r"[!-~]+( [!-~]+)*", "is not a sysctl value", "use a number, or words with one space between them"),
]
Url = Annotated[str, AfterValidator(_url)]
Version = Annotated[
    str,
    matching(
        r"[0-9]+(\.[0-9]+){1,3}", "is not a version", 'for example "1.20.1", quoted, without the part after a dash'
    ),
]
