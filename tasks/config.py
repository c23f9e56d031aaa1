"""What an endpoint reads: the plan, its environment, the patched config files, the image."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from rigup.operations import docker, files
from rigup.render import env_file_text
from tasks.preflight import Brief

__all__ = ["config"]


@deploy("config")
def config(brief: Brief) -> None:
    """The image is here by digest, and beside it all that the container will mount. Nothing is stopped for it."""
    for reference, tag in brief.plan.images.items():
        docker.image(name=f"Pull {tag}", reference=reference, tag=tag)
    for endpoint in brief.plan.endpoints:
        files.install(
            name=f"Write the environment of {endpoint.name}",
            dest=endpoint.env_file,
            content=env_file_text(endpoint),
            mode="600",
            secret=True,
        )
        for name, text in endpoint.patched_files.items():
            files.install(
                name=f"Write the patched {name} of {endpoint.name}", dest=f"{endpoint.directory}/{name}", content=text
            )
    files.install(name="Keep the plan on the host", dest="/etc/rigup/plan.json", content=brief.plan.text())
