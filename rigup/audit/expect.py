"""Compare what a plan expects of a host with what was found there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

from rigup.audit.subject import Subject
from rigup.paths import SYSTEM_UNITS
from rigup.templates import filled

__all__ = [
    "Deviation",
    "expect",
    "expect_at_least",
    "expect_none",
    "expect_repository",
    "expect_text",
    "expect_units",
    "hashed",
]

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
    expected = {name: hashlib.sha256(filled(f"{name}.j2").encode()).hexdigest() for name in names}
    listed = rig.output("cd %s && sha256sum -- *.service *.timer 2>/dev/null || true", SYSTEM_UNITS).splitlines()
    found = {name: digest for digest, _, name in (line.partition("  ") for line in listed)}
    expect(expected, {name: found.get(name, "no such file") for name in expected})


def expect_repository(rig: Subject, url: str, key: str) -> None:
    """Raise Deviation unless apt reads packages from `url`, signed by a file whose path contains `key`."""
    # Debian 12's apt prints only the file of the entry, not the key.
    form = "$(REPO_URI) $(SOURCESENTRY)"
    listed = [line.split() for line in rig.output("apt-get indextargets --format %s", form).splitlines()]
    entries = {words[1].rpartition(":")[0] for words in listed if words and words[0].rstrip("/") == url.rstrip("/")}
    texts = [rig.text(path) or "" for path in sorted(entries)]
    keys = {key for text in texts for key in re.findall(r"(?i)signed-by[=:]\s*([^\s\]]+)", text) or ["any key"]}
    if not any(key in path for path in keys):
        raise Deviation(f"{url}, signed by {key}", ", ".join(sorted(keys)) or "apt does not read it")


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
