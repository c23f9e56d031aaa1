"""From an endpoint's plan to what a host runs: docker's arguments, a systemd unit, an environment file. All pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import PurePath

from rigup.catalog.apply_patches import TEMPLATE
from rigup.errors import RigupError
from rigup.plan.model import EndpointPlan, Mount
from rigup.render.docker import DOCKER, _devices, _mounts, docker_argv
from rigup.render.templates import filled

__all__ = [
    "CLIENT",
    "FATAL_LINES",
    "JUDGE",
    "PROOF_SECONDS",
    "PROVE",
    "PYTHON",
    "SMOKE",
    "USER",
    "WAIT_READY",
    "env_file_text",
    "gpus_proof",
    "inputs_of",
    "judge_argv",
    "mount_text",
    "mount_unit",
    "proof_of",
    "prove_argv",
    "record_text",
    "recording",
    "served_argv",
    "start_seconds",
    "systemd_command",
    "systemd_quote",
    "unit_text",
    "wait_argv",
]

PYTHON = "/usr/bin/python3"
WAIT_READY = "/usr/local/lib/rigup/wait_ready.py"
JUDGE = "/usr/local/lib/rigup/judge.py"
FATAL_LINES = "/usr/local/lib/rigup/fatal.json"
PROVE = "/usr/local/lib/rigup/prove.py"
SMOKE = "/usr/local/lib/rigup/smoke.py"
CLIENT = "/usr/local/lib/rigup/client"
REQUEST_SECONDS = 600
# For all requests of a proof. Models that think at length take minutes for all of it.
PROOF_SECONDS = 1800
STOP_SECONDS = 60
# Who engines without a container run as.
USER = "rigup-serve"
KEPT = r"\\\g<0>"
SHELL_READS = re.compile(r'["\\`$]')

# These need no quotes and mean nothing to systemd, wherever in a word they stand.
PLAIN = re.compile(r"[A-Za-z0-9_./:=@,+-]+")


def served_argv(endpoint: EndpointPlan) -> list[str]:
    """The whole command that serves an endpoint, in the foreground."""
    return list(endpoint.argv) if endpoint.venv else docker_argv(endpoint)


def inputs_of(endpoint: EndpointPlan) -> list[str]:
    """The files of its generation that an endpoint's process reads at its start."""
    return [endpoint.env_file, *(f"{endpoint.directory}/{name}" for name in endpoint.patched_files)]


def judge_argv(endpoint: EndpointPlan) -> list[str]:
    """The command that has the engine's own parser judge the engine's arguments, and loads nothing.

    It has no need of the checkpoint, which may still be on its way; of the patched files it sees the one whose path is
    an argument.
    """
    mounts = [mount for mount in endpoint.mounts if PurePath(mount.source).name == TEMPLATE]
    first = next(index for index, word in enumerate(endpoint.argv) if word.startswith("--model"))
    words = [JUDGE, endpoint.engine, *endpoint.argv[first:]]
    if endpoint.image is None:
        python = f"{PurePath(endpoint.argv[0]).parent}/python3"
        # systemd puts variables into the words of a transient unit as well.
        return [*_confined(endpoint, mounts), "--", python, *(word.replace("$", "$$") for word in words)]
    arguments = [DOCKER, "run", "--rm", "--pull=never", "--log-driver=none", "--network=none"]
    arguments.append(f"--label=rigup.plan={endpoint.digest}")
    arguments += ["--cap-drop=ALL", "--security-opt=no-new-privileges"]
    # vLLM looks at the GPUs to know which of its platforms it is on.
    arguments += [*_devices(endpoint), *_mounts(mounts)]
    arguments += [f"--mount=type=bind,source={JUDGE},target={JUDGE},readonly", f"--env-file={endpoint.env_file}"]
    return [*arguments, "--entrypoint=python3", endpoint.image, *words]


def _confined(endpoint: EndpointPlan, mounts: Iterable[Mount]) -> list[str]:
    """Begins a command that runs as the endpoint's engine would without a container, and waits for its end."""
    settings = [
        f"User={USER}",
        f"EnvironmentFile={endpoint.env_file}",
        f"CacheDirectory=rigup/{endpoint.name}",
        *("ProtectSystem=strict", "ProtectHome=tmpfs", "PrivateTmp=yes", "NoNewPrivileges=yes"),
        *(f"BindReadOnlyPaths={bind}" for bind in _binds(mounts)),
    ]
    run = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect"]
    return [*run, *(f"--property={setting}" for setting in settings)]


def _binds(mounts: Iterable[Mount]) -> list[str]:
    return [systemd_quote(f"{mount.source}:{mount.target}") for mount in mounts]


def wait_argv(endpoint: EndpointPlan) -> list[str]:
    """The command that ends well once the endpoint answers, and badly once it cannot any more."""
    # Under its own name in the journal, so that its words are not taken for the engine's.
    program = [WAIT_READY] if endpoint.venv else [PYTHON, WAIT_READY]
    return [
        *program,
        f"--url={endpoint.url}",
        f"--health={endpoint.ready_path}",
        f"--model={endpoint.served_name}",
        *([f"--log={PurePath(endpoint.argv[0]).name}"] if endpoint.venv else [f"--container={endpoint.container}"]),
        f"--timeout={endpoint.ready_timeout}",
        f"--stall={endpoint.stall_timeout}",
        f"--gpus={'all' if endpoint.gpus == 'all' else ','.join(map(str, endpoint.gpus))}",
        f"--fatal={FATAL_LINES}",
    ]


def proof_of(name: str) -> str:
    """Where the proof `name` stands; in /run, so that a boot forgets it."""
    return f"/run/rigup/proof-{name}.json"


def gpus_proof(image: str) -> str:
    """Names the proof that containers see the GPUs: one for each image, so that two endpoints do not take turns."""
    return f"gpus-{image.rpartition(':')[2][:12]}"


def recording(name: str, unit: str, digest: str) -> list[str]:
    """The arguments that tell `prove.py` what its result is about, and where it goes."""
    return [f"--out={proof_of(name)}", f"--unit={unit}", f"--digest={digest}"]


def prove_argv(endpoint: EndpointPlan) -> list[str]:
    """The command that proves that the endpoint, as it runs now, does what its recipe is for."""
    return [
        f"{CLIENT}/bin/python",
        PROVE,
        "endpoint",
        f"--url={endpoint.url}",
        f"--health={endpoint.ready_path}",
        f"--model={endpoint.served_name}",
        f"--timeout={REQUEST_SECONDS}",
        f"--within={PROOF_SECONDS}",
        f"--expect={endpoint.smoke.model_dump_json()}",
        *recording(f"endpoint-{endpoint.name}", endpoint.unit, endpoint.digest),
    ]


def record_text(endpoint: EndpointPlan) -> str:
    """What `switch.py` and `rigup status` must know of a generation, as one line of JSON beside its other files."""
    record = {
        "name": endpoint.name,
        "generation": endpoint.generation,
        "recipe": endpoint.recipe,
        "gpus": endpoint.gpus,
        "address": endpoint.address,
        "port": endpoint.port,
        "ready_path": endpoint.ready_path,
        "start_seconds": start_seconds(endpoint),
        "prove": prove_argv(endpoint),
    }
    return json.dumps(record, sort_keys=True) + "\n"


def start_seconds(endpoint: EndpointPlan) -> int:
    """How long systemd waits for a start: a little longer than the readiness check does."""
    return endpoint.ready_timeout + 60


def systemd_quote(argument: str) -> str:
    """One argument of an Exec line, such that the program receives exactly `argument`.

    systemd.syntax(7): in double quotes a backslash starts a C escape. systemd.service(5): `%` is a specifier and `$` a
    variable unless doubled, in quotes too, and a lone `;` starts another command unless quoted. Line ends would end the
    setting, so they are written as escapes, as are the other control characters. Raises ValueError for NUL, which no
    argument can hold.
    """
    if "\0" in argument:
        raise ValueError("an argument cannot hold a NUL character")
    # A file that is not UTF-8 is no unit file.
    argument.encode("utf-8")
    if PLAIN.fullmatch(argument):
        return argument
    quoted = argument.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$").replace("%", "%%")
    quoted = re.sub(r"[\x01-\x1f\x7f]", lambda match: f"\\x{ord(match[0]):02x}", quoted)
    return f'"{quoted}"'


def systemd_command(argv: Iterable[str]) -> str:
    """A command for an Exec line; its first word must be an absolute path."""
    words = list(argv)
    # Other first characters are prefixes with a meaning (- @ : + !).
    if not words or not words[0].startswith("/"):
        raise ValueError("the program must be an absolute path")
    return " ".join(systemd_quote(word) for word in words)


def _broken(argv: list[str]) -> str:
    """A long command with one option or argument per line, so that a diff of the unit shows what changed."""
    return systemd_command(argv[:2]) + "".join(f" \\\n  {systemd_quote(word)}" for word in argv[2:])


def unit_text(endpoint: EndpointPlan) -> str:
    """The text of `llm@NAME.service`."""
    return filled(
        "llm.service.j2",
        endpoint=endpoint,
        start_seconds=start_seconds(endpoint),
        user=USER,
        # Where homes are hidden, the checkpoint too; patched files over it.
        binds=[systemd_quote(endpoint.checkpoint.path), *_binds(endpoint.mounts)],
        limits={f"Limit{name.upper()}": "infinity" if value < 0 else value for name, value in endpoint.ulimits.items()},
        remove=systemd_command([DOCKER, "rm", "--force", endpoint.container]),
        run=_broken(served_argv(endpoint)),
        wait=_broken(wait_argv(endpoint)),
        stop=systemd_command([DOCKER, "stop", "-t", str(STOP_SECONDS), endpoint.container]),
    )


def env_file_text(endpoint: EndpointPlan) -> str:
    """The environment, for who reads it.

    docker's --env-file: KEY=VALUE up to the line's end, no quotes, no escapes. systemd's EnvironmentFile: the value in
    double quotes, in which a backslash keeps the characters that a shell would read. Raises RigupError for a value with
    a line break, which the first cannot hold.
    """
    for key, value in endpoint.env.items():
        if "\n" in value or "\r" in value or "\0" in value:
            raise RigupError(f"recipe {endpoint.recipe}: env {key} holds a line break, which docker's env files cannot")
    values = sorted(endpoint.env.items())
    if endpoint.venv:
        values = [(key, f'"{SHELL_READS.sub(KEPT, value)}"') for key, value in values]
    return "".join(f"{key}={value}\n" for key, value in values)


def mount_unit(path: str) -> str:
    """The unit's name, which systemd wants to be that of the place (systemd.unit(5), "String escaping")."""
    escaped = re.sub(r"[^A-Za-z0-9:_./]", lambda found: f"\\x{ord(found[0]):02x}", path.strip("/"))
    return f"{escaped.replace('/', '-')}.mount"


def mount_text(path: str, label: str) -> str:
    """The unit. A disk that is missing does not keep the host from booting: what needs the store waits, and says so."""
    return f"""\
# Written by rigup; the next deploy undoes changes made here.
[Unit]
Description=rigup: the disk that holds the checkpoints

[Mount]
What=/dev/disk/by-label/{label}
Where={path}
Options=noatime

[Install]
WantedBy=multi-user.target
"""
