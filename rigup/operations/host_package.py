"""Install the host programs as one directory, and put them to use by replacing one link.

Each version is a directory named for a digest of its content, and `current` is a link to one of them. A
program resolves the link once, at its start, and imports everything from that directory, so no process mixes two
versions. It holds a shared lock on the directory; a deploy removes only directories that nobody holds.
"""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from collections.abc import Generator, Mapping
from functools import cache
from pathlib import Path

from pyinfra.api.command import FunctionCommand, QuoteString, StringCommand
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.facts.files import FileState, Tree, parse_tree
from rigup.operations._host import check, run, work
from rigup.operations._ledger import note_directory
from rigup.operations.files import Rewrite, show
from rigup.paths import HOST_VERSIONS
from rigup.resources import FILES

LAUNCHER = "rigup-host"


@cache
def package_files(directory: Path = FILES) -> Mapping[str, bytes]:
    """Return the content of each file of the host programs, by its path relative to the version's directory."""
    paths = [
        directory / LAUNCHER,
        *sorted(directory.glob("check_*.py")),
        *sorted((directory / "rigup_host").rglob("*.py")),
    ]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def mode_of(path: str) -> str:
    """Return the mode of a file of the package: only the launcher is executed."""
    return "755" if path == LAUNCHER else "644"


def version_of(files: Mapping[str, bytes]) -> str:
    """Return the digest that a version's directory is named for: of the paths and contents of its files."""
    digest = hashlib.sha256()
    for path, content in sorted(files.items()):
        digest.update(f"{path} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def tree_of(files: Mapping[str, bytes], user: str, group: str) -> dict[str, FileState]:
    """Return what the `Tree` fact reports for an intact copy of these files."""
    directories = {parent.as_posix() for path in files for parent in list(Path(path).parents)[:-1]}
    return {directory: FileState("directory", "755", user, group) for directory in directories} | {
        path: FileState("regular file", mode_of(path), user, group, hashlib.sha256(content).hexdigest())
        for path, content in files.items()
    }


def archive_of(files: Mapping[str, bytes]) -> bytes:
    """Return the files as a compressed tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), int(mode_of(path), 8)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@operation()
def installed(
    versions: str = HOST_VERSIONS, source: Path = FILES, user: str = "root", group: str = "root"
) -> Generator[FunctionCommand, None, None]:
    """Install the host programs as a new version, verify it, put it to use, and remove versions without users.

    + versions: the directory of all versions and of the link `current`
    + source: the directory with the programs on the control machine

    A damaged version is not repaired: an intact copy with a longer name replaces it, so that programs that start
    meanwhile see either one.
    """
    files = package_files(source)
    version, expected, current = version_of(files), tree_of(files, user, group), f"{versions}/current"
    there: dict[str, FileState] = host.get_fact(Tree, path=current)
    if there == expected:
        host.noop(f"the host programs are version {version}")
        return
    # On a host without any, the files are as in the checkout.
    for path in sorted(files) if there else ():
        if there.get(path) != expected[path]:
            show(host, Rewrite(f"{current}/{path}", mode_of(path), there.get(path), files[path]))

    def install(host: Host) -> None:
        failing = f"could not install the host programs on {host.name}"
        place = QuoteString(versions)
        made = check(
            host,
            StringCommand(
                "( test -d", place, "|| (", note_directory(versions), "&& umask 022 && mkdir -p", place, ") )"
            ),
            StringCommand("&& new=$(mktemp -d", QuoteString(f"{versions}/{version}.XXXXXX"), ")"),
            StringCommand('&& chmod 755 "$new" && base64 -d | tar -xzm --no-same-owner -C "$new" && echo "$new"'),
            stdin=base64.b64encode(archive_of(files)).decode(),
            failing=failing,
        )
        new = made.lines[-1]
        if parse_tree(list(run(host, Tree().command(new)).lines)) != expected:
            raise OperationError(f"{failing}: {new} is not what was sent. Check the disk, and deploy again.")
        final = QuoteString(f"{versions}/{version}")
        kept = check(
            host,
            StringCommand("find", QuoteString(new), "-exec sync {} + && if test -e", final),
            StringCommand(
                "; then echo", QuoteString(new), "; else mv -T", QuoteString(new), final, "&& echo", final, "; fi"
            ),
            failing=failing,
        )
        name = kept.lines[-1].rpartition("/")[2]
        check(
            host,
            StringCommand("ln -sfn", QuoteString(name), QuoteString(f"{versions}/.current")),
            StringCommand("&& mv -T", QuoteString(f"{versions}/.current"), QuoteString(current), "&& sync", place),
            # A program holds a lock on its version while it runs.
            StringCommand("&& find", place, "-mindepth 1 -maxdepth 1 -type d ! -name", QuoteString(name)),
            StringCommand("-exec flock --nonblock {} rm -rf -- {} ';'"),
            failing=failing,
        )

    yield work(install, f"install version {version} of the host programs")
