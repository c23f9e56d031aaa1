"""The CUDA toolkit on the host, for building; endpoints run on the one in their image."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from rigup.lock.packages import locked_packages
from rigup.operations import apt, files
from tasks.context import Context

__all__ = ["cuda"]

PROFILE = "/etc/profile.d/rigup-cuda.sh"


@deploy("cuda")
def cuda(context: Context) -> None:
    """`cuda-toolkit-13-N` at its locked version and nvcc on the PATH, or neither."""
    wanted = locked_packages(context.lock, context.distro, context.settings).get("cuda")
    if wanted is None:
        files.absent(name="Take the CUDA toolkit off the PATH", path=PROFILE)
        return
    apt.install(name="Install the CUDA toolkit", packages=wanted)
    # The packages do not do this themselves.
    files.install(
        name="Put the CUDA toolkit on the PATH", dest=PROFILE, content='export PATH="/usr/local/cuda/bin:$PATH"\n'
    )
