"""How ssh reaches a host: what the inventory says, else ssh's own configuration, else the defaults.

`ssh -G` evaluates the configuration, so that `Host`, `Match`, `Include` and patterns mean what they mean to ssh.
"""

from __future__ import annotations

import os
import pwd
import re
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from rigup.config.inventory import Host, Inventory
from rigup.ssh.transport import CONNECT_S, NoConnection, words

DEFAULT_USER = "root"
SYSTEM_CONFIG = "/etc/ssh/ssh_config"

_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
_TOKEN = re.compile(r"%(.)|\$\{(\w+)\}")


@dataclass(frozen=True)
class Login:
    """How to connect to a host and log in.

    `known_as` is its name in the `known_hosts` files, the first of which gets new keys. `is_strict` refuses unknown
    keys. `agent` is the socket of the ssh agent. With `only_keys`, no other keys of the agent are offered. `proxy` is a
    command that connects its standard streams to the host. `command` is how a person logs in. `places` says where the
    inventory has `address`, `key` and so on, such as `lab.yaml:7`.
    """

    name: str
    address: str
    port: int
    user: str
    known_as: str
    known_hosts: tuple[Path, ...]
    is_strict: bool
    keys: tuple[Path, ...]
    certificates: tuple[Path, ...]
    only_keys: bool
    agent: str | None
    proxy: tuple[str, ...]
    family: int
    command: tuple[str, ...]
    places: Mapping[str, str] = field(default_factory=dict)

    def key_of(self, name: str) -> str:
        """Return a key of the inventory with the place where it is written, for remedies."""
        return f"`{name}` in {self.places.get(name, 'the inventory')}"

    @property
    def place(self) -> str:
        """What it connects to, for messages."""
        return f"{self.user}@{self.address}, port {self.port}"


def login_of(host: Host) -> Login:
    """Return how to reach a host of the inventory. Raises NoConnection if ssh's configuration cannot be read."""
    written = host.connection
    login = _login(host.name, written.address, written.port, written.user, written.key, written.known_hosts)
    return replace(login, places=host.places)


def login_of_data(name: str, data: Any) -> Login:
    """Return how to reach a host from pyinfra's data of it. Raises NoConnection."""
    port = data.get("ssh_port")
    key, known_hosts = data.get("ssh_key"), data.get("ssh_known_hosts_file")
    address = str(data.get("ssh_hostname") or name)
    login = _login(name, address, int(port) if port else None, data.get("ssh_user"), key, known_hosts)
    return replace(login, places=data.get("rigup_places") or {})


def uses_sudo(host: Host) -> bool:
    """Return whether operations on a host use sudo. Raises NoConnection."""
    return login_of(host).user != "root" if host.connection.sudo is None else host.connection.sudo


def pyinfra_hosts(inventory: Inventory, connector: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the hosts for pyinfra's inventory. Raises RigupError.

    pyinfra's own connector also gets the user and port that it would not find.
    """
    found = []
    for (target, data), host in zip(inventory.pyinfra_hosts(connector), inventory.hosts.values(), strict=True):
        login = login_of(host)
        more = {"ssh_port": login.port, "ssh_user": login.user} if connector == "ssh" else {}
        found.append((target, data | more | {"_sudo": uses_sudo(host)}))
    return found


@cache
def _login(
    name: str, address: str, port: int | None, user: str | None, key: str | None, known_hosts: str | None
) -> Login:
    options = (*(("-p", str(port)) if port else ()), *(("-l", user) if user else ()))
    own_known = Path.home() / ".ssh/known_hosts"
    said = _ask_ssh(address, options, own_known)

    def one(keyword: str) -> str:
        return said.get(keyword, [""])[0]

    def expanded(text: str) -> str:
        """Return a value with ssh's tokens and variables replaced (ssh_config(5), TOKENS)."""
        tokens = {
            "%": "%", "d": str(Path.home()), "h": one("hostname"), "i": str(os.getuid()), "n": address,
            "k": one("hostkeyalias") or address, "l": socket.gethostname(), "L": socket.gethostname().partition(".")[0],
            "p": one("port"), "r": one("user"), "u": pwd.getpwuid(os.getuid()).pw_name,
        }  # fmt: skip
        return _TOKEN.sub(
            lambda m: tokens.get(m[1], m[0]) if m[1] else os.environ.get(m[2], ""), os.path.expanduser(text)
        )

    known = [str(own_known)] if one("userknownhostsfile") == str(own_known) else one("userknownhostsfile").split()
    if known_hosts:
        known = [known_hosts]
    keys = [key] if key else said.get("identityfile", [])
    resolved = one("hostname").lower()
    name_with_port = resolved if one("port") == "22" else f"[{resolved}]:{one('port')}"
    return Login(
        name=name,
        address=one("hostname"),
        port=int(one("port")),
        user=one("user"),
        known_as=one("hostkeyalias") or name_with_port,
        known_hosts=tuple(Path(expanded(each)) for each in (*known, *one("globalknownhostsfile").split())),
        is_strict=one("stricthostkeychecking") in ("true", "yes"),
        keys=tuple(Path(expanded(each)) for each in keys if each != "none"),
        certificates=() if key else tuple(Path(expanded(each)) for each in said.get("certificatefile", [])),
        only_keys=bool(key) or one("identitiesonly") == "yes",
        agent=_agent(one("identityagent"), expanded),
        proxy=_proxy(one("proxycommand"), one("proxyjump"), one("hostname"), one("port"), expanded),
        family=_FAMILIES.get(one("addressfamily"), socket.AF_UNSPEC),
        command=(
            "ssh",
            *(("-i", key) if key else ()),
            *(("-o", f"UserKnownHostsFile={known_hosts}") if known_hosts else ()),
            *(("-p", str(port)) if port else ()),
            f"{one('user')}@{address}",
        ),
    )


def _ask_ssh(address: str, options: tuple[str, ...], own_known: Path) -> Mapping[str, list[str]]:
    """Return the values of each keyword that ssh would use, in lower case. Raises NoConnection."""
    # ssh takes the first value that it finds, and would say its own default for the user, not rigup's.
    own = Path.home() / ".ssh/config"
    text = f'Include "{own}"\nInclude {SYSTEM_CONFIG}\nHost *\nUser {DEFAULT_USER}\nUserKnownHostsFile "{own_known}"\n'
    with tempfile.NamedTemporaryFile("w", prefix="rigup-ssh-config-") as config:
        config.write(text)
        config.flush()
        argv = ["ssh", "-G", "-T", "-F", config.name, *options, "--", address]
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=CONNECT_S
            )
        except FileNotFoundError:
            raise NoConnection("ssh is not installed on this machine", "install openssh-client") from None
        except subprocess.TimeoutExpired:
            raise NoConnection(f"`ssh -G {address}` did not end within {CONNECT_S} s", f"see what {own} runs") from None
    if done.returncode:
        raise NoConnection(f"ssh refuses its configuration: {words(done.stderr)}", f"correct it: {own}")
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        found.setdefault(keyword, []).append(value)
    return found


def _agent(configured: str, expanded: Callable[[str], str]) -> str | None:
    """Return the socket of the agent: `IdentityAgent`, else `SSH_AUTH_SOCK`; None for no agent."""
    if configured == "none":
        return None
    if configured in ("", "SSH_AUTH_SOCK"):
        return os.environ.get("SSH_AUTH_SOCK") or None
    return os.environ.get(configured[1:]) if re.fullmatch(r"\$\w+", configured) else expanded(configured)


def _proxy(command: str, jump: str, address: str, port: str, expanded: Callable[[str], str]) -> tuple[str, ...]:
    """Return the command that connects to the host; none for a direct connection. A jump is a command, as in ssh."""
    if command and command != "none":
        return ("/bin/sh", "-c", f"exec {expanded(command)}")
    if not jump or jump == "none":
        return ()
    *first, last = jump.split(",")
    through = ("-J", ",".join(first)) if first else ()
    target = f"[{address}]:{port}"
    return ("ssh", "-o", "BatchMode=yes", *through, "-W", target, "--", last if "://" in last else f"ssh://{last}")
