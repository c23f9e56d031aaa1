"""Read the package indexes of apt repositories, and choose versions from them.

Only names and versions are read here. Signatures are apt's business on the host: it verifies every index and every
package before it installs anything.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterable, Mapping

from debian.debian_support import Version

from rigup.distros.apt_sources import Repository
from rigup.distros.driver import DOCKER_PACKAGES, PIN, TOOLKIT_FLOOR, TOOLKIT_PACKAGES, DriverPackages, upstream
from rigup.lock.http import Unresolved, Web
from rigup.lock.lockfile import KeyLock
from rigup.lock.openpgp import fingerprints

Index = Mapping[str, list[str]]

MAX_INDEX_BYTES = 256 << 20
"""Bytes of a decompressed index; those of Debian's own archive have 50 MB."""


def parse_index(text: str) -> dict[str, list[str]]:
    """Return `{package: versions}` of a Packages file, for amd64, oldest version first."""
    found: dict[str, set[str]] = {}
    for paragraph in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and not line.startswith((" ", "\t"))
        )
        if fields.get("Architecture") in ("amd64", "all") and "Package" in fields and "Version" in fields:
            found.setdefault(fields["Package"].strip(), set()).add(fields["Version"].strip())
    return {name: sorted(versions, key=Version) for name, versions in found.items()}


def read_index(web: Web, repository: Repository) -> dict[str, list[str]]:
    """Download and parse a repository's index. Raises Unresolved."""
    setting = repository.setting
    answer = web.get(setting, repository.index_url)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(answer.content)) as file:
            content = file.read(MAX_INDEX_BYTES + 1)
        if len(content) > MAX_INDEX_BYTES:
            raise Unresolved(
                setting, repository.index_url, f"has more than {MAX_INDEX_BYTES} bytes", f"check {setting}"
            )
        text = content.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise Unresolved(setting, repository.index_url, "is not a gzipped package index", f"check {setting}") from error
    return parse_index(text)


def read_key(web: Web, repository: Repository) -> KeyLock:
    """Download a repository's key. Raises Unresolved."""
    content = web.get(repository.setting, repository.key_url).content
    try:
        return KeyLock(sha256=hashlib.sha256(content).hexdigest(), fingerprints=fingerprints(content))
    except ValueError as error:
        reason = f"is not an apt key: {error}"
        raise Unresolved(repository.setting, repository.key_url, reason, f"check {repository.setting}") from error


def accepted_key(key: KeyLock, repository: Repository) -> KeyLock:
    """Return the key. Raises Unresolved if it is neither the publisher's nor named in the inventory."""
    if strange := sorted({*key.fingerprints} - repository.fingerprints):
        reason = f"has the key {', '.join(strange)}, which is not the publisher's"
        remedy = f"if you trust it, set apt_keys: [{', '.join(strange)}]"
        raise Unresolved(repository.setting, repository.key_url, reason, remedy)
    return key


class _Chooser:
    """Chooses versions from one index, and reports what is missing in it."""

    def __init__(self, index: Index, setting: str, url: str):
        self.index, self.setting, self.url = index, setting, url

    def newest(self, name: str, fits: Callable[[str], bool] = lambda version: True, what: str = "") -> str:
        offered = self.index.get(name, [])
        fitting = [version for version in offered if fits(version)]
        if fitting:
            return max(fitting, key=Version)
        shown = ", ".join(dict.fromkeys(upstream(version) for version in offered)) or "no version"
        reason = f"has no {name}{' ' + what if what else ''}, only {shown}"
        raise Unresolved(self.setting, self.url, reason, f"change {self.setting}, or use a mirror that has it")

    def same(self, names: Iterable[str], version: str) -> dict[str, str]:
        """Return these packages at one upstream version."""
        return {name: self.newest(name, lambda v: upstream(v) == version, version) for name in names}


def choose_driver(index: Index, table: DriverPackages, exact: str | None, url: str) -> dict[str, str]:
    """Return the driver's pin and packages at one version: `exact`, else the branch's newest. Raises Unresolved."""
    chooser = _Chooser(index, "driver_version" if exact else "driver_branch", url)
    if exact:
        module = chooser.newest(table.module, lambda version: upstream(version) == exact, exact)
    else:
        branch = f"{table.branch}."
        module = chooser.newest(table.module, lambda v: upstream(v).startswith(branch), f"of branch {table.branch}")
    version = upstream(module)
    chosen = chooser.same(dict.fromkeys((*table.packages, table.module)), version)
    if table.pin:
        # Prefer the pin of this exact version: it keeps the dependencies at the locked version, too.
        names = [f"{PIN}{version}", table.pin]
        pin = next((name for name in names if name in index), table.pin)
        chosen[pin] = chooser.newest(pin)
    return chosen


def choose_docker(index: Index, exact: str | None, url: str) -> dict[str, str]:
    """Return Docker's packages: engine and client at `exact`, else the newest; the others the newest.

    Raises Unresolved.
    """
    chooser = _Chooser(index, "docker_version" if exact else "docker_mirror", url)
    engine, client, *others = DOCKER_PACKAGES
    version = exact or upstream(chooser.newest(engine, _released))
    return chooser.same((engine, client), version) | {name: chooser.newest(name, _released) for name in others}


def choose_toolkit(index: Index, exact: str | None, url: str) -> dict[str, str]:
    """Return the toolkit's four packages at one version: `exact`, else the newest that all have. Raises Unresolved."""
    chooser = _Chooser(index, "container_toolkit_version" if exact else "toolkit_mirror", url)
    if exact:
        return chooser.same(TOOLKIT_PACKAGES, exact)
    complete = set.intersection(*({upstream(v) for v in index.get(name, [])} for name in TOOLKIT_PACKAGES))

    def fits(version: str) -> bool:
        return (
            _released(version)
            and upstream(version) in complete
            and Version(upstream(version)) >= Version(TOOLKIT_FLOOR)
        )

    newest = chooser.newest(TOOLKIT_PACKAGES[0], fits, f"of {TOOLKIT_FLOOR} or newer with all four packages")
    return chooser.same(TOOLKIT_PACKAGES, upstream(newest))


def choose_cuda(index: Index, package: str, url: str) -> dict[str, str]:
    """Return the CUDA toolkit's newest version. Raises Unresolved."""
    return {package: _Chooser(index, "cuda_toolkit", url).newest(package)}


def _released(version: str) -> bool:
    return "~rc" not in version and "~beta" not in version
