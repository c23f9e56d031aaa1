"""Files that are replaced atomically: written next to the old one, validated, and only then renamed over it.

Content is sent on the standard input of one command, or downloaded, into a directory that only root can enter, and its
checksum is verified there. It never appears in a command line, in a directory that others can write, or in a diff.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.exceptions import OperationError, OperationValueError
from pyinfra.api.hiddenvalue import HiddenValue
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host, state

from rigup import paths
from rigup.facts.files import FileInfo, FileState, FileText
from rigup.facts.ledger import HostLedger
from rigup.ledger import Ledger, added, backup_of, merge, unmerge
from rigup.operations._host import Commands, check, refusal, run, work
from rigup.operations._ledger import note_directory, note_file, note_keys
from rigup.text import from_json


@dataclass(frozen=True)
class Rewrite:
    """A file that an operation is about to write: its present state (None: it does not exist) and its new content.

    `after` is None for a secret file. `before` is the present text, if the operation has read it anyway.
    """

    dest: str
    mode: str
    there: FileState | None
    after: bytes | None
    before: str | None = None


_show: Callable[[Host, Rewrite], None] | None = None


def show_rewrites(show: Callable[[Host, Rewrite], None]) -> None:
    """Call `show` from now on for every file that an operation is going to write. For a dry run, not for a deploy."""
    global _show
    _show = show


def show(host: Host, rewrite: Rewrite) -> None:
    """Pass on a file that is about to be written to the function that `show_rewrites` was called with, if any."""
    if _show:
        _show(host, rewrite)


def place(
    host: Host,
    dest: str,
    content: bytes,
    *,
    mode: str,
    user: str,
    group: str,
    validate: Sequence[str] | None = None,
    backup: bool = False,
    keys: Mapping[str, Any] | None = None,
) -> None:
    """Write `content` to `dest` atomically, or change nothing and raise `OperationError`.

    The directory of `dest` must not be writable by others, who could replace what is verified in it.
    `validate` is a command line in which `%s` stands for the new file, which already has its final name (in another
    directory), so that tools that depend on the name, such as `systemd-analyze verify`, can check it.
    The host's ledger records that the file belongs to rigup; or, with `keys`, that only these keys in it do.
    """
    encoded = base64.b64encode(content).decode()
    owner = f"{user}:{group}"
    digest = hashlib.sha256(content).hexdigest()
    note = note_file(dest, digest) if keys is None else note_keys(dest, keys)
    _replace(host, dest, "base64 -d", encoded, digest, note, mode, owner, validate, backup)


def _replace(
    host: Host,
    dest: str,
    source: str | StringCommand,
    stdin: str | None,
    digest: str,
    note: StringCommand,
    mode: str,
    owner: str,
    validate: Sequence[str] | None = None,
    backup: bool = False,
) -> None:
    """Replace `dest` by the output of the command `source`, whose SHA-256 must be `digest`; see `place`."""
    directory, base = posixpath.split(dest)
    staging = posixpath.join(directory, f".rigup-new.{base}")
    new = posixpath.join(staging, base)
    parent, temporary, target, new_file = (QuoteString(path) for path in (directory, staging, dest, new))
    try:
        check(
            host,
            StringCommand("( test -d", parent, "|| ("),
            StringCommand(note_directory(directory), "&& umask 022 && mkdir -p", parent, ") )"),
            StringCommand(
                '&& { test -z "$(find -H',
                parent,
                '-maxdepth 0 -perm -002)"',
                "|| { echo others can write to",
                parent,
                ">&2; false; }; }",
            ),
            StringCommand("&& rm -rf", temporary, "&& mkdir -m 0700", temporary),
            StringCommand("&& umask 077 &&", source, ">", new_file),
            stdin=stdin,
            failing=f"could not write {new} on {host.name}",
        )
        check(
            host,
            StringCommand("echo", QuoteString(f"{digest}  {new}"), "| sha256sum --check --status"),
            failing=f"{dest} on {host.name} was not changed: the new one does not have the SHA-256 {digest}",
        )
        if validate:
            argv = (QuoteString(argument.replace("%s", new)) for argument in validate)
            check(host, *argv, failing=f"{dest} on {host.name} was not changed: `{validate[0]}` refused the new one")
        check(
            host,
            note,
            "&&",
            StringCommand("cp -a", target, QuoteString(backup_of(dest)), "&&") if backup else "",
            StringCommand("chown", QuoteString(owner), new_file, "&& chmod", QuoteString(mode), new_file),
            StringCommand("&& sync", new_file, "&& mv -T", new_file, target, "&& rmdir", temporary),
            failing=f"could not replace {dest} on {host.name}",
        )
    except OperationError:
        run(host, "rm -rf", temporary)
        raise


def _occupied(dest: str, there: FileState | None) -> str | None:
    """Return why `dest` cannot be replaced, if it cannot."""
    if there is None or there.is_regular:
        return None
    return f"{dest} is a {there.kind}; rigup replaces only regular files. Move it away and run again."


def _content_of(content: str | bytes | HiddenValue | None, src: str | None) -> bytes:
    if (content is None) == (src is None):
        raise OperationValueError("files.install takes either `content` or `src`")
    if src is not None:
        return Path(os.path.join(state.cwd or "", src)).read_bytes()
    if isinstance(content, HiddenValue):
        content = content.unmask()
    assert content is not None
    return content.encode() if isinstance(content, str) else content


@operation()
def install(
    dest: str,
    content: str | bytes | HiddenValue | None = None,
    src: str | None = None,
    mode: str = "644",
    user: str = "root",
    group: str = "root",
    validate: Sequence[str] | None = None,
    backup: bool = False,
    secret: bool = False,
) -> Commands:
    """Write the file `dest` with this content, mode and owner.

    + content: the text or bytes; a `HiddenValue` for a secret
    + src: instead of `content`, a file on the control machine, relative to the deploy
    + mode: octal digits; missing parent directories are created with 0755
    + validate: a command that checks the new file (`%s`) before it replaces the old one
    + backup: keep the old file in `DEST.rigup-backup`
    + secret: refuse a mode that lets anyone but the owner read it; name the operation, or pass a `HiddenValue`: pyinfra
      shows the arguments of operations without a name
    """
    if secret and mode[-2:] != "00":
        raise OperationValueError(f"{dest} is secret, but its mode {mode} lets others read it")
    expected = _content_of(content, src)
    there: FileState | None = host.get_fact(FileInfo, path=dest)
    if problem := _occupied(dest, there):
        yield refusal(problem)
        return
    same_content = there is not None and there.sha256 == hashlib.sha256(expected).hexdigest()
    if same_content and there is not None and (there.mode, there.user, there.group) == (mode.lstrip("0"), user, group):
        host.noop(f"{dest} is up to date")
        return

    if _show:
        hide = secret or isinstance(content, HiddenValue)
        _show(host, Rewrite(dest, mode, there, None if hide else expected))

    def put(host: Host) -> None:
        keep = backup and there is not None and not same_content
        place(host, dest, expected, mode=mode, user=user, group=group, validate=validate, backup=keep)

    yield work(put, f"install {dest}")


@dataclass(frozen=True)
class Merged:
    """A merged JSON file: its content, its owner (with an empty `kind` for a new file), and the merged keys."""

    content: bytes
    owner: FileState
    values: Mapping[str, Any]


def merged_file(
    dest: str, values: Mapping[str, Any], unless: Mapping[str, Collection[str]] | None = None
) -> Merged | None:
    """Return the JSON file `dest` of the current host with `values` merged into it; None if it has them already.

    Objects are merged key by key, missing list entries are put in front, and all other values replace the present
    ones. Keys of an earlier deploy (see the ledger) that `values` no longer has are removed. A key of `unless` is left
    out if the file has one of its keys, which no deploy has set.
    Raises OperationError if the file cannot be merged into.
    """
    there: FileState | None = host.get_fact(FileInfo, path=dest)
    if problem := _occupied(dest, there):
        raise OperationError(f"{host.name}: {problem}")
    text = host.get_fact(FileText, path=dest)
    before = host.get_fact(FileText, path=f"{paths.BEFORE}{dest}")
    former: Ledger = host.get_fact(HostLedger)
    try:
        present, ours = _object(text), former.keys.get(dest, {})
        others = unmerge(present, ours, _object(before)).values
        theirs = others.keys() - ours.keys()
        values = {key: value for key, value in values.items() if not theirs & {*(unless or {}).get(key, ())}}
        merged = merge(others, values)
    except ValueError as error:
        raise OperationError(
            f"{host.name}: {dest} cannot be merged into: {error}. Fix or move that file and run again."
        ) from error
    if text is not None and json.dumps(merged, sort_keys=True) == json.dumps(present, sort_keys=True):
        return None
    # In the present order.
    content = json.dumps({key: merged[key] for key in (*present, *merged) if key in merged}, indent=4) + "\n"
    owner = there or FileState("", "644", "root", "root")
    if _show:
        # Only our own keys: those of others may be secret.
        then, now = (_ours(each, values) for each in (text, content))
        _show(host, Rewrite(dest, owner.mode, there, now.encode(), then))
    return Merged(content.encode(), owner, added(values, others))


def _object(text: str | None) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ValueError for anything else."""
    found = from_json(text) if text and text.strip() else {}
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    return found


def _ours(text: str | None, values: Mapping[str, Any]) -> str:
    """Return the part of a JSON file that `values` covers: its keys, and those list entries that it has."""

    def pick(there: Any, ours: Any) -> Any:
        if isinstance(ours, Mapping) and isinstance(there, Mapping):
            return {key: pick(there[key], value) for key, value in ours.items() if key in there}
        if isinstance(ours, list) and isinstance(there, list):
            return [each for each in there if each in ours]
        return there

    return json.dumps(pick(from_json(text), values), indent=4) + "\n" if text and text.strip() else ""


def place_merged(host: Host, dest: str, merged: Merged, validate: Sequence[str]) -> None:
    """Write what `merged_file` returned, with the present owner and mode, and a backup of the old file."""
    owner = merged.owner
    place(
        host,
        dest,
        merged.content,
        mode=owner.mode,
        user=owner.user,
        group=owner.group,
        validate=validate,
        backup=owner.is_regular,
        keys=merged.values,
    )


@operation()
def download(
    src: str, dest: str, sha256sum: str, mode: str = "644", user: str = "root", group: str = "root"
) -> Commands:
    """Download `src` to `dest`, which is replaced only by a file with this SHA-256."""
    there: FileState | None = host.get_fact(FileInfo, path=dest)
    if problem := _occupied(dest, there):
        yield refusal(problem)
        return
    if there is not None and there == FileState(there.kind, mode, user, group, sha256sum):
        host.noop(f"{dest} is up to date")
        return
    fetch = StringCommand(
        "curl -q -sSLf --proto '=http,https' --max-filesize 1048576 --max-time 300 --", QuoteString(src)
    )

    def put(host: Host) -> None:
        _replace(host, dest, fetch, None, sha256sum, note_file(dest, sha256sum), mode, f"{user}:{group}")

    yield work(put, f"download {dest}")


@operation()
def absent(path: str) -> Generator[StringCommand, None, None]:
    """Remove the file `path`; a rebuild restores a file of others."""
    if host.get_fact(FileInfo, path=path) is None:
        host.noop(f"{path} does not exist")
        return
    yield StringCommand(note_file(path, ""), "&& rm -f --", QuoteString(path))
