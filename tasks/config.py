"""The files of endpoints: environment, patched config files, image or packages, unit.

Each generation of an endpoint has its own directory, so running endpoints are not affected.
"""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from rigup.operations import apt, docker, files, users, venv
from rigup.paths import BALANCERS_CONFIG, UV
from rigup.render.balancer import hosts_text
from rigup.render.systemd import USER, env_file_text, unit_text
from rigup.render.verify import record_text
from tasks.context import Context
from tasks.venvs import tool

# Images have these: Triton compiles stubs against Python's headers, and kernels are linked against libnuma.
ENGINES_NEED = ("g++", "gcc", "libnuma1", "python3-dev")


@deploy("config")
def config(context: Context) -> None:
    """Pull images by digest, install packages by hash, and write everything that is mounted. Nothing is stopped."""
    _engines(context)
    _drain(context)
    for reference, tag in context.plan.images.items():
        docker.image(name=f"Pull {tag}", reference=reference, tag=tag, size=context.plan.image_bytes[reference])
    for endpoint in context.plan.endpoints:
        context.prepared.append(
            files.install(
                name=f"Write the environment file of {endpoint.name}",
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


def _drain(context: Context) -> None:
    """Say where the load balancers are that a switch waits for."""
    balancer = context.balancer
    if balancer is None or all(backend.host != context.plan.host for backend in balancer.backends):
        files.absent(name="Remove the list of load balancers", path=BALANCERS_CONFIG)
        return
    content = hosts_text(balancer, context.plan.host, context.settings.drain_timeout)
    files.install(name="Write the list of load balancers", dest=BALANCERS_CONFIG, content=content)


def _engines(context: Context) -> None:
    """Install the engines that run without a container."""
    if not context.plan.venvs:
        return
    users.system(name="Create the engines' user", user=USER)
    apt.install(name="Install the engines' system packages", packages=dict.fromkeys(ENGINES_NEED))
    tool(context, "uv", path=UV, locked="uv-requirements.lock", requirements=f"{UV}.lock")
    for environment in context.plan.venvs:
        packages = ", ".join(environment.packages)
        files.install(
            name=f"Write the requirements of {packages}", dest=f"{environment.path}.lock", content=environment.text
        )
        venv.engine(
            name=f"Install {packages}",
            venv=environment,
            requirements=f"{environment.path}.lock",
            index=context.settings.pypi_index,
            pythons=context.settings.python_mirror,
        )
