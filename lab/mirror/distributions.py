"""The distributions that the lab's repositories are for: one row for each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Distribution:
    """A distribution as NVIDIA and Docker publish for it.

    `libc` is the version of its C library, `drivers` are the versions in its CUDA repository, oldest first, and
    `cuda_key` is the name of the key that signs it (README of NVIDIA/cuda-repo-management). `base` is the Debian
    release whose files a lab host with it has, and `logins` are the users that may log in there, the usual one first.
    """

    family: str
    version: str
    codename: str
    libc: str
    drivers: tuple[str, ...]
    base: str
    logins: tuple[str, ...] = ("ops", "root")
    cuda_key: str = "3bf863cc"

    @property
    def id(self) -> str:
        """NVIDIA's name for it."""
        return f"{self.family}{self.version.replace('.', '')}"

    @property
    def name(self) -> str:
        """How people call it."""
        return f"{self.family.title()} {self.codename}"

    @property
    def docker_suffix(self) -> str:
        """How the versions of Docker's packages end."""
        return f"{self.family}.{self.version}~{self.codename}"


_DRIVERS = ("580.173.02", "595.71.05", "595.91.07", "610.57.04")

DISTRIBUTIONS = (
    Distribution("debian", "12", "bookworm", "2.36", _DRIVERS, "bookworm"),
    # NVIDIA published no 580 for Debian 13, and signs with another key (cuda-repo-management issues 38 and 40).
    Distribution("debian", "13", "trixie", "2.41", _DRIVERS[1:], "trixie", cuda_key="8793F200"),
    # Debian 13 is nearest to its C library 2.39 and systemd 255. Its cloud images close the login of root.
    Distribution("ubuntu", "24.04", "noble", "2.39", _DRIVERS, "trixie", ("ubuntu",)),
)

RELEASES = {each.codename: each for each in DISTRIBUTIONS}
"""What a lab host can run, by codename."""
LOGINS = tuple(dict.fromkeys(login for each in DISTRIBUTIONS for login in each.logins))
