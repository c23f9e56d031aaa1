"""Render an endpoint as a systemd unit and an environment file, and rigup's own units from their templates. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from rigup.errors import RigupError
from rigup.paths import DOCKER, FATAL_LINES, HOST_PROGRAM, engine_listener
from rigup.plan.model import EndpointPlan, Mount
from rigup.render.docker import docker_argv
from rigup.render.peers import connections_for
from rigup.templates import Lines, filled

STOP_SECONDS = 60
# The user that engines without a container run as.
USER = "rigup-serve"
ESCAPED = r"\\\g<0>"
SPECIAL_TO_SHELLS = re.compile(r'["\\`$]')

# Characters that need no quotes and have no special meaning to systemd anywhere in a word.
PLAIN = re.compile(r"[A-Za-z0-9_./:=@,+-]+")


def served_argv(endpoint: EndpointPlan) -> list[str]:
    """Return the command that serves an endpoint, in the foreground."""
    return list(endpoint.argv) if endpoint.venv else docker_argv(endpoint)


def inputs_of(endpoint: EndpointPlan) -> list[str]:
    """Return the files of its generation that an endpoint's process reads at its start."""
    return [endpoint.env_file, *(f"{endpoint.directory}/{name}" for name in endpoint.patched_files)]


def wait_argv(endpoint: EndpointPlan) -> list[str]:
    """Return the command that succeeds once the endpoint answers, and fails once it no longer can."""
    return [
        HOST_PROGRAM,
        "wait-ready",
        f"--url={endpoint.url}",
        f"--health={endpoint.ready_path}",
        f"--model={endpoint.served_name}",
        *([f"--log={PurePath(endpoint.argv[0]).name}"] if endpoint.venv else [f"--container={endpoint.container}"]),
        f"--timeout={endpoint.ready_timeout}",
        f"--stall={endpoint.stall_timeout}",
        f"--gpus={'all' if endpoint.gpus == 'all' else ','.join(map(str, endpoint.gpus))}",
        f"--listener={engine_listener(endpoint.name)}",
        f"--fatal={FATAL_LINES}",
    ]


def start_seconds(endpoint: EndpointPlan) -> int:
    """Return how long systemd waits for a start: a little longer than the readiness check."""
    return endpoint.ready_timeout + 60


def binds(mounts: Iterable[Mount]) -> list[str]:
    """Return the values of BindReadOnlyPaths= for these mounts."""
    return [systemd_quote(f"{mount.source}:{mount.target}") for mount in mounts]


def systemd_quote(argument: str) -> str:
    """Return one argument of an Exec line, quoted so that the program receives exactly `argument`.

    systemd.syntax(7): in double quotes a backslash starts a C escape. systemd.service(5): `%` is a specifier and `$` a
    variable unless doubled, even in quotes, and a lone `;` starts another command unless quoted. A line break would end
    the setting, so it is escaped, like all control characters. Raises ValueError for NUL, which no argument can
    contain.
    """
    if "\0" in argument:
        raise ValueError("an argument cannot contain a NUL character")
    # Unit files must be UTF-8.
    argument.encode("utf-8")
    if PLAIN.fullmatch(argument):
        return argument
    quoted = argument.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$").replace("%", "%%")
    quoted = re.sub(r"[\x01-\x1f\x7f]", lambda match: f"\\x{ord(match[0]):02x}", quoted)
    return f'"{quoted}"'


def systemd_command(argv: Iterable[str]) -> str:
    """Return a command for an Exec line. Raises ValueError unless its first word is an absolute path."""
    words = list(argv)
    # Some other first characters are prefixes with a meaning (- @ : + !).
    if not words or not words[0].startswith("/"):
        raise ValueError("the program must be an absolute path")
    return " ".join(systemd_quote(word) for word in words)


def _broken(argv: list[str]) -> str:
    """Return a command with one argument per line, so that a diff of the unit shows what changed."""
    return systemd_command(argv[:2]) + "".join(f" \\\n  {systemd_quote(word)}" for word in argv[2:])


def unit_text(endpoint: EndpointPlan) -> str:
    """Return the text of `llm@NAME.service`."""
    return filled(
        "llm.service.j2",
        endpoint=endpoint,
        start_seconds=start_seconds(endpoint),
        user=USER,
        # The checkpoints, in case they are in a home directory, which the unit hides; patched files over them.
        binds=[*(systemd_quote(each.path) for each in endpoint.checkpoints), *binds(endpoint.mounts)],
        limits={f"Limit{name.upper()}": "infinity" if value < 0 else value for name, value in endpoint.ulimits.items()},
        remove=systemd_command([DOCKER, "rm", "--force", endpoint.container]),
        run=Lines(_broken(served_argv(endpoint))),
        wait=Lines(_broken(wait_argv(endpoint))),
        stop=systemd_command([DOCKER, "stop", "-t", str(STOP_SECONDS), endpoint.container]),
    )


def mount_text(store: str, label: str) -> str:
    """Return the mount unit of the store's own disk.

    The host boots without the disk, too; only units that need the store wait for it.
    """
    return filled("store.mount.j2", store=store, label=label)


def fetch_unit_text() -> str:
    """Return the template unit that downloads a checkpoint."""
    return filled("model-fetch@.service.j2")


def fetch_store_text(store: str) -> str:
    """Return the drop-in that lets downloads wait for the store's own disk."""
    return filled("model-fetch-store.conf.j2", store=store)


def peers_unit_text() -> str:
    """Return the unit that serves verified checkpoints to the peers."""
    return filled("rigup-peers.service.j2")


def peers_allow_text(allowed: Sequence[str]) -> str:
    """Return the drop-in that lets packets from these IP addresses through to the peers' unit."""
    return filled("rigup-peers-allow.conf.j2", allowed=allowed, connections=connections_for(allowed))


def persistence_text(persistence: bool) -> str:
    """Return the drop-in that sets the persistence mode of the GPUs."""
    return filled("nvidia-persistenced.conf.j2", mode="--persistence-mode" if persistence else "--no-persistence-mode")


def commit_unit_text() -> str:
    """Return the unit that completes an interrupted switch at boot."""
    return filled("rigup-commit.service.j2")


def gateway_unit_text() -> str:
    """Return the template unit of a gateway."""
    return filled("rigup-gateway@.service.j2")


def nftables_text() -> str:
    """Return the drop-in with which nftables loads the rules of gateways after it has flushed all rules."""
    return filled("nftables.conf.j2")


def hardware_unit_text() -> str:
    """Return the text of the unit that sets what a boot or a reloaded driver forgets."""
    return filled("rigup-hardware.service.j2")


def audit_service_text() -> str:
    """Return the unit of the daily audit."""
    return filled("rigup-audit.service.j2")


def audit_timer_text() -> str:
    """Return the timer of the daily audit."""
    return filled("rigup-audit.timer.j2")


def env_file_text(endpoint: EndpointPlan) -> str:
    """Return the environment file, in the format of its reader.

    docker's --env-file: KEY=VALUE up to the end of the line, without quotes or escapes. systemd's EnvironmentFile: the
    value in double quotes, with a backslash before characters that are special to shells. Raises RigupError for a value
    with a line break, which docker's format does not allow.
    """
    for key, value in endpoint.env.items():
        if "\n" in value or "\r" in value or "\0" in value:
            raise RigupError(
                f"recipe {endpoint.recipe}: env.{key} contains a line break, which docker's env files cannot",
                "use one line",
            )
    values = sorted(endpoint.env.items())
    if endpoint.venv:
        values = [(key, f'"{SPECIAL_TO_SHELLS.sub(ESCAPED, value)}"') for key, value in values]
    return "".join(f"{key}={value}\n" for key, value in values)


def mount_unit(path: str) -> str:
    """Return the name of the mount unit, which systemd derives from the path (systemd.unit(5), "String escaping")."""
    escaped = re.sub(r"[^A-Za-z0-9:_./]", lambda found: f"\\x{ord(found[0]):02x}", path.strip("/"))
    return f"{escaped.replace('/', '-')}.mount"
