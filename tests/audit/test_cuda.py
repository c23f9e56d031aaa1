"""The CUDA toolkit on the host, or its absence."""

from __future__ import annotations

import re

from subject import Subject, check, expect


@check("minor", "cuda_toolkit")
def test_cuda_packages(rig: Subject) -> None:
    """The toolkit's package, at the locked version."""
    wanted = rig.locked("cuda")
    expect(wanted, rig.versions(wanted))


@check("minor", "cuda_toolkit")
def test_cuda_nvcc(rig: Subject) -> None:
    """A login shell finds nvcc, of the version that the settings name; with `off`, our PATH file is not there."""
    if rig.settings.cuda_toolkit is None:
        expect(
            "no /etc/profile.d/rigup-cuda.sh",
            rig.said("ls /etc/profile.d/rigup-cuda.sh") or "no /etc/profile.d/rigup-cuda.sh",
        )
        return
    said = re.search(r"release (\S+),", rig.said("bash -lc 'nvcc --version'"))
    expect(f"nvcc {rig.settings.cuda_toolkit.replace('-', '.')}", f"nvcc {said[1]}" if said else "no nvcc on the PATH")
