"""The lock: what loose names stand for, written down once beside the inventory.

The inventory says `595` or `cu130-nightly`; the lock says which version and which digest that was when it was first
asked. Every later deploy and every rebuilt host gets the same. `rigup update` moves it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError

from rigup import atomic
from rigup.catalog.loader import Checkpoint
from rigup.config.yaml_file import complaint, findings_of, read_document
from rigup.errors import InputError, RigupError

__all__ = [
    "CheckpointLock",
    "ImageLock",
    "Lock",
    "VenvLock",
    "checkpoint_revision",
    "read",
    "write",
]

HEADER = """\
# Written by rigup: what the loose names in the inventory stood for when they were first resolved.
# Keep it with the inventory. `rigup update` moves it and shows what changes; do not edit it by hand.
"""


def _matches(pattern: str, what: str):  # type: ignore[no-untyped-def]
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise complaint(f"{value!r} is no {what}", "remove this entry; the next run resolves it again")
        return value

    return AfterValidator(check)


Digest = Annotated[str, _matches(r"sha256:[0-9a-f]{64}", "digest")]
Commit = Annotated[str, _matches(r"[0-9a-f]{40}", "commit")]
Sha256 = Annotated[str, _matches(r"[0-9a-f]{64}", "sha256")]
Requirement = Annotated[str, _matches(r"[A-Za-z0-9._-]+==[^ ]+( --hash=sha256:[0-9a-f]{64})+", "hashed requirement")]
Published = Annotated[str, _matches(r"[0-9]+ (sha256:[0-9a-f]{64}|git:[0-9a-f]{40})", "size and checksum")]
AptVersion = Annotated[str, _matches(r"[0-9][A-Za-z0-9.+:~-]*", "apt version")]


def _in_seconds(value: datetime) -> datetime:
    # A naive time cannot be compared, and what is resolved must equal what is later read from the file.
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    return aware.astimezone(UTC).replace(microsecond=0)


Created = Annotated[datetime, AfterValidator(_in_seconds)]
Bytes = Annotated[int, Strict(), Field(ge=0)]


class Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageLock(Entry):
    """What an image tag named: its digest, when it was made, its compressed size, the CUDA version it holds."""

    digest: Digest
    created: Created
    bytes: Bytes
    cuda: str | None = None


class CheckpointLock(Entry):
    """What a branch of a hub repository named: its commit, the size of its files together, and how many there are.

    `listing` has each file's path, with its size and what the hub states as its checksum; a lock of an earlier rigup
    lacks it, and the next run fills it in. `random_weights` is True where the publisher tags the repository so.
    """

    revision: Commit
    bytes: Bytes
    files: Annotated[int, Strict(), Field(ge=1)]
    listing: dict[str, Published] = {}
    random_weights: Literal[True] | None = None


class VenvLock(Entry):
    """What pinned packages bring along: each as `NAME==VERSION --hash=sha256:...`, with all wheels that fit."""

    requirements: Annotated[tuple[Requirement, ...], Field(min_length=1)]


class Lock(Entry):
    """All that has been resolved for one inventory.

    `packages` is by distribution, then by what was asked for (`driver-595`, `docker`, `toolkit`, `cuda-toolkit-13-2`),
    then by apt package: two hosts of one distribution may ask for different driver branches.
    """

    images: dict[str, ImageLock] = {}
    venvs: dict[str, VenvLock] = {}
    checkpoints: dict[str, CheckpointLock] = {}
    packages: dict[str, dict[str, dict[str, AptVersion]]] = {}
    keys: dict[str, Sha256] = {}

    def versions(self, distro: str, group: str) -> Mapping[str, str]:
        """The apt versions of one group. Raises RigupError where it was never resolved."""
        try:
            return self.packages[distro][group]
        except KeyError:
            raise RigupError(f"the lock has no {group} for {distro}: run `rigup lock`") from None

    def merged(self, newer: Lock) -> Lock:
        """This lock with every entry of `newer` added, or put in its place."""
        packages = {distro: dict(groups) for distro, groups in self.packages.items()}
        for distro, groups in newer.packages.items():
            packages.setdefault(distro, {}).update(groups)
        return Lock(
            images={**self.images, **newer.images},
            venvs={**self.venvs, **newer.venvs},
            checkpoints={**self.checkpoints, **newer.checkpoints},
            packages=packages,
            keys={**self.keys, **newer.keys},
        )

    def flat(self) -> dict[str, str]:
        """Every entry as one line each, for showing what moved."""
        entries = {f"image {tag}": image.digest for tag, image in self.images.items()}
        for name, venv in self.venvs.items():
            pins = (requirement.split(" ")[0].partition("==") for requirement in venv.requirements)
            entries |= {f"venv {name} {package}": version for package, _, version in pins}
        entries |= {f"checkpoint {name}": checkpoint.revision for name, checkpoint in self.checkpoints.items()}
        for distro, groups in self.packages.items():
            for group, versions in groups.items():
                entries |= {f"package {distro}/{group} {name}": version for name, version in versions.items()}
        return entries | {f"key {url}": digest for url, digest in self.keys.items()}


def read(path: Path) -> Lock:
    """Read a lock; an absent file is an empty lock. Raises InputError with file, line and key for each wrong entry."""
    if not path.exists():
        return Lock()
    document = read_document(path)
    try:
        return Lock.model_validate(document.data or {})
    except ValidationError as error:
        raise InputError(findings_of(error, Lock, document)) from error


def text(lock: Lock) -> str:
    """The file's text: sorted, so that a moved entry is one changed line."""
    data = lock.model_dump(mode="json", exclude_none=True, exclude=None if lock.venvs else {"venvs"})
    return HEADER + yaml.safe_dump(data, sort_keys=True, default_flow_style=False, width=120, allow_unicode=True)


def write(path: Path, lock: Lock) -> bool:
    """Write a lock, whole or not at all. True when the file's text changed."""
    wanted = text(lock)
    if path.exists() and path.read_text(encoding="utf-8") == wanted:
        return False
    try:
        # It holds no secret and belongs to the team.
        atomic.write(path, wanted, 0o644)
    except OSError as error:
        raise RigupError(
            f"{path}: the lock cannot be written: {error.strerror}: it must be kept with the inventory"
        ) from error
    return True


def checkpoint_revision(checkpoint: Checkpoint, lock: Lock) -> str:
    """The commit of a checkpoint. Raises RigupError where it is neither declared nor locked."""
    if checkpoint.key in lock.checkpoints:
        return lock.checkpoints[checkpoint.key].revision
    raise RigupError(f"the lock has no checkpoint {checkpoint.key}: run `rigup lock`")
