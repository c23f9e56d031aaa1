"""The CUDA toolkit on the host, for building; endpoints use the one in their image."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from rigup.lock.packages import locked_packages
from rigup.operations import apt, files
from rigup.paths import CUDA_PROFILE
from tasks.context import Context


@deploy("cuda")
def cuda(context: Context) -> None:
    """Install `cuda-toolkit-13-N` at its locked version and add nvcc to the PATH, or do neither."""
    packages = locked_packages(context.lock, context.distro, context.settings).get("cuda")
    if packages is None:
        files.absent(name="Remove the CUDA toolkit from the PATH", path=CUDA_PROFILE)
        return
    apt.install(name="Install the CUDA toolkit", packages=packages)
    # The packages do not do this.
    files.install(
        name="Add the CUDA toolkit to the PATH", dest=CUDA_PROFILE, content='export PATH="/usr/local/cuda/bin:$PATH"\n'
    )
