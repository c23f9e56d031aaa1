"""Python virtual environments with exactly the locked packages."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Generator
from urllib.parse import urlsplit

from pyinfra.api.command import FunctionCommand, QuoteString, StringCommand
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.facts.files import Sha256File

from rigup.facts.files import Closed
from rigup.host_config import DEEPEST
from rigup.lock.pypi import index_arguments as uv_index
from rigup.operations._host import check, exclusive, work
from rigup.operations._ledger import note, record
from rigup.operations._units import run_as_unit, wait_for_leftover
from rigup.paths import PYTHONS, UV, UV_CACHE, engine_unit
from rigup.plan.model import VenvPlan

# uv installs Pythons where the engines' user can read them, and keeps its downloads until they are installed.
UV_ENV = {"UV_PYTHON_INSTALL_DIR": PYTHONS, "UV_CACHE_DIR": UV_CACHE}


def index_arguments(index: str) -> list[str]:
    """Return arguments that make pip use only `index`; pip refuses plain http unless the host is named as trusted."""
    parts = urlsplit(index)
    trusted = ["--trusted-host", parts.hostname] if parts.scheme == "http" and parts.hostname else []
    return ["--index-url", index, *trusted]


def _open(*paths: str) -> StringCommand:
    """Return the command that lets every user read everything below these directories."""
    return StringCommand("chmod -R go+rX --", *map(QuoteString, paths))


@operation()
def synced(path: str, requirements: str, index: str) -> Generator[StringCommand, None, None]:
    """Create the virtual environment `path` from the hash-locked `requirements` file on the host.

    It is recreated whenever the file differs from the copy inside the environment. The copy is written last, so an
    interrupted installation starts again. If other users cannot read all of it, that is repaired.
    """
    done = f"{path}/requirements.lock"
    # Without the proxies, on which no fact depends: with them it would not be read ahead.
    expected = host.get_fact(Sha256File, path=requirements, _env={})
    if expected and expected == host.get_fact(Sha256File, path=done, _env={}):
        if host.get_fact(Closed, path=path, depth=DEEPEST, _env={}):
            yield _open(path)
        else:
            host.noop(f"{path} has the packages of {requirements}")
        return
    directory = posixpath.dirname(path)
    yield exclusive(directory, "python3 -m venv --clear", QuoteString(path))
    yield exclusive(
        directory,
        QuoteString(f"{path}/bin/pip"),
        "install --quiet --no-input --no-cache-dir --disable-pip-version-check --require-hashes --requirement",
        QuoteString(requirements),
        *(QuoteString(argument) for argument in index_arguments(index)),
    )
    yield StringCommand("install -m 0644", QuoteString(requirements), QuoteString(done))


@operation()
def engine(
    venv: VenvPlan, requirements: str, index: str, pythons: str, timeout: float = 7200
) -> Generator[FunctionCommand | StringCommand, None, None]:
    """Create an engine's environment with uv, which is in the environment UV.

    + requirements: the file on the host with `venv.text`
    + index: Python package index
    + pythons: where uv downloads a Python that the host lacks
    + timeout: seconds until it must be done; it downloads gigabytes

    It is a new directory, so running engines are not affected. The commands run as units of their own, which finish
    even if the deploy is interrupted. The copy of the requirements is written last.
    """
    done = venv.done
    if host.get_fact(Sha256File, path=done) == hashlib.sha256(venv.text.encode()).hexdigest():
        # Below these, units have made all files.
        if closed := [path for path in (PYTHONS, venv.path) if host.get_fact(Closed, path=path, depth=1)]:
            yield _open(*closed)
        else:
            host.noop(f"{venv.path} is complete")
        return

    def make(host: Host) -> None:
        unit, what = engine_unit(venv.path), f"installing {venv.packages[0]}"
        wait_for_leftover(host, unit, what, timeout)
        record(host, note("engines", [venv.path]))
        uv, env = f"{UV}/bin/uv", {**UV_ENV, "UV_PYTHON_INSTALL_MIRROR": pythons}
        create = [uv, "venv", "--quiet", "--no-config", "--allow-existing", f"--python={venv.python}", venv.path]
        run_as_unit(host, unit, create, what=what, limit_s=timeout, env=env)
        fill = [uv, "pip", "sync", "--quiet", "--no-config", "--require-hashes", f"--python={venv.path}/bin/python3"]
        fill += [*uv_index(index), "--compile-bytecode", requirements]
        run_as_unit(host, unit, fill, what=what, limit_s=timeout, env=env)
        # Everyone may write uv's lock files, whatever the umask. PYTHONS is missing where the host has the Python.
        failing = f"could not make {venv.path} on {host.name} writable by root alone"
        check(host, "mkdir -p", PYTHONS, failing=failing)
        check(host, "chmod -R go-w", PYTHONS, QuoteString(venv.path), failing=failing)
        failing = f"could not mark {venv.path} on {host.name} as complete"
        check(host, "install -m 0644", QuoteString(requirements), QuoteString(done), failing=failing)

    yield work(make, f"create {venv.path}")
