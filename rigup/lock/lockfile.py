"""The lock file: what the loose names in an inventory resolved to, stored next to the inventory.

The inventory says `595`, `cu130-nightly` or `{for: agents}`; the lock says which version, digest and recipe that was
when it was first resolved. Every later deploy and every rebuilt host gets the same. `rigup update` moves it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError

from rigup import atomic, commands
from rigup.catalog.checkpoint import Checkpoint, Files
from rigup.config.mistakes import findings_of
from rigup.config.types import Fingerprint, Matching
from rigup.config.yaml_file import read_document
from rigup.errors import InputError, RigupError, near

HEADER = """\
# Written by rigup: what the loose names in the inventory meant when they were first resolved.
# Keep it with the inventory. `rigup update` moves it and shows what changes; do not edit it by hand.
"""

KINDS = ("choices", "images", "venvs", "checkpoints", "packages", "keys")
"""The kinds of entries, by which `rigup update` can select them."""


# Beside them some repositories have the same weights in another form, in a folder or as consolidated.safetensors.
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")


def _matches(pattern: str, what: str) -> Matching:
    return Matching(pattern, f"is not {what}", "remove this entry; the next run resolves it again")


RecipeName = Annotated[str, _matches(r"[A-Za-z0-9][A-Za-z0-9._-]*", "a recipe's name")]
Digest = Annotated[str, _matches(r"sha256:[0-9a-f]{64}", "a digest")]
Commit = Annotated[str, _matches(r"[0-9a-f]{40}", "a commit")]
Sha256 = Annotated[str, _matches(r"[0-9a-f]{64}", "a sha256")]
Requirement = Annotated[
    str, _matches(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!]+( --hash=sha256:[0-9a-f]{64})+", "a hashed requirement")
]
Published = Annotated[str, _matches(r"[0-9]+ (sha256:[0-9a-f]{64}|git:[0-9a-f]{40})", "a size and a checksum")]
RepositoryPath = Annotated[
    str, _matches(r"(?!(.*/)?\.{1,2}(/|$))[^/\x00-\x1f\x7f]+(/[^/\x00-\x1f\x7f]+)*", "a path in a repository")
]
AptVersion = Annotated[str, _matches(r"[0-9][A-Za-z0-9.+:~-]*", "an apt version")]


def _in_seconds(value: datetime) -> datetime:
    # A naive time cannot be compared, and a resolved entry must equal the one that is later read from the file.
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    return aware.astimezone(UTC).replace(microsecond=0)


Created = Annotated[datetime, AfterValidator(_in_seconds)]
Bytes = Annotated[int, Strict(), Field(ge=0)]


class Entry(BaseModel):
    """The base of the lock's models: frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageLock(Entry):
    """What an image tag resolved to: digest, build time, compressed size in bytes, and the CUDA version inside."""

    digest: Digest
    created: Created
    bytes: Bytes
    cuda: str | None = None


class CheckpointLock(Entry):
    """What a branch of a hub repository resolved to: its commit, the total size of its files, and their number.

    `listing` maps each file's path to its size and the checksum that the hub states. `config` is what `rigup/fit` reads
    of its config.json. `random_weights` is True if the publisher tags the repository so.
    """

    revision: Commit
    bytes: Bytes
    files: Annotated[int, Strict(), Field(ge=1)]
    listing: dict[RepositoryPath, Published] = {}
    config: dict[str, Any] | None = None
    random_weights: Literal[True] | None = None

    @property
    def contents(self) -> Files:
        """What the estimate of the memory needs to know of the files."""
        sizes = [int(entry.split()[0]) for path, entry in self.listing.items() if WEIGHTS.fullmatch(path)]
        return Files(self.config, sum(sizes) or None)


class VenvLock(Entry):
    """Pinned packages and their dependencies: each as `NAME==VERSION --hash=sha256:...`, with all wheels that fit."""

    requirements: Annotated[tuple[Requirement, ...], Field(min_length=1)]


class KeyLock(Entry):
    """The key of an apt repository: the checksum of its file, and the fingerprints of the keys in it."""

    sha256: Sha256
    fingerprints: Annotated[tuple[Fingerprint, ...], Field(min_length=1)]


class Lock(Entry):
    """Everything that has been resolved for one inventory.

    `choices` maps needs, such as `agents-4gpu`, to recipes. `packages` is by distribution, then by group (`driver-595`,
    `docker`, `toolkit`, `cuda-toolkit-13-2`), then by apt package: hosts of the same distribution may use different
    driver branches.
    """

    choices: dict[str, RecipeName] = {}
    images: dict[str, ImageLock] = {}
    venvs: dict[str, VenvLock] = {}
    checkpoints: dict[str, CheckpointLock] = {}
    packages: dict[str, dict[str, dict[str, AptVersion]]] = {}
    keys: dict[str, KeyLock] = {}

    def versions(self, distro: str, group: str) -> Mapping[str, str]:
        """Return the apt versions of one group. Raises RigupError if it was never resolved."""
        try:
            return self.packages[distro][group]
        except KeyError:
            raise RigupError(f"the lock has no {group} for {distro}", f"run `{commands.rigup('lock')}`") from None

    def checkpoint(self, checkpoint: Checkpoint) -> CheckpointLock:
        """Return the entry of a checkpoint. Raises RigupError if it was never resolved."""
        if checkpoint.key not in self.checkpoints:
            raise RigupError(f"the lock has no checkpoint {checkpoint.key}", f"run `{commands.rigup('lock')}`")
        return self.checkpoints[checkpoint.key]

    def merged(self, newer: Lock) -> Lock:
        """Return this lock with the entries of `newer` added; they replace entries of the same name."""
        packages = {distro: dict(groups) for distro, groups in self.packages.items()}
        for distro, groups in newer.packages.items():
            packages.setdefault(distro, {}).update(groups)
        return Lock(
            choices={**self.choices, **newer.choices},
            images={**self.images, **newer.images},
            venvs={**self.venvs, **newer.venvs},
            checkpoints={**self.checkpoints, **newer.checkpoints},
            packages=packages,
            keys={**self.keys, **newer.keys},
        )

    def without(self, words: Sequence[str]) -> Lock:
        """Return this lock without the entries that `words` name: kinds (KINDS) or entries. No words name all.

        A word that names a distribution or an apt package stands for the groups that have it. Raises RigupError for a
        word that names nothing.
        """
        if not words:
            return Lock()
        names = set(KINDS)

        def kept(kind: str, entry: str, aliases: Collection[str]) -> bool:
            names.update((entry, *aliases))
            return not {kind, entry, *aliases}.intersection(words)

        left = Lock(
            choices={key: held for key, held in self.choices.items() if kept("choices", key, ())},
            images={tag: held for tag, held in self.images.items() if kept("images", tag, ())},
            venvs={key: held for key, held in self.venvs.items() if kept("venvs", key, key.split())},
            checkpoints={
                key: held
                for key, held in self.checkpoints.items()
                if kept("checkpoints", key, (key.rpartition("@")[0],))
            },
            packages={
                distro: {group: held for group, held in groups.items() if kept("packages", group, (distro, *held))}
                for distro, groups in self.packages.items()
            },
            keys={url: held for url, held in self.keys.items() if kept("keys", url, ())},
        )
        for word in words:
            if word not in names:
                groups = {group for groups in self.packages.values() for group in groups}
                shown = {*KINDS, *self.choices, *self.images, *self.venvs, *self.checkpoints, *groups}
                meant = near(word, shown)
                remedy = f"did you mean {' or '.join(meant)}?" if meant else f"it has: {', '.join(sorted(shown))}"
                raise RigupError(f"the lock has no entry named {word!r}", remedy)
        return left

    def flat(self) -> dict[str, str]:
        """Return every entry as a name and a single value, to show what moved."""
        entries = {f"choice {need}": recipe for need, recipe in self.choices.items()}
        entries |= {f"image {tag}": image.digest for tag, image in self.images.items()}
        for name, venv in self.venvs.items():
            pins = (requirement.split(" ")[0].partition("==") for requirement in venv.requirements)
            entries |= {f"venv {name} {package}": version for package, _, version in pins}
        entries |= {f"checkpoint {name}": checkpoint.revision for name, checkpoint in self.checkpoints.items()}
        for distro, groups in self.packages.items():
            for group, versions in groups.items():
                entries |= {f"package {distro}/{group} {name}": version for name, version in versions.items()}
        return entries | {f"key {url}": key.sha256 for url, key in self.keys.items()}


def read(path: Path) -> Lock:
    """Read a lock; an absent file is an empty lock. Raises InputError with file, line and key of each wrong entry."""
    if not path.exists():
        return Lock()
    document = read_document(path)
    try:
        return Lock.model_validate(document.data or {})
    except ValidationError as error:
        raise InputError(findings_of(error, Lock, document, document.data)) from error


def text(lock: Lock) -> str:
    """Return the file's text, sorted, so that a moved entry changes only its own lines."""
    data = lock.model_dump(mode="json", exclude_none=True)
    return HEADER + yaml.safe_dump(data, sort_keys=True, default_flow_style=False, width=120, allow_unicode=True)


def write(path: Path, lock: Lock) -> bool:
    """Write a lock atomically. Return whether the file's text changed. Raises RigupError if it cannot be written."""
    content = text(lock)
    if path.exists() and path.read_text(encoding="utf-8") == content:
        return False
    try:
        # It contains no secrets, and the team shares it.
        atomic.write(path, content, 0o644)
    except OSError as error:
        raise RigupError(
            f"{path}: the lock cannot be written ({error.strerror})", "it must be kept next to the inventory"
        ) from error
    return True
