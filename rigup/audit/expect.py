"""Compare what a plan expects of a host with what was found there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

from rigup.audit.subject import Subject
from rigup.distros.apt_sources import repositories
from rigup.host_config import CLOSED, DEEPEST
from rigup.paths import SYSTEM_UNITS
from rigup.templates import filled

ABSENT = "nothing"


class Deviation(AssertionError):
    """A host is not what its plan says."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"expected: {expected}\nfound:    {found}")
        self.expected, self.found = expected, found


def expect(expected: object, found: object) -> None:
    """Raise Deviation unless both are equal. Of mappings, only the differences are shown."""
    if expected == found:
        return
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        keys = [key for key in {**expected, **found} if expected.get(key, ABSENT) != found.get(key, ABSENT)]
        expected = "; ".join(f"{key}: {_shown(expected.get(key, ABSENT))}" for key in keys)
        found = "; ".join(f"{key}: {_shown(found.get(key, ABSENT))}" for key in keys)
    raise Deviation(_shown(expected), _shown(found))


def hashed(values: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables with hashes for values, which may be secrets, to compare without showing them."""
    return {name: f"sha256 {hashlib.sha256(value.encode()).hexdigest()[:8]}" for name, value in values.items()}


def expect_none(expected: str, deviations: Iterable[str]) -> None:
    """Raise Deviation, with what is expected instead, if there are deviations."""
    found = list(deviations)
    if found:
        raise Deviation(expected, ", ".join(found))


def expect_at_least(what: str, floor: str, found: str) -> None:
    """Raise Deviation if a version, compared by its leading numbers, is below the floor."""
    numbers = [[int(part) for part in re.findall(r"\d+", re.split(r"[-~+]", version)[0])] for version in (floor, found)]
    if numbers[1] < numbers[0]:
        raise Deviation(f"{what} {floor} or newer", found if any(numbers[1]) else "none")


def expect_units(rig: Subject, *names: str) -> None:
    """Raise Deviation if these units on the host differ from those rendered from `templates/`."""
    for name in names:
        expect_file(rig, f"{SYSTEM_UNITS}/{name}", filled(f"{name}.j2"))


def expect_file(rig: Subject, path: str, text: str, mode: str = "644") -> None:
    """Raise Deviation unless the file has this text and mode, and belongs to root."""
    expect_text(path, text, rig.text(path))
    expect_owner(rig, path, mode)


def expect_owner(rig: Subject, path: str, mode: str = "644") -> None:
    """Raise Deviation unless `path` is a regular file that belongs to root and has this mode."""
    expect({path: f"{mode} root:root f"}, {path: rig.output("find %s -maxdepth 0 -printf '%%m %%u:%%g %%y'", path)})


def expect_open(rig: Subject, path: str, depth: int = DEEPEST) -> None:
    """Raise Deviation if other users cannot read what is at and below `path`, down to `depth` levels."""
    found = rig.names(f"find %s -maxdepth {depth} {CLOSED} -print0", path)
    expect_none(f"{path} readable by every user", [f"{each} is not" for each in found[:3]])


def expect_repository(rig: Subject, name: str) -> None:
    """Raise Deviation unless apt reads the repository from its source file alone, signed by the key in the lock."""
    repository = repositories(rig.distro, rig.settings)[name]
    expect_file(rig, repository.source_path, repository.source_text)
    locked = rig.lock.keys[repository.key_url].sha256 if repository.key_url in rig.lock.keys else "no key in the lock"
    key = rig.text(repository.key_path)
    found = "no such file" if key is None else hashlib.sha256(key.encode()).hexdigest()
    expect({repository.key_path: locked}, {repository.key_path: found})
    expect_owner(rig, repository.key_path)
    form = "$(REPO_URI) $(SOURCESENTRY)"
    listed = [line.split() for line in rig.output("apt-get indextargets --format %s", form).splitlines()]
    reads = {words[1].rpartition(":")[0] for words in listed if words and words[0].rstrip("/") in repository.uris}
    expect({"apt reads it from": repository.source_path}, {"apt reads it from": ", ".join(sorted(reads))})


def expect_text(what: str, expected: str, found: str | None) -> None:
    """Raise Deviation, with the first line that differs, unless the texts are equal."""
    if expected == found:
        return
    if found is None:
        raise Deviation(what, "no such file")
    ours, theirs = expected.splitlines(), found.splitlines()
    for number in range(max(len(ours), len(theirs))):
        line = ours[number] if number < len(ours) else "the end"
        other = theirs[number] if number < len(theirs) else "the end"
        if line != other:
            raise Deviation(f"{what}, line {number + 1}: {line.strip()}", other.strip())
    raise Deviation(f"{what} as planned", "different line endings")


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value or "nothing"
    if isinstance(value, list | tuple | set):
        return ", ".join(map(str, value)) or "nothing"
    return str(value)
