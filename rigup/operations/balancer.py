"""The keys of the load balancer: each is made on one host, and the others get its SHA-256."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Mapping

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.facts.balancer import SAFE, KeyDigests, KeyValue
from rigup.facts.files import FileInfo, FileState, FileText
from rigup.operations._host import Commands, check, read_now, work
from rigup.operations._wait import say
from rigup.operations.files import Rewrite, place, show

_digests: dict[tuple[str, str], str] = {}
"""The SHA-256 of the keys that this run has seen, by host and path: operations on other hosts need them."""


@operation()
def keys(paths: Mapping[str, str]) -> Commands:
    """Generate the keys that are missing: once, on the host, and readable only by root.

    This operation never reads a key. If a file is removed, the next deploy generates a new key.

    + paths: for each file the word before its key, "" for none
    """
    present: dict[str, KeyValue] = host.get_fact(KeyDigests, paths=list(paths))
    _remember(host, present)
    if all(path in present and present[path].owner == SAFE for path in paths):
        host.noop("the keys of the load balancer exist")
        return

    def make(host: Host) -> None:
        failing = f"could not generate the keys of the load balancer on {host.name}"
        for path, word in paths.items():
            file, new_file = QuoteString(path), QuoteString(f"{path}.new")
            if path in present:
                check(host, "chown root:root --", file, "&& chmod 600 --", file, failing=failing)
                continue
            check(
                host,
                StringCommand("( umask 022 && mkdir -p --", QuoteString(posixpath.dirname(path)), ") && umask 077"),
                StringCommand("&& { printf %s", QuoteString(word), "&& openssl rand -hex 32; } >", new_file),
                StringCommand("&& sync", new_file, "&& mv -T --", new_file, file),
                failing=failing,
            )
        _remember(host, read_now(host, KeyDigests, list(paths)))

    yield work(make, "generate the keys of the load balancer")


@operation()
def digests(dest: str, keys: Mapping[str, tuple[str, str]], form: str) -> Commands:
    """Write the SHA-256 of keys to `dest`, one per line. Keys of hosts that this run leaves out stay as they are.

    + keys: the host and the path of each key, by the label that its line has
    + form: the form of a line, with `{label}` and `{digest}`
    """
    there: FileState | None = host.get_fact(FileInfo, path=dest)
    before: str = host.get_fact(FileText, path=dest) or ""

    def lines() -> dict[str, str]:
        """Return the lines that are known, by label."""
        kept = {label: _line(before, form, label) for label in keys}
        known = {
            label: form.format(label=label, digest=_digests[key]) for label, key in keys.items() if key in _digests
        }
        return {label: line for label, line in kept.items() if line} | known

    def text(found: Mapping[str, str]) -> str:
        return "".join(f"{line}\n" for line in sorted(found.values()))

    found = lines()
    is_written = there is not None and (there.mode, there.user) == ("600", "root") and text(found) == before
    if is_written and found.keys() == keys.keys():
        host.noop(f"{dest} is up to date")
        return
    show(host, Rewrite(dest, "600", there, None))

    def write(host: Host) -> None:
        found = lines()
        for label in sorted(keys.keys() - found.keys()):
            say(host, f"no key of {keys[label][0]} for {label} is known yet: deploy {keys[label][0]} too")
        content = text(found).encode()
        if there is None or there.sha256 != hashlib.sha256(content).hexdigest() or not is_written:
            place(host, dest, content, mode="600", user="root", group="root")

    yield work(write, f"write {dest}")


def _line(text: str, form: str, label: str) -> str:
    """Return the line of a label, "" if there is none."""
    pattern = re.escape(form).replace(r"\{label\}", re.escape(label)).replace(r"\{digest\}", "[0-9a-f]{64}")
    return next((line for line in text.splitlines() if re.fullmatch(pattern, line)), "")


def _remember(host: Host, found: Mapping[str, KeyValue]) -> None:
    _digests.update({(host.name, path): key.digest for path, key in found.items()})
