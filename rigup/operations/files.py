"""Files put in place whole: written beside, checked, and only then renamed over what was there.

Content travels on the standard input of one command into a directory that only root can enter; it never stands in a
command line, in a temporary directory, or in a diff.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyinfra.api.command import FunctionCommand, QuoteString, StringCommand
from pyinfra.api.exceptions import OperationError, OperationValueError
from pyinfra.api.hiddenvalue import HiddenValue
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host, state
from pyinfra.operations import files as pyinfra_files

from rigup import ledger
from rigup.facts.files import FileInfo, FileState, FileText
from rigup.facts.ledger import HostLedger
from rigup.ledger import Ledger, added, backup_of, merge, unmerge
from rigup.operations._host import check, refusal, run, work
from rigup.operations._ledger import note_directory, note_file, note_keys

__all__ = ["Rewrite", "absent", "download", "install", "merged_file", "place", "place_merged", "show_rewrites"]

Commands = Generator[FunctionCommand, None, None]


@dataclass(frozen=True)
class Rewrite:
    """A file that an operation is about to write: what it is now (None: not there) and what shall stand in it.

    `after` is None for a secret file. `before` is the text that it replaces where the operation has read it anyway.
    """

    dest: str
    mode: str
    there: FileState | None
    after: bytes | None
    before: str | None = None


_show: Callable[[Host, Rewrite], None] | None = None


def show_rewrites(show: Callable[[Host, Rewrite], None]) -> None:
    """Have `show` told of every file to be written from now on, within its operation: for a plan, not for a deploy."""
    global _show
    _show = show


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
    """Put `content` at `dest` in one step, or leave everything as it was and raise `OperationError`.

    `validate` is a command line in which `%s` stands for the new file, which already has its final name (in another
    directory): tools that go by a file's name, such as `systemd-analyze verify`, can judge it.
    The host's ledger says that the file is ours; or, with `keys`, that only these in it are.
    """
    directory, base = posixpath.split(dest)
    staging = posixpath.join(directory, f".rigup-new.{base}")
    new = posixpath.join(staging, base)
    into, here, target, beside = (QuoteString(path) for path in (directory, staging, dest, new))
    try:
        check(
            host,
            StringCommand("( test -d", into, "|| ("),
            StringCommand(note_directory(directory), "&& umask 022 && mkdir -p", into, ") )"),
            StringCommand("&& rm -rf", here, "&& mkdir -m 0700", here),
            StringCommand("&& umask 077 && base64 -d >", beside),
            stdin=base64.b64encode(content).decode(),
            failing=f"could not write {new} on {host.name}",
        )
        if validate:
            argv = (QuoteString(argument.replace("%s", new)) for argument in validate)
            check(host, *argv, failing=f"{dest} on {host.name} stays as it was: `{validate[0]}` refused the new one")
        written = hashlib.sha256(content).hexdigest()
        check(
            host,
            note_file(dest, written) if keys is None else note_keys(dest, keys),
            "&&",
            StringCommand("cp -a", target, QuoteString(backup_of(dest)), "&&") if backup else "",
            StringCommand("chown", QuoteString(f"{user}:{group}"), beside, "&& chmod", QuoteString(mode), beside),
            StringCommand("&& sync", beside, "&& mv -T", beside, target, "&& rmdir", here),
            failing=f"could not put {dest} in place on {host.name}",
        )
    except OperationError:
        run(host, "rm -rf", here)
        raise


def _occupied(dest: str, there: FileState | None) -> str | None:
    """Why `dest` cannot be replaced, if it cannot."""
    if there is None or there.is_regular:
        return None
    return f"{dest} is a {there.kind}; rigup only replaces ordinary files. Move it away and run again."


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
    """Make the file `dest` have this content, mode and owner.

    + content: the text or bytes; a `HiddenValue` for a secret
    + src: instead of `content`, a file on the control machine, relative to the deploy
    + mode: octal digits; missing directories above `dest` are made with 0755
    + validate: a command that judges the new file (`%s`) before it replaces the old one
    + backup: keep what was there in `DEST.rigup-backup`
    + secret: refuses a mode that lets others than the owner read it; name the operation, or pass a `HiddenValue`:
      pyinfra shows the arguments of operations without a name
    """
    if secret and mode[-2:] != "00":
        raise OperationValueError(f"{dest} is secret, but its mode {mode} shows it to others")
    wanted = _content_of(content, src)
    there: FileState | None = host.get_fact(FileInfo, path=dest)
    if problem := _occupied(dest, there):
        yield refusal(problem)
        return
    same_content = there is not None and there.sha256 == hashlib.sha256(wanted).hexdigest()
    if same_content and there is not None and (there.mode, there.user, there.group) == (mode.lstrip("0"), user, group):
        host.noop(f"{dest} is as it shall be")
        return

    if _show:
        hide = secret or isinstance(content, HiddenValue)
        _show(host, Rewrite(dest, mode, there, None if hide else wanted))

    def put(host: Host) -> None:
        keep = backup and there is not None and not same_content
        place(host, dest, wanted, mode=mode, user=user, group=group, validate=validate, backup=keep)

    yield work(put, f"install {dest}")


@dataclass(frozen=True)
class Merged:
    """A JSON file as it shall be: its content, owner (whose `kind` is empty for a file not there yet), and our keys."""

    content: bytes
    owner: FileState
    values: Mapping[str, Any]


def merged_file(dest: str, values: Mapping[str, Any]) -> Merged | None:
    """What to write so that the JSON file `dest` on the current host contains `values`; None when it does.

    Objects are merged key by key, lists get ours in front of others'; all other values replace what was there. What the
    ledger says that an earlier deploy of ours has put there, and that `values` no longer have, is taken out.
    Raises OperationError where the file cannot be merged into.
    """
    there: FileState | None = host.get_fact(FileInfo, path=dest)
    if problem := _occupied(dest, there):
        raise OperationError(f"{host.name}: {problem}")
    text = host.get_fact(FileText, path=dest)
    before = host.get_fact(FileText, path=f"{ledger.BEFORE}{dest}")
    former: Ledger = host.get_fact(HostLedger)
    try:
        present = _object(text)
        others = unmerge(present, former.keys.get(dest, {}), _object(before)).values
        merged = merge(others, values)
    except ValueError as error:
        raise OperationError(
            f"{host.name}: {dest} cannot be merged into: {error}. Mend or move that file and run again."
        ) from error
    if text is not None and json.dumps(merged, sort_keys=True) == json.dumps(present, sort_keys=True):
        return None
    # In the order that was there.
    content = json.dumps({key: merged[key] for key in (*present, *merged) if key in merged}, indent=4) + "\n"
    owner = there or FileState("", "644", "root", "root")
    if _show:
        # Of our own keys alone: the others are not ours to show.
        then, now = (_ours(each, values) for each in (text, content))
        _show(host, Rewrite(dest, owner.mode, there, now.encode(), then))
    return Merged(content.encode(), owner, added(values, others))


def _object(text: str | None) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError where there is another thing."""
    found = json.loads(text) if text and text.strip() else {}
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def _ours(text: str | None, values: Mapping[str, Any]) -> str:
    """What a JSON file says of the keys in `values`, in their order, and of entries of lists that are in them."""

    def pick(there: Any, ours: Any) -> Any:
        if isinstance(ours, Mapping) and isinstance(there, Mapping):
            return {key: pick(there[key], value) for key, value in ours.items() if key in there}
        if isinstance(ours, list) and isinstance(there, list):
            return [each for each in there if each in ours]
        return there

    return json.dumps(pick(json.loads(text), values), indent=4) + "\n" if text and text.strip() else ""


def place_merged(host: Host, dest: str, merged: Merged, validate: Sequence[str]) -> None:
    """`place` for what `merged_file` came to, with the owner and mode that were there, and a backup of what was."""
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
def download(src: str, dest: str, sha256sum: str, mode: str = "644") -> Generator[StringCommand, None, None]:
    """Have the file at the URL `src` at `dest`, with this SHA-256: pyinfra's `files.download` and the ledger's line."""
    commands = list(pyinfra_files.download._inner(src=src, dest=dest, sha256sum=sha256sum, mode=mode))
    if commands:
        yield note_file(dest, sha256sum)
        yield from commands


@operation()
def absent(path: str) -> Generator[StringCommand, None, None]:
    """Have no file at `path`; what others had there comes back with a rebuild."""
    if host.get_fact(FileInfo, path=path) is None:
        host.noop(f"there is no {path}")
        return
    yield StringCommand(note_file(path, ""), "&& rm -f --", QuoteString(path))
