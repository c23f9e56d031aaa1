"""The lab's own repositories: built when their inputs change, kept in the cache, linked for the server."""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from lab.mirror import aptrepo, container_toolkit, distributions, docker, kernel, keys, nvidia, ubuntu
from lab.mirror.distributions import Distribution
from lab.mirror.docker import Archive
from lab.mirror.keys import Key
from lab.settings import KVER

_CODE = Path(__file__).parent
_STANDINS = _CODE.parent / "standins"
_SHARED = ("aptrepo.py", "debfile.py", "distributions.py", "keys.py", "parts.py", "repos.py")
_KERNEL = ("kernel.py", "kernel_module.py")

_KEPT = 3 * 24 * 3600.0
"""How long an outdated build is kept, in seconds: another lab on this machine may still serve it."""

_OWNERS = {
    **{f"cuda-{each.cuda_key}": "cudatools <cudatools@rigup.invalid>" for each in distributions.DISTRIBUTIONS},
    "docker": "Docker Release (CE deb) <docker@rigup.invalid>",
    "toolkit": "NVIDIA CORPORATION <toolkit@rigup.invalid>",
    "ubuntu": "Ubuntu Archive Automatic Signing Key (2018) <ftpmaster@rigup.invalid>",
}
Say = Callable[[str], None]


def _fingerprint(paths: Iterable[Path], *more: str) -> str:
    """Return a short hash of files, directories with their content, and words."""
    digest = hashlib.sha256("\0".join(more).encode())
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def signing_keys(directory: Path) -> dict[str, Key]:
    """Return the keys that sign the repositories by name, generated below `directory` if they are missing."""
    return {name: keys.ensure(name, f"lab stand-in for {owner}", directory) for name, owner in _OWNERS.items()}


class Repositories:
    """Builds what is missing below `cache` and links it below `www`; `say` gets a line for each slow step."""

    def __init__(self, cache: Path, www: Path, archive: Archive, say: Say) -> None:
        self._built = cache / "repositories"
        self._keys = cache / "keys"
        self._www = www
        self._archive = archive
        self._say = say

    def build(self) -> None:
        """Build and publish all of them. Raises LabError with what is missing and what to do about it."""
        self._www.mkdir(parents=True, exist_ok=True)
        signing = signing_keys(self._keys)
        docker_key, toolkit_key = signing["docker"], signing["toolkit"]
        code = (*_KERNEL, "nvidia.py", "driver.py", "docker.py")
        for distribution in distributions.DISTRIBUTIONS:
            key = signing[f"cuda-{distribution.cuda_key}"]
            self._publish(f"cuda/{distribution.id}", code, [key], partial(self._write_cuda, distribution, key))
        write_toolkit = partial(self._write_toolkit, toolkit_key)
        self._publish("libnvidia-container", ("container_toolkit.py",), [toolkit_key], write_toolkit)
        self._publish("docker", ("docker.py",), [docker_key], partial(self._write_docker, docker_key))
        self._publish("kernel", _KERNEL, [], self._write_kernel, KVER)
        indexes = {suite: self._archive.index(debian) for suite, debian in ubuntu.DEBIAN_SUITES.items()}
        sums = [hashlib.sha256(index).hexdigest() for index in indexes.values()]
        write_ubuntu = partial(ubuntu.write, debian=indexes, key=signing["ubuntu"])
        self._publish("ubuntu", (*_KERNEL, "ubuntu.py"), [signing["ubuntu"]], write_ubuntu, *sums)

    def _publish(
        self, name: str, code: Sequence[str], signers: Sequence[Key], write: Callable[[Path], None], *words: str
    ) -> None:
        """Build a repository with `write`, unless one from the same inputs exists, and link it below www."""
        inputs = [_STANDINS, *(_CODE / file for file in (*_SHARED, *code))]
        stamp = _fingerprint(inputs, *(key.fingerprint for key in signers), *words)
        place = self._built / f"{name.replace('/', '-')}-{stamp}"
        if not place.is_dir():
            self._say(f"mirror: building {name}")
            self._built.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=self._built))
            try:
                write(scratch)
                scratch.chmod(0o755)
                scratch.replace(place)
            except BaseException:
                shutil.rmtree(scratch)
                raise
        os.utime(place)
        self._forget_old(name, place)
        link = self._www / name
        before = link.resolve() if link.is_symlink() else None
        if before == place.resolve():
            return
        link.parent.mkdir(parents=True, exist_ok=True)
        beside = link.with_name(f".{link.name}.new")
        beside.unlink(missing_ok=True)
        beside.symlink_to(os.path.abspath(place))
        beside.replace(link)

    def _forget_old(self, name: str, kept: Path) -> None:
        """Remove builds of this repository from other inputs that no lab has published for days."""
        for place in self._built.glob(f"{name.replace('/', '-')}-{'[0-9a-f]' * 16}"):
            if place != kept and time.time() - place.stat().st_mtime > _KEPT:
                shutil.rmtree(place)

    def _write_cuda(self, distribution: Distribution, key: Key, directory: Path) -> None:
        fields = {"Origin": "NVIDIA", "Label": "NVIDIA CUDA", "Architecture": "x86_64"}
        everything = nvidia.packages(distribution, key, docker.dkms(self._archive))
        aptrepo.write_flat(directory / "x86_64", everything, fields, key)
        shutil.copyfile(key.armored, directory / "x86_64" / f"{distribution.cuda_key}.pub")

    def _write_toolkit(self, key: Key, directory: Path) -> None:
        fields = {"Origin": "https://nvidia.github.io/libnvidia-container", "Label": "NVIDIA CORPORATION"}
        aptrepo.write_flat(directory / "stable/deb/amd64", container_toolkit.packages(), fields, key)
        (directory / "stable/deb/nvidia-container-toolkit.list").write_text(container_toolkit.list_file())
        shutil.copyfile(key.armored, directory / "gpgkey")

    def _write_docker(self, key: Key, directory: Path) -> None:
        fields = {"Origin": "Docker", "Label": "Docker CE"}
        for distribution in distributions.DISTRIBUTIONS:
            self._say(f"mirror: repacking Debian's Docker for {distribution.codename}")
            root = directory / "linux" / distribution.family
            packages = docker.packages(self._archive, distribution)
            aptrepo.write_suite(root, distribution.codename, "stable", packages, fields, key)
            shutil.copyfile(key.armored, root / "gpg")

    def _write_kernel(self, directory: Path) -> None:
        fields = {"Origin": "rigup lab", "Label": "rigup lab kernels"}
        aptrepo.write_flat(directory, kernel.packages(KVER), fields, None)
