"""YAML files that people write, read so that every error names file, line and key.

PyYAML's node tree has the lines, pydantic's errors have the keys; `Document` joins the two. Inventory, catalog and lock
use it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import PydanticCustomError

from rigup.config.yaml_syntax import LOADER, MAX_DEPTH, REPAIRABLE_BYTES, TEMPLATE, explain, odd_indents, too_deep
from rigup.errors import Finding, InputError

Loc = tuple[str | int, ...]

MAX_BYTES = 2 << 20
"""Bytes of a file; a lock with a hundred checkpoints has half as many."""

MAX_ALIASED = 10_000
"""Values that the aliases of a file may repeat: ten lines of aliases of aliases can stand for billions."""

MAX_REPAIRS = 20
"""Mistakes of syntax that one reading looks behind for more."""

_TAG = "tag:yaml.org,2002:"
_UNPRINTABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_QUOTES = tuple("\u201c\u201d\u201e\u2018\u2019\u201a\u00ab\u00bb")
# What YAML 1.1 reads a word as that people mean as text.
_READ_AS = {"bool": "a boolean", "int": "a number", "float": "a number", "timestamp": "a date", "null": "nothing"}


def complaint(message: str, remedy: str = "") -> PydanticCustomError:
    """Return an error for a pydantic validator to raise; `describe_error` returns its message and remedy."""
    return PydanticCustomError("rigup", "{message}", {"message": message, "remedy": remedy})


@dataclass(frozen=True)
class Document:
    """The content of a YAML file (`data`), the line of each of its keys, and how values other than text are written."""

    path: Path
    data: Any
    lines: Mapping[Loc, int] = field(repr=False)
    texts: Mapping[Loc, str] = field(default_factory=dict, repr=False)

    def line(self, loc: Loc) -> int | None:
        """Return the line of `loc`, or of its nearest parent that is in the file."""
        for length in range(len(loc), -1, -1):
            if (found := self.lines.get(loc[:length])) is not None:
                return found
        return None

    def finding(self, loc: Loc, message: str, remedy: str = "") -> Finding:
        """Return a finding about a key of this file."""
        return Finding(str(self.path), self.line(loc), dotted(loc), message, remedy)


def dotted(loc: Loc) -> str:
    """Return `("hosts", "rig1", "gpus", 0)` as `hosts.rig1.gpus[0]`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def read_document(path: Path, found: list[Finding] | None = None) -> Document:
    """Read one YAML file.

    Raises InputError if the file is missing, too long or not YAML, for an alias that contains itself or repeats too
    much, for an impossible value such as 2027-02-30, and for a key that is set twice (which YAML parsers accept).
    With `found`, a mistake after which there is no doubt about the rest of the file is added to it, and not raised.
    """
    findings = list[Finding]() if found is None else found
    text = _text(path)
    if odd := odd_indents(text):
        findings.append(Finding(str(path), odd.line, "", odd.message, odd.remedy))
        text = odd.meant or text
    for _ in range(MAX_REPAIRS):
        try:
            document = _parsed(text, path, findings)
        except yaml.YAMLError as error:
            wrong = explain(text, error)
            findings.append(Finding(str(path), wrong.line, "", wrong.message, wrong.remedy))
            if wrong.meant is None or wrong.meant == text or len(text) > REPAIRABLE_BYTES:
                break
            text = wrong.meant
        except InputError as error:
            raise InputError([*findings, *error.findings]) from error
        else:
            if found is None and findings:
                break
            return document
    raise InputError(findings)


def _text(path: Path) -> str:
    """Return the text of a file. Raises InputError for a file that is too long, or not UTF-8 text."""

    def refusal(message: str, remedy: str = "", line: int | None = None) -> InputError:
        return InputError([Finding(str(path), line, "", message, remedy)])

    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise refusal(f"cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise refusal(f"has more than {MAX_BYTES} bytes", "is it the right file?")
    # Text of ASCII characters has a zero in every second byte as UTF-16.
    zeros = sorted((content[:64:2].count(0), content[1:64:2].count(0)))
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or (zeros[0] == 0 and zeros[1] > 16):
        raise refusal("is UTF-16 text", "save it as UTF-8")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8 text: it has the byte 0x{content[error.start]:02x}"
        raise refusal(message, "save it as UTF-8, if it is the right file", line) from error
    if bad := _UNPRINTABLE.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        raise refusal(f"has the control character U+{ord(bad[0]):04X}", "remove it, if it is the right file", line)
    return text


def _parsed(text: str, path: Path, findings: list[Finding]) -> Document:
    """Parse the text of a file. Raises yaml.YAMLError for wrong syntax, and InputError if nothing of it can be used."""
    loader = LOADER(text)
    try:
        if (line := too_deep(text)) is not None:
            message = f"is nested more than {MAX_DEPTH} deep"
            raise InputError([Finding(str(path), line + 1, "", message, "simplify it")])
        node = loader.get_single_node()
        walk = _Walk(path, loader)
        if node is not None:
            walk.visit(node, ())
        findings.extend(walk.findings)
        data = None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()
    return Document(path, data, walk.lines, walk.texts)


class _Walk:
    """Collects the lines of all keys, and what is wrong with the nodes of a file, which are corrected on the way."""

    def __init__(self, path: Path, loader: yaml.SafeLoader) -> None:
        self.lines: dict[Loc, int] = {}
        self.texts: dict[Loc, str] = {}
        self.findings: list[Finding] = []
        self._path, self._loader = path, loader
        self._seen: set[int] = set()
        self._open: set[int] = set()
        self._aliased = 0

    def visit(self, node: yaml.Node, loc: Loc) -> None:
        """Visit a node and everything below it. Raises InputError for aliases that have no end, or nearly none."""
        self.lines.setdefault(loc, node.start_mark.line + 1)
        if id(node) in self._open:
            raise InputError([self._finding(node, loc, "is an alias that contains itself", "write out what it means")])
        self._aliased += id(node) in self._seen
        if self._aliased > MAX_ALIASED:
            message = f"aliases repeat more than {MAX_ALIASED} values"
            raise InputError([self._finding(node, loc, message, "write out what they mean")])
        self._seen.add(id(node))
        self._open.add(id(node))
        if node.tag not in self._loader.yaml_constructors:
            # YAML 1.1 has a tag for the value `=`, which PyYAML does not know.
            if node.tag != f"{_TAG}value":
                self._note(
                    node, loc, f"has the tag {node.tag.removeprefix(_TAG)}, which means nothing here", "remove it"
                )
            kinds: Mapping[type[yaml.Node], str] = {yaml.SequenceNode: "seq", yaml.MappingNode: "map"}
            node.tag = _TAG + kinds.get(type(node), "str")
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.visit(item, (*loc, index))
        elif isinstance(node, yaml.MappingNode):
            node.value = [(key, value) for key, value in node.value if self._visit_entry(key, value, loc)]
        elif isinstance(node, yaml.ScalarNode):
            self._construct(node, loc)
        self._open.discard(id(node))

    def _visit_entry(self, key: yaml.Node, value: yaml.Node, loc: Loc) -> bool:
        """Visit a key and its value; return whether they can be used."""
        if not isinstance(key, yaml.ScalarNode):
            message = TEMPLATE if isinstance(key, yaml.MappingNode) else "has a key that is not text"
            self._note(key, loc, message, "write the value" if message == TEMPLATE else "write a name")
            return False
        name = (*loc, str(key.value))
        if name in self.lines:
            self._note(key, name, f"is already set in line {self.lines[name]}", "keep one")
            return False
        self.lines[name] = key.start_mark.line + 1
        if key.tag not in (f"{_TAG}merge", f"{_TAG}str"):
            kind = key.tag.removeprefix(_TAG)
            why = f"is a key that YAML reads as {_READ_AS[kind]}" if kind in _READ_AS else f"has the tag {kind}"
            self._note(key, name, why, f'write "{key.value}", in quotes')
            key.tag = f"{_TAG}str"
        self.visit(value, name)
        return True

    def _construct(self, node: yaml.ScalarNode, loc: Loc) -> None:
        """Construct a single value: PyYAML would raise its errors later, without a line."""
        kind = node.tag.removeprefix(_TAG)
        if kind == "str":
            if not node.style and node.value.startswith(_QUOTES):
                self._note(
                    node, loc, f"begins with {node.value[0]}, which is no quotation mark for YAML", "use \" or '"
                )
            return
        self.texts[loc] = node.value
        try:
            value = self._loader.construct_object(node)
        except (ValueError, OverflowError) as error:
            self._note(node, loc, f"{node.value!r:.40} is not a valid {kind}: {error}", "correct or quote it")
            node.tag = f"{_TAG}str"
            # Where PyYAML keeps what it is constructing, to find nodes that contain themselves.
            self._loader.recursive_objects.pop(node, None)
            return
        if kind == "int" and not _DECIMAL.fullmatch(node.value):
            message = f"is {node.value:.40}, which YAML reads as the number {value}"
            self._note(node, loc, message, "write a number in decimal digits, and put text in quotes")

    def _note(self, node: yaml.Node, loc: Loc, message: str, remedy: str) -> None:
        self.findings.append(self._finding(node, loc, message, remedy))

    def _finding(self, node: yaml.Node, loc: Loc, message: str, remedy: str) -> Finding:
        return Finding(str(self._path), node.start_mark.line + 1, dotted(loc), message, remedy)
