"""The cuda step: the CUDA toolkit on the host, or its absence."""

from __future__ import annotations

import re

from rigup.audit.check import check
from rigup.audit.expect import expect, expect_file
from rigup.audit.subject import Subject
from rigup.paths import CUDA_PROFILE


@check("minor", "cuda_toolkit")
def test_cuda_packages(rig: Subject) -> None:
    """The CUDA toolkit must have the locked version."""
    expected = rig.locked("cuda")
    expect(expected, rig.versions(expected))


@check("minor", "cuda_toolkit")
def test_cuda_nvcc(rig: Subject) -> None:
    """A login shell must find nvcc of the configured version; with `off`, rigup must not change the PATH."""
    if rig.settings.cuda_toolkit is None:
        expect(
            f"no {CUDA_PROFILE}",
            rig.output(f"find {CUDA_PROFILE} -maxdepth 0") or f"no {CUDA_PROFILE}",
        )
        return
    expect_file(rig, CUDA_PROFILE, 'export PATH="/usr/local/cuda/bin:$PATH"\n')
    release = re.search(r"release (\S+),", rig.output("bash -lc 'nvcc --version'"))
    expect(
        f"nvcc {rig.settings.cuda_toolkit.replace('-', '.')}",
        f"nvcc {release[1]}" if release else "no nvcc on the PATH",
    )
