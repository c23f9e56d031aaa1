"""Paths and unit names on a host, each named once. Imports nothing of rigup.

`files/rigup_host/paths.py` repeats those that host programs use themselves: `rigup` is not installed on hosts.
"""

from __future__ import annotations

# Directories of rigup's own

CONFIG = "/etc/rigup"
LIBRARY = "/usr/local/lib/rigup"
STATE = "/var/lib/rigup"
RUNTIME = "/run/rigup"
CACHES = "/var/cache/rigup"
UV_CACHE = "/var/cache/rigup-uv"
FETCH_HOME = "/var/lib/rigup-fetch"
FETCH_RUNTIME = "/run/rigup-fetch"
PEERS_RUNTIME = "/run/rigup-peers"
ENGINES_RUNTIME = "/run/rigup-engines"
DRAINING = "/run/rigup-draining"
"""Has a file for each endpoint that takes no new requests from load balancers."""

# Configuration

PLAN = f"{CONFIG}/plan.json"
ENDPOINTS = f"{CONFIG}/endpoints"
HARDWARE = f"{CONFIG}/hardware.json"
"""Power limits and PCIe settings that a boot loses."""
GATEWAYS = f"{CONFIG}/gateways"
BALANCER = f"{CONFIG}/load-balancer"
"""On a host of the load balancer: its keys."""
BALANCER_KEY = f"{BALANCER}/key"
"""The key that the load balancer of this host shows to gateways, as HAProxy's map reads it."""
BALANCER_CLIENTS = f"{BALANCER}/clients"
"""The SHA-256 of each key for clients, and its name, as HAProxy's map reads it."""
BALANCERS = f"{CONFIG}/load-balancers"
"""The load balancers that gateways admit: the address of each, and the SHA-256 of its key."""
BALANCERS_CONFIG = f"{CONFIG}/load-balancers.json"
"""Where the load balancers are, for the switch, which drains the host before it stops an endpoint."""
FETCH_REQUESTS = f"{CONFIG}/models"
HUB_TOKEN = f"{CONFIG}/hub-token"
FIREWALL = f"{CONFIG}/gateways.nft"
"""Loads the rules of all gateways."""
RSYNCD_CONFIG = f"{CONFIG}/rsyncd.conf"

# Files of others

ENVIRONMENT = "/etc/environment"
"""Where a host has its proxies and certificates; rigup uses nothing else in it."""

# Drop-ins for programs of others

APT_LOCK_CONFIG = "/etc/apt/apt.conf.d/10rigup-lock-timeout"
APT_CUDA_PREFERENCES = "/etc/apt/preferences.d/cuda-repository-pin-600"
APT_UPGRADES_CONFIG = "/etc/apt/apt.conf.d/52rigup-unattended-upgrades"
NEEDRESTART_CONFIG = "/etc/needrestart/conf.d/rigup.conf"
SYSCTL_CONFIG = "/etc/sysctl.d/60-rigup.conf"
MODPROBE_CONFIG = "/etc/modprobe.d/rigup.conf"
GRUB_CONFIG = "/etc/default/grub.d/60-rigup.cfg"
CUDA_PROFILE = "/etc/profile.d/rigup-cuda.sh"

# Programs

HOST_VERSIONS = f"{LIBRARY}/host"
"""Has a directory for each version of the host programs; the name begins with a digest of its content."""
HOST_CURRENT = f"{HOST_VERSIONS}/current"
"""A link to the version in use."""
HOST_PROGRAM = f"{HOST_CURRENT}/rigup-host"
CHECK_ARGS = f"{HOST_CURRENT}/check_args.py"
CHECK_CARDS = f"{HOST_CURRENT}/check_cards.py"
FATAL_LINES = f"{LIBRARY}/fatal.json"
"""Log lines after which no start succeeds, for the readiness check."""
CLIENT = f"{LIBRARY}/client"
"""The virtual environment of the smoke test."""
CLIENT_REQUIREMENTS = f"{CLIENT}-requirements.lock"
GATEWAY_LUA = f"{LIBRARY}/gateway.lua"
BALANCER_LUA = f"{LIBRARY}/balancer.lua"
FETCH_VENV = f"{LIBRARY}/venv"
FETCH_REQUIREMENTS = f"{LIBRARY}/fetch-requirements.lock"
ENGINES = f"{LIBRARY}/engines"
UV = f"{LIBRARY}/uv"
PYTHONS = f"{LIBRARY}/python"
DOCKER = "/usr/bin/docker"

# State

LEDGER = f"{STATE}/ledger"
BEFORE = f"{STATE}/before"
"""What was at a path before rigup's first write to it, under the same path."""
SAVED = "/var/backups/rigup"
"""Files that were changed by hand and that a rebuild has removed, under the same path."""
SWITCHES = f"{STATE}/switch.json"
COMMIT = f"{STATE}/commit.json"
"""What a switch has decided and not yet completed."""
DAILY_AUDIT = f"{STATE}/daily-audit.json"
CHECKED_ARGUMENTS = f"{RUNTIME}/checked-arguments"
RUN_LOCK = f"{RUNTIME}/run-lock"
RUN_LOCK_COPY = f"{STATE}/run-lock"
"""Exists only while a run reboots the host."""

# Units: of the system; of endpoints, in force and on trial. /etc would take precedence over /run.

SYSTEM_UNITS = "/etc/systemd/system"
BOOT_UNITS = f"{SYSTEM_UNITS}/multi-user.target.wants"
UNITS = "/usr/local/lib/systemd/system"
TRIAL_UNITS = "/run/systemd/system"

FETCH_UNIT = "model-fetch@"
"""How the names of download units begin."""
FETCH_TEMPLATE = f"{SYSTEM_UNITS}/{FETCH_UNIT}.service"
FETCH_STORE_DROP_IN = f"{FETCH_TEMPLATE}.d/store.conf"
GATEWAY_TEMPLATE = f"{SYSTEM_UNITS}/rigup-gateway@.service"
NFTABLES_UNIT = "nftables.service"
NFTABLES_DROP_IN = f"{SYSTEM_UNITS}/{NFTABLES_UNIT}.d/rigup.conf"
PEERS_UNIT = "rigup-peers.service"
PEERS_DROP_IN = f"{SYSTEM_UNITS}/{PEERS_UNIT}.d/allow.conf"
COMMIT_UNIT = "rigup-commit.service"
AUDIT_UNIT = "rigup-audit.service"
HARDWARE_UNIT = "rigup-hardware.service"
AUDIT_TIMER = "rigup-audit.timer"
APT_UNIT = "rigup-apt.service"
SWITCH_UNIT = "rigup-switch.service"
"""Transient units in which a deploy runs apt and switches endpoints."""
DOCKER_UNIT = "docker.service"
CDI_UNIT = "nvidia-cdi-refresh.service"
"""Writes the list of GPUs for containers, at boot."""
PERSISTENCED_UNIT = "nvidia-persistenced.service"
PERSISTENCED_DROP_IN = f"{SYSTEM_UNITS}/{PERSISTENCED_UNIT}.d/rigup.conf"
DOCKER_DROP_INS = f"{SYSTEM_UNITS}/{DOCKER_UNIT}.d"

# Inside a container

MODEL = "/model"
DRAFTER = "/drafter"
"""The checkpoint of a drafter, if it has one of its own."""
FILES_MOUNT = "/rigup"
"""Where files are mounted that the checkpoint may lack: its directory is read-only, so nothing can be added to it."""
KEY_MOUNT = "/run/rigup"


def key_file(endpoint: str) -> str:
    """Return the file with the API key of an endpoint."""
    return f"{ENDPOINTS}/{endpoint}/key"


def client_key_file(key: str) -> str:
    """Return the file with a key of the load balancer for clients, on the first host of the load balancer."""
    return f"{BALANCER}/keys/{key}"


def draining(endpoint: str) -> str:
    """Return the file that exists while an endpoint takes no new requests from load balancers."""
    return f"{DRAINING}/{endpoint}"


def engine_listener(endpoint: str) -> str:
    """Return the file in which the readiness check records the engine's sockets; its unit's end removes it."""
    return f"{ENGINES_RUNTIME}/{endpoint}/listener"


def endpoint_unit(endpoint: str) -> str:
    """Return the unit that serves an endpoint."""
    return f"llm@{endpoint}.service"


def fetch_request(instance: str) -> str:
    """Return the file with the request to download the checkpoint of this instance."""
    return f"{FETCH_REQUESTS}/{instance}.json"


def fetch_progress(instance: str) -> str:
    """Return the file in which the download of this instance reports its progress."""
    return f"{FETCH_RUNTIME}/{instance}/progress.json"


def verification_of(name: str) -> str:
    """Return the file with the record of a verification. It is in /run, so that a boot removes it."""
    return f"{RUNTIME}/verify-{name}.json"


def cards_record(endpoint: str) -> str:
    """Return the file with the record of what an endpoint's GPUs can do. It outlives a boot, for comparison."""
    return f"{STATE}/cards-{endpoint}.json"


def fetch_unit(instance: str) -> str:
    """Return the unit that downloads the checkpoint of this instance."""
    return f"{FETCH_UNIT}{instance}.service"


def gateway_unit(endpoint: str) -> str:
    """Return the unit of the gateway of an endpoint."""
    return f"rigup-gateway@{endpoint}.service"


def pull_unit(reference: str) -> str:
    """Return the unit that pulls the image `REPOSITORY@sha256:...`."""
    return f"rigup-pull-{reference.rpartition(':')[2][:12]}.service"


def engine_unit(path: str) -> str:
    """Return the unit that fills the virtual environment of an engine."""
    return f"rigup-engine-{path.rpartition('/')[2]}.service"


def instance_of(repo: str, revision: str) -> str:
    """Return the name of a checkpoint for units and files: without slashes, and different for every commit."""
    return f"{repo.replace('/', '--')}--{revision[:12]}"
