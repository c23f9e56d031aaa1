#!/usr/bin/env python3
"""Tries out what a host promises and writes down what came of it.

`prove.py gpus` starts containers and looks for the GPUs in them; `prove.py endpoint` tries what an endpoint is for;
`prove.py gateway` asks it where it is reachable from elsewhere, with and without its key. Each check is one line on
standard output; a failed one also says why on standard error. The result stands in a JSON file with the invocation of
the unit that it was made for: it proves nothing once that unit was started again. `endpoint` needs the package
`openai`.

Exit status: 0 all passed, 1 a check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

DOCKER_S = 300
# Containers with it are rigup's.
LABEL = "--label=rigup.plan=proof"


class Failed(Exception):
    """A check did not find what it must."""


class TimeUp(BaseException):
    """The whole proof has taken as long as it may. No Exception: clients take those for failures of their requests."""


class Noted(Exception):
    """A check found something that users should know of, and that does not keep the endpoint from serving."""


Check = tuple[str, Callable[[], str]]


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    invocation = invocation_of(options.unit)
    checks = {"gpus": gpu_checks, "endpoint": endpoint_checks, "gateway": gateway_checks}[options.what](options)
    results = run_checks(checks, options.within)
    passed = all(result["ok"] for result in results)
    if invocation_of(options.unit) != invocation:
        print(f"{options.unit} was started anew meanwhile", file=sys.stderr)
        passed = False
    record = {
        "what": options.what,
        "passed": passed,
        "digest": options.digest,
        "unit": options.unit,
        "invocation": invocation,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "checks": results,
    }
    write(Path(options.out), json.dumps(record, indent=2) + "\n")
    return 0 if passed else 1


def parse(argv: list[str] | None) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", required=True, help="where to write the result")
    common.add_argument("--unit", required=True, help="unit whose present invocation this is about")
    common.add_argument("--digest", required=True, help="what the result is about; kept in it as it is")
    common.add_argument("--within", type=float, default=1800, help="seconds that all checks together may take")
    parser = argparse.ArgumentParser(description="Try out what a host promises.")
    commands = parser.add_subparsers(dest="what", required=True)
    gpus = commands.add_parser("gpus", parents=[common], help="look for the GPUs in containers")
    gpus.add_argument("--image", required=True, help="an image that is on this host; nothing is pulled")
    gpus.add_argument("--count", type=int, required=True, help="how many GPUs a container must see")
    endpoint = commands.add_parser("endpoint", parents=[common], help="ask an endpoint")
    endpoint.add_argument("--url", required=True, help="its base, such as http://127.0.0.1:8000")
    endpoint.add_argument("--health", default="/health", help="path that answers 200")
    endpoint.add_argument("--model", required=True, help="name under which it serves")
    endpoint.add_argument("--timeout", type=float, default=600, help="seconds that one request may take")
    endpoint.add_argument(
        "--expect", type=json.loads, default={}, help="what it is for: the fields of smoke.Expectation"
    )
    gateway = commands.add_parser("gateway", parents=[common], help="ask an endpoint with and without its key")
    gateway.add_argument("--url", required=True, help="its base, such as http://192.168.1.20:8000")
    gateway.add_argument("--health", default="/health", help="the one path that needs no key")
    gateway.add_argument("--key-file", required=True, help="where its key lies; it is never shown")
    gateway.add_argument("--timeout", type=float, default=60, help="seconds that one request may take")
    return parser.parse_args(argv)


def run_checks(checks: list[Check], within: float) -> list[dict[str, object]]:
    """The results of all checks, or of those that were begun within so many seconds."""
    began, results = time.monotonic(), []
    for name, check in checks:
        left = within - (time.monotonic() - began)
        results.append(run_check(name, check, left, f"{within:.0f} s"))
        if time.monotonic() - began >= within:
            break
    return results


def run_check(name: str, check: Callable[[], str], left: float, limit: str) -> dict[str, object]:
    """Run one check for at most `left` seconds and print its line; the result is as it stands in the JSON file.

    `limit` says how long all checks may take.
    """
    began = time.monotonic()
    signal.signal(signal.SIGALRM, time_is_up)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, left)
            mark, detail = "ok", check()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except TimeUp:
        mark, detail = "FAIL", f"it hangs: no end when the {limit} were up that all checks may take; no other was tried"
    except Noted as note:
        mark, detail = "note", str(note)
    except Failed as error:
        mark, detail = "FAIL", str(error)
    except Exception as error:
        # Whatever went wrong with one check, the others are worth knowing too.
        mark, detail = "FAIL", f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - began
    print(f"{mark:<4} {name:<48} {seconds:6.1f} s" + (f"  {detail}" if mark == "note" else ""), flush=True)
    if mark == "FAIL":
        print(f"{name}: {detail}", file=sys.stderr, flush=True)
    return {"name": name, "ok": mark != "FAIL", "seconds": round(seconds, 3), "detail": detail}


def time_is_up(number: int, frame: object) -> None:
    raise TimeUp


def gpu_checks(options: argparse.Namespace) -> list[Check]:
    image, count = options.image, options.count
    by_gpus, by_cdi = ["--gpus", "all"], ["--device", "nvidia.com/gpu=all"]
    return [
        ("gpus in a container by --gpus", lambda: gpus_in_container(image, by_gpus, count)),
        ("gpus in a container by CDI", lambda: gpus_in_container(image, by_cdi, count)),
        ("gpus still there after systemctl daemon-reload", lambda: gpus_after_reload(image, by_cdi, count)),
    ]


def gpus_in_container(image: str, asking: list[str], count: int) -> str:
    base = ["docker", "run", "--rm", LABEL, "--pull=never", "--network=none", "--entrypoint=nvidia-smi"]
    return count_gpus(command([*base, *asking, image, "-L"]), count)


def gpus_after_reload(image: str, asking: list[str], count: int) -> str:
    """A container made the older way loses its GPUs when systemd writes its device cgroup anew (`daemon-reload`)."""
    name = f"rigup-proof-{secrets.token_hex(6)}"
    base = ["docker", "run", "--detach", "--rm", LABEL, "--pull=never", "--network=none", f"--name={name}"]
    try:
        command([*base, "--entrypoint=sleep", *asking, image, str(DOCKER_S)])
        command(["systemctl", "daemon-reload"])
        return count_gpus(command(["docker", "exec", name, "nvidia-smi", "-L"]), count)
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True)


def count_gpus(listing: str, count: int) -> str:
    seen = [line for line in listing.splitlines() if line.startswith("GPU ")]
    if len(seen) != count:
        raise Failed(f"nvidia-smi -L lists {len(seen)} of {count} GPUs: {listing.strip() or 'nothing'}")
    return f"{count} GPUs"


def command(argv: list[str]) -> str:
    """The standard output of a command that must succeed within DOCKER_S seconds."""
    try:
        answer = subprocess.run(argv, capture_output=True, text=True, timeout=DOCKER_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{' '.join(argv[:2])}: {error}") from error
    if answer.returncode:
        said = (answer.stderr or answer.stdout).strip() or "it said nothing"
        raise Failed(f"{' '.join(argv[:2])} ended with {answer.returncode}: {said}")
    return answer.stdout


def endpoint_checks(options: argparse.Namespace) -> list[Check]:
    # Beside this file; it needs a package that the other commands do without.
    from smoke import Expectation, Smoke

    return Smoke(options.url, options.health, options.model, options.timeout, Expectation(**options.expect)).checks()


def gateway_checks(options: argparse.Namespace) -> list[Check]:
    url, limit = options.url.rstrip("/"), options.timeout
    paths = ("/v1/models", "/metrics", "/docs")
    # Beyond /v1 too: the engine's own check would end there.
    strangers: dict[str, dict[str, str]] = {
        "without a key": {},
        "with a wrong key": {"Authorization": f"Bearer {secrets.token_hex(32)}"},
    }

    def refuses(headers: dict[str, str]) -> str:
        answers = {path: status(url + path, limit, headers) for path in paths}
        if open_ones := [f"{path} answered {code}" for path, code in answers.items() if code != 401]:
            raise Failed(f"401 was due, but {', '.join(open_ones)}")
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
        (f"gateway refuses {who}", lambda headers=headers: refuses(headers)) for who, headers in strangers.items()
    ]
    return [
        ("gateway lets the health check through", healthy),
        *refusals,
        ("gateway opens with the key", admits),
    ]


def status(url: str, limit: float, headers: dict[str, str]) -> int:
    """The status code of a GET."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=limit) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        raise Failed(f"{url}: {getattr(error, 'reason', error)}") from error


def invocation_of(unit: str) -> str:
    """The present invocation of the unit; empty when it does not run."""
    argv = ["systemctl", "show", "--value", "--property=InvocationID", "--", unit]
    return subprocess.run(argv, capture_output=True, text=True).stdout.strip()


def write(path: Path, text: str) -> None:
    """Write beside and rename, so that no reader ever sees half a proof."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o644)
    os.replace(beside, path)


if __name__ == "__main__":
    # By its name, so that smoke.py, which imports it, raises the exceptions that are caught here.
    import prove

    sys.exit(prove.main())
