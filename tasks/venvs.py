"""The virtual environments of rigup's own tools on a host."""

from __future__ import annotations

from rigup.operations import files, venv
from rigup.resources import FILES
from tasks.context import Context


def tool(context: Context, what: str, *, path: str, locked: str, requirements: str) -> None:
    """Install `what` into the virtual environment `path`: the packages of `files/LOCKED`, kept in `requirements`."""
    files.install(name=f"Write the requirements of {what}", dest=requirements, content=(FILES / locked).read_text())
    venv.synced(
        name=f"Install {what}",
        path=path,
        requirements=requirements,
        index=context.settings.pypi_index,
        _env=context.proxies.environment,
    )
