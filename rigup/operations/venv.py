"""Python virtual environments on the host that hold exactly the locked packages."""

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

from rigup.lock.pypi import UV
from rigup.lock.pypi import index_arguments as uv_index
from rigup.operations._host import alone, check, work
from rigup.operations._ledger import note
from rigup.operations._units import run_as_unit, wait_for_leftover
from rigup.plan.model import VenvPlan, engine_unit

__all__ = ["engine", "index_arguments", "synced"]

# Pythons that uv fetches lie where the engines' user may read them; its downloads are kept until they are installed.
UV_ENV = {"UV_PYTHON_INSTALL_DIR": "/usr/local/lib/rigup/python", "UV_CACHE_DIR": "/var/cache/rigup-uv"}


def index_arguments(index: str) -> list[str]:
    """Arguments that make pip use `index` alone; pip refuses plain http unless the host is named as trusted."""
    parts = urlsplit(index)
    trusted = ["--trusted-host", parts.hostname] if parts.scheme == "http" and parts.hostname else []
    return ["--index-url", index, *trusted]


@operation()
def synced(path: str, requirements: str, index: str) -> Generator[StringCommand, None, None]:
    """Make the virtual environment `path` from the hash-locked `requirements` file on the host.

    It is made anew whenever the file differs from the copy kept inside, which is written last: an interrupted
    installation starts again.
    """
    done = f"{path}/requirements.lock"
    wanted = host.get_fact(Sha256File, path=requirements)
    if wanted and wanted == host.get_fact(Sha256File, path=done):
        host.noop(f"{path} holds what {requirements} asks for")
        return
    beside = posixpath.dirname(path)
    yield alone(beside, "python3 -m venv --clear", QuoteString(path))
    yield alone(
        beside,
        QuoteString(f"{path}/bin/pip"),
        "install --quiet --no-input --no-cache-dir --disable-pip-version-check --require-hashes --requirement",
        QuoteString(requirements),
        *(QuoteString(argument) for argument in index_arguments(index)),
    )
    yield StringCommand("install -m 0644", QuoteString(requirements), QuoteString(done))


@operation()
def engine(
    venv: VenvPlan, requirements: str, index: str, pythons: str, timeout: float = 7200
) -> Generator[FunctionCommand, None, None]:
    """Make an engine's environment with uv, which is in the environment UV.

    + requirements: the file on the host with `venv.text`
    + index: Python package index
    + pythons: where uv finds a Python that the host lacks
    + timeout: seconds until it must be there; gigabytes are fetched

    It has a directory of its own, so what serves is not touched. The work runs as units of their own and ends properly
    when the deploy is cut off; the copy of the requirements is written last.
    """
    done = venv.done
    if host.get_fact(Sha256File, path=done) == hashlib.sha256(venv.text.encode()).hexdigest():
        host.noop(f"{venv.path} is here")
        return

    def make(host: Host) -> None:
        unit, what = engine_unit(venv.path), f"installing {venv.packages[0]}"
        wait_for_leftover(host, unit, what, timeout)
        check(host, note("engines", [venv.path]), failing=f"could not write the ledger of {host.name}")
        uv, env = f"{UV}/bin/uv", {**UV_ENV, "UV_PYTHON_INSTALL_MIRROR": pythons}
        create = [uv, "venv", "--quiet", "--no-config", "--allow-existing", f"--python={venv.python}", venv.path]
        run_as_unit(host, unit, create, what=what, limit_s=timeout, env=env)
        fill = [uv, "pip", "sync", "--quiet", "--no-config", "--require-hashes", f"--python={venv.path}/bin/python3"]
        fill += [*uv_index(index), "--compile-bytecode", requirements]
        run_as_unit(host, unit, fill, what=what, limit_s=timeout, env=env)
        failing = f"{venv.path} on {host.name} could not be marked as whole"
        check(host, "install -m 0644", QuoteString(requirements), QuoteString(done), failing=failing)

    yield work(make, f"make {venv.path}")
