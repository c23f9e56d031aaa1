"""Verify that containers see the GPUs, and that a gateway asks for the key.

`verify gpus` starts containers and looks for the GPUs in them. `verify gateway` sends requests to an endpoint at its
public address, with and without its key. Each check prints one line; a failed one also says why on standard error.

Exit status: 0 all checks passed, 1 a check failed.
"""

from __future__ import annotations

import argparse
import secrets
import subprocess
from pathlib import Path

from rigup_host import checks, http
from rigup_host.checks import Check, Failed

DOCKER_S = 300
# The label marks it as one of rigup's. The host's own log driver may need a server that is not there. As in an engine's
# container, Docker does not remap users.
CONTAINER = (
    "docker",
    "run",
    "--rm",
    "--label=rigup.plan=verify",
    "--pull=never",
    "--network=none",
    "--userns=host",
    "--log-driver=none",
)


def main(argv: list[str]) -> int:
    """Run the checks that the arguments name; return the exit status."""
    options = parse(argv)
    return checks.record(options.what, {"gpus": gpu_checks, "gateway": gateway_checks}[options.what](options), options)


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(prog="rigup-host verify", description="Verify what a host promises.")
    commands = parser.add_subparsers(dest="what", required=True)
    gpus = commands.add_parser("gpus", help="look for the GPUs in containers")
    gpus.add_argument("--image", required=True, help="an image on this host; nothing is pulled")
    gpus.add_argument("--count", type=int, required=True, help="how many GPUs a container must see")
    gateway = commands.add_parser("gateway", help="send requests with and without the key")
    gateway.add_argument("--url", required=True, help="the endpoint's public URL, such as http://192.168.1.20:8000")
    gateway.add_argument("--health", default="/health", help="the one path that needs no key")
    gateway.add_argument("--key-file", required=True, help="the file with the key, which is never shown")
    gateway.add_argument("--timeout", type=float, default=60, help="seconds for one request")
    for command in (gpus, gateway):
        checks.add_arguments(command)
    return parser.parse_args(argv)


def gpu_checks(options: argparse.Namespace) -> list[Check]:
    """Return the checks of `verify gpus`."""
    image, count = options.image, options.count
    by_gpus, by_cdi = ["--gpus", "all"], ["--device", "nvidia.com/gpu=all"]
    return [
        ("gpus in a container by --gpus", lambda: gpus_in_container(image, by_gpus, count)),
        ("gpus in a container by CDI", lambda: gpus_in_container(image, by_cdi, count)),
        ("gpus still there after systemctl daemon-reload", lambda: gpus_after_reload(image, by_cdi, count)),
    ]


def gpus_in_container(image: str, devices: list[str], count: int) -> str:
    """Count the GPUs in a new container. Raise Failed if they are not `count`."""
    base = [*CONTAINER, "--entrypoint=nvidia-smi"]
    return count_gpus(command([*base, *devices, image, "-L"]), count)


def gpus_after_reload(image: str, devices: list[str], count: int) -> str:
    """Count the GPUs in a container that was running during `systemctl daemon-reload`.

    A container made with --gpus loses its GPUs when systemd writes its device cgroup again.
    """
    name = f"rigup-verify-{secrets.token_hex(6)}"
    base = [*CONTAINER, "--detach", f"--name={name}"]
    try:
        command([*base, "--entrypoint=sleep", *devices, image, str(DOCKER_S)])
        command(["systemctl", "daemon-reload"])
        return count_gpus(command(["docker", "exec", name, "nvidia-smi", "-L"]), count)
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True)


def count_gpus(listing: str, count: int) -> str:
    """Return the count in words. Raise Failed if `nvidia-smi -L` lists another number of GPUs."""
    listed = [line for line in listing.splitlines() if line.startswith("GPU ")]
    if len(listed) != count:
        raise Failed(f"nvidia-smi -L lists {len(listed)} of {count} GPUs: {listing.strip() or 'no output'}")
    return f"{count} GPUs"


def command(argv: list[str]) -> str:
    """Return the standard output of a command. Raise Failed if it fails or runs longer than DOCKER_S seconds."""
    try:
        answer = subprocess.run(argv, capture_output=True, text=True, timeout=DOCKER_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{' '.join(argv[:2])}: {error}") from error
    if answer.returncode:
        output = (answer.stderr or answer.stdout).strip() or "no output"
        raise Failed(f"{' '.join(argv[:2])} exited with {answer.returncode}: {output}")
    return answer.stdout


def gateway_checks(options: argparse.Namespace) -> list[Check]:
    """Return the checks of `verify gateway`."""
    url, limit = options.url.rstrip("/"), options.timeout
    # Paths outside /v1 too: the engine's own key would not protect them.
    paths = ("/v1/models", "/metrics", "/docs")
    strangers: dict[str, dict[str, str]] = {
        "without a key": {},
        "with a wrong key": {"Authorization": f"Bearer {secrets.token_hex(32)}"},
    }

    def refuses(headers: dict[str, str]) -> str:
        answers = {path: status(url + path, limit, headers) for path in paths}
        if open_ones := [f"{path} answered {code}" for path, code in answers.items() if code != 401]:
            raise Failed(f"expected 401, but {', '.join(open_ones)}")
        return "401"

    def healthy() -> str:
        if (code := status(url + options.health, limit, {})) != 200:
            raise Failed(f"{options.health} answered {code}")
        return "200"

    def admits() -> str:
        key = Path(options.key_file).read_text().split()[0]
        code = status(f"{url}/v1/models", limit, {"Authorization": f"Bearer {key}"})
        if code != 200:
            raise Failed(f"/v1/models answered {code} to the key in {options.key_file}")
        return "200"

    refusals = [
        (f"gateway refuses a request {who}", lambda headers=headers: refuses(headers))
        for who, headers in strangers.items()
    ]
    return [
        ("gateway passes the health check", healthy),
        *refusals,
        ("gateway admits the key", admits),
    ]


def status(url: str, limit: float, headers: dict[str, str]) -> int:
    """Return the status of the answer to a GET. Raise Failed if none comes."""
    try:
        return http.get(url, limit, headers).status
    except http.NoAnswer as error:
        raise Failed(str(error)) from error
