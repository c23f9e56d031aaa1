"""What an endpoint reads: its environment, the patched config files, the image or the packages, its unit.

Each generation of an endpoint has a directory of its own: nothing of what serves is touched.
"""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from rigup.lock.pypi import UV
from rigup.operations import apt, docker, files, users, venv
from rigup.render.systemd import USER, env_file_text, record_text, unit_text
from rigup.resources import FILES
from tasks.preflight import Context

__all__ = ["config"]


# What images bring along: Triton compiles stubs against Python's headers, and kernels are linked against libnuma.
ENGINES_NEED = ("g++", "gcc", "libnuma1", "python3-dev")


@deploy("config")
def config(context: Context) -> None:
    """Images are here by digest, packages by hash, and beside them all that is mounted. Nothing is stopped for it."""
    _engines(context)
    for reference, tag in context.plan.images.items():
        docker.image(name=f"Pull {tag}", reference=reference, tag=tag)
    for endpoint in context.plan.endpoints:
        context.prepared.append(
            files.install(
                name=f"Write the environment of {endpoint.name}",
                dest=endpoint.env_file,
                content=env_file_text(endpoint),
                mode="600",
                secret=True,
            )
        )
        texts = {f"patched {name}": (name, text) for name, text in endpoint.patched_files.items()}
        texts["unit"] = ("llm.service", unit_text(endpoint))
        texts["record"] = ("endpoint.json", record_text(endpoint))
        for what, (name, text) in texts.items():
            context.prepared.append(
                files.install(
                    name=f"Write the {what} of {endpoint.name}", dest=f"{endpoint.directory}/{name}", content=text
                )
            )


def _engines(context: Context) -> None:
    """The engines that run without a container."""
    if not context.plan.venvs:
        return
    users.system(name="Make the engines' user", user=USER)
    apt.install(name="Install what engines need of the host", packages=dict.fromkeys(ENGINES_NEED))
    requirements = f"{UV}.lock"
    files.install(name="Name uv", dest=requirements, content=(FILES / "uv-requirements.lock").read_text())
    venv.synced(
        name="Install uv",
        path=UV,
        requirements=requirements,
        index=context.settings.pypi_index,
        _env=context.proxies.environment,
    )
    for wanted in context.plan.venvs:
        packages = ", ".join(wanted.packages)
        files.install(name=f"Name the packages of {packages}", dest=f"{wanted.path}.lock", content=wanted.text)
        venv.engine(
            name=f"Install {packages}",
            venv=wanted,
            requirements=f"{wanted.path}.lock",
            index=context.settings.pypi_index,
            pythons=context.settings.python_mirror,
        )
