"""What an endpoint reads: its environment, the patched config files, the image, its unit.

Each generation of an endpoint has a directory of its own: nothing of what serves is touched.
"""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from rigup.operations import docker, files
from rigup.render import env_file_text, record_text, unit_text
from tasks.preflight import Brief

__all__ = ["config"]


@deploy("config")
def config(brief: Brief) -> None:
    """The image is here by digest, and beside it all that the container will mount. Nothing is stopped for it."""
    for reference, tag in brief.plan.images.items():
        docker.image(name=f"Pull {tag}", reference=reference, tag=tag)
    for endpoint in brief.plan.endpoints:
        brief.prepared.append(
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
            brief.prepared.append(
                files.install(
                    name=f"Write the {what} of {endpoint.name}", dest=f"{endpoint.directory}/{name}", content=text
                )
            )
