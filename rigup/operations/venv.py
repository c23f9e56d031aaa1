"""A Python virtual environment on the host that holds exactly the locked packages."""

from __future__ import annotations

from collections.abc import Generator
from urllib.parse import urlsplit

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.facts.files import Sha256File

__all__ = ["index_arguments", "synced"]


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
    yield StringCommand("python3 -m venv --clear", QuoteString(path))
    yield StringCommand(
        QuoteString(f"{path}/bin/pip"),
        "install --quiet --no-input --disable-pip-version-check --require-hashes --requirement",
        QuoteString(requirements),
        *(QuoteString(argument) for argument in index_arguments(index)),
    )
    yield StringCommand("install -m 0644", QuoteString(requirements), QuoteString(done))
