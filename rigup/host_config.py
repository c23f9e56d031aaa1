"""What a host's own configuration says about proxies and Docker's directories: parsers without side effects."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from rigup.text import from_json

DAEMON_JSON = "/etc/docker/daemon.json"
CONTAINERD_TOML = "/etc/containerd/config.toml"

# Certificates as OpenSSL, requests and curl name them; grep -E on the host reads this too.
NAMES = "https?_proxy|no_proxy|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
VARIABLE = re.compile(rf"(?<!\w)({NAMES})=[\"']?([^\"'\s]*)", re.IGNORECASE)
OPTION = re.compile(r'Acquire::(https?)::Proxy(?:::(\S+))? "([^"]*)";', re.IGNORECASE)
# The parts of a shell's word, and a word that is assigned to a variable. A comment begins after a blank.
PART = r"""'[^']*'|"(?:\\.|[^"\\])*"|`[^`]*`|\$\([^)]*\)|\\.|[^\s'"`;&#\\]"""
PARTS = re.compile(f"{PART}|#", re.DOTALL)
ASSIGNMENT = re.compile(rf"^[ \t]*(?:export[ \t]+)?(\w+)=((?:{PART}|(?<=\S)#)*)", re.MULTILINE | re.DOTALL)

CLOSED = r"! -type l \( ! -perm -004 -o ! -perm -001 \( -type d -o -perm -100 \) \)"
"""find(1)'s expression for what other users than the owner cannot read, enter or execute as the owner can."""

DEEPEST = 99
"""More levels than a virtual environment has."""


@dataclass(frozen=True)
class Proxies:
    """The variables `http_proxy`, `https_proxy` and `no_proxy`, and those that name certificates, if they are set.

    `environment` is all that rigup takes from /etc/environment. `apt` is that, overridden by apt's own
    configuration. `docker` is from Docker's unit or its daemon.json.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    apt: Mapping[str, str] = field(default_factory=dict)
    docker: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the fields, for pyinfra's `fact` command."""
        return dict(vars(self))


NO_PROXIES = Proxies()


def place(url: str) -> tuple[str, int]:
    """Return the host and the port of a URL."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def variables(lines: Iterable[str]) -> dict[str, str]:
    """Return the proxies (names in lower case) and certificates in lines of /etc/environment, or in a unit's.

    `files/rigup_host/environment.py` reads them on the host; a unit test compares both.
    """
    found = (match for line in lines if not line.lstrip().startswith("#") for match in VARIABLE.finditer(line))
    return {
        match[1].lower() if match[1].lower().endswith("_proxy") else match[1].upper(): match[2]
        for match in found
        if match[2]
    }


def apt_variables(lines: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return apt's proxies as variables, from the lines of `apt-config dump Acquire`.

    https uses http's option if it has none. An option for one server counts only if it is DIRECT. Without an option,
    apt uses the environment.
    """
    options: dict[str, str] = {}
    direct: list[str] = []
    for match in filter(None, map(OPTION.match, lines)):
        scheme, server, value = match.groups()
        if server is None:
            options[scheme.lower()] = value
        elif value.upper() == "DIRECT":
            direct.append(server)
    found = dict(environment)
    for scheme, value in (("http", options.get("http")), ("https", options.get("https") or options.get("http"))):
        if value and value.upper() == "DIRECT":
            found.pop(f"{scheme}_proxy", None)
        elif value:
            found[f"{scheme}_proxy"] = value
    if direct:
        found["no_proxy"] = ",".join(filter(None, (found.get("no_proxy"), *direct)))
    return found


def proxy_for(url: str, names: Mapping[str, str]) -> str | None:
    """Return the proxy for a URL according to these variables; None for a direct connection."""
    host, _ = place(url)
    proxy = names.get(f"{urlsplit(url).scheme}_proxy")
    bypassed = any(_covers(entry.strip(), host) for entry in names.get("no_proxy", "").split(","))
    return None if bypassed else proxy


def _covers(entry: str, host: str) -> bool:
    """Return whether an entry of `no_proxy` (a domain, an address, a network, or `*`) matches a host."""
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        name = entry.lstrip("*").lstrip(".").partition(":")[0]
        return entry == "*" or (bool(name) and (host == name or host.endswith(f".{name}")))


def shell_variables(texts: Iterable[str], names: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables after a POSIX shell has read these texts, which only assign, one after the other.

    + names: the variables before; an unknown one is empty, and a command substitution stays as it is
    """
    found = dict(names or {})
    for text in texts:
        for match in ASSIGNMENT.finditer(text.replace("\\\n", "")):
            found[match[1]] = "".join(_value_of(part, found) for part in PARTS.findall(match[2]))
    return found


def _value_of(part: str, names: Mapping[str, str]) -> str:
    """Return the value of a part of a word: in single quotes, in double quotes, or in none."""
    if part.startswith("'"):
        return part[1:-1]
    inner = part[1:-1] if part.startswith('"') else part
    return re.sub(
        r"\\(.)|\$\{(\w+)\}|\$(\w+)",
        lambda match: match[1] if match[1] else names.get(match[2] or match[3], ""),
        inner,
    )


@dataclass(frozen=True)
class DockerStore:
    """Where Docker stores images: in `containerd`'s directory if Docker is recent, else in its own (`data`).

    `snapshotter` is daemon.json's `containerd-snapshotter`: True or False force one of the two, None is the default.
    """

    data: str = "/var/lib/docker"
    containerd: str = "/var/lib/containerd"
    snapshotter: bool | None = None


USUAL_STORE = DockerStore()

# The flags of dockerd whose key in daemon.json has another name (its `--help`, and cmd/dockerd/config.go).
_KEY_OF_FLAG = {
    "-D": "debug", "-G": "group", "-H": "hosts", "-g": "data-root", "-l": "log-level", "-p": "pidfile",
    "-s": "storage-driver", "--add-runtime": "runtimes", "--authorization-plugin": "authorization-plugins",
    "--default-ulimit": "default-ulimits", "--exec-opt": "exec-opts", "--feature": "features", "--graph": "data-root",
    "--host": "hosts", "--insecure-registry": "insecure-registries", "--label": "labels", "--log-opt": "log-opts",
    "--registry-mirror": "registry-mirrors", "--storage-opt": "storage-opts",
}  # fmt: skip
# As in Docker's own unit.
_USUAL_COMMAND = "/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock"


def dockerd_flags(texts: Mapping[str, str]) -> dict[str, str]:
    """Return the values of dockerd's flags by their key in daemon.json, from the texts of its unit by path.

    Of several units the last one counts. Without any, the flags are those of the unit that the packages bring.
    """
    units = [text for path, text in texts.items() if path.endswith(".service")]
    drop_ins = [
        texts[path] for path in sorted(texts, key=lambda path: path.rpartition("/")[2]) if path.endswith(".conf")
    ]
    command = _USUAL_COMMAND
    for text in (*units[-1:], *drop_ins):
        for line in re.findall(r"^[ \t]*ExecStart[ \t]*=(.*)", text.replace("\\\n", " "), re.MULTILINE):
            command = line.strip() or command
    words, found = command.split(), dict[str, str]()
    for word, following in pairwise((*words[1:], "")):
        flag, _, value = word.partition("=")
        if flag.startswith("-"):
            found[_KEY_OF_FLAG.get(flag, flag.lstrip("-"))] = value or ("" if following.startswith("-") else following)
    return found


def docker_store(daemon: str | None, containerd: str | None, flags: Mapping[str, str] | None = None) -> DockerStore:
    """Return where Docker stores images, from the text of daemon.json, containerd's config.toml, and dockerd's flags.

    A missing or malformed file counts as empty.
    """
    try:
        written = from_json(daemon or "{}")
        data, features = written.get("data-root"), written.get("features") or {}
        snapshotter = features.get("containerd-snapshotter")
    except (ValueError, AttributeError):
        data = snapshotter = None
    try:
        root = tomllib.loads(containerd or "").get("root")
    except (tomllib.TOMLDecodeError, RecursionError):
        root = None
    data = (flags or {}).get("data-root") or data
    return DockerStore(str(data or DockerStore.data), str(root or DockerStore.containerd), snapshotter)


LOG_KEYS = ("log-driver", "log-opts")
"""The keys of daemon.json that choose a log driver. Options without a driver are those of json-file."""


def log_driver(daemon: Mapping[str, Any], setting: str | None) -> str:
    """Return the log driver that a host must have, from its daemon.json and the setting `docker_log_driver`."""
    return setting or daemon.get(LOG_KEYS[0]) or ("json-file" if LOG_KEYS[1] in daemon else "local")


def daemon_variables(text: str | None) -> dict[str, str]:
    """Return the proxies in daemon.json by variable name; none if the file is missing or malformed."""
    try:
        written = from_json(text or "{}")["proxies"]
        return {name.replace("-", "_"): str(value) for name, value in written.items() if value}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
