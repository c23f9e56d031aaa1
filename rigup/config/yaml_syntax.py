"""What is wrong in text that is not YAML: the line, plain words, and where it is certain, the text as it was meant.

libyaml says where it gave up, in the words of its grammar. The mistake is often a line above, and the words of people
are tabs, spaces, colons and quotation marks.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

_CONFLICT = re.compile(r"(<{7}|={7}|>{7})( |$)")
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
# An indentation that contains a space which is none for YAML, in front of a key or a list entry.
_ODD_INDENT = re.compile(r"^[ \t]*[^\S \t\n][^\S\n]*(?=[\w.-]+:(\s|$)|- )", re.MULTILINE)
_KEY = r"[A-Za-z0-9_.-]+"
_NO_SPACE = re.compile(rf"( *(?:- )?)({_KEY}):(?!//)([^\s:].*)")
_TEMPLATE = re.compile(r"\{\{|\$\{")
TEMPLATE = "is a variable of a template, and rigup fills in none"
# Ten times faster, if PyYAML was built with libyaml; every run reads the whole catalog.
LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAX_DEPTH = 64
"""Mappings and lists inside each other; settings need six."""

REPAIRABLE_BYTES = 100_000
"""Bytes of a file in which more than the first mistake of syntax is looked for: each needs another parse."""

LISTED = 5
"""Lines that a message lists; it counts the others."""


@dataclass(frozen=True)
class Wrong:
    """One mistake. `line` counts from 1; `meant` is the whole text without the mistake, None if that is not certain."""

    line: int
    message: str
    remedy: str
    meant: str | None = None


def too_deep(text: str) -> int | None:
    """Return the line, from 0, at which text is nested so deep that libyaml, which is recursive, would crash.

    Raises yaml.YAMLError for wrong syntax before that.
    """
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            return event.start_mark.line if event.start_mark else 0
    return None


def odd_indents(text: str) -> Wrong | None:
    """Find lines that are indented with spaces which look like spaces and are none for YAML."""
    if not _ODD_INDENT.search(text):
        return None
    found = [at for at, line in enumerate(text.split("\n"), start=1) if _ODD_INDENT.match(line)]
    meant = _ODD_INDENT.sub(lambda match: " " * len(match[0]), text)
    message = "is indented with no-break spaces or the like, which YAML does not take for spaces"
    return Wrong(found[0], message + _also(found[1:]), "replace them by spaces", meant)


def explain(text: str, error: yaml.YAMLError) -> Wrong:
    """Return what is wrong in a text for which a YAML parser has raised an error."""
    return _Explanation(text, error).wrong()


def _also(lines: Sequence[int]) -> str:
    """Return the further lines with the same mistake, as an end of its message."""
    if not lines:
        return ""
    shown = [f"line {line}" for line in lines[:LISTED]]
    more = len(lines) - len(shown)
    return f"; so {'are' if len(lines) > 1 else 'is'} {', '.join(shown)}" + (f" and {more} more" if more else "")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _spaces(count: int) -> str:
    return f"{count} space{'' if count == 1 else 's'}" if count else "no spaces"


def _is_content(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _readable_lines(text: str) -> float:
    """Return how many lines a parser reads before it gives up."""
    try:
        line = too_deep(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
    return math.inf if line is None else line


class _Explanation:
    """The lines around an error. Lines and columns count from 0; `begin` is where the parser entered what it was in."""

    def __init__(self, text: str, error: yaml.YAMLError) -> None:
        # A file in which something is wrong is never used, so its line breaks may change.
        self.lines = _BREAK.sub("\n", text).split("\n")
        self.problem = str(getattr(error, "problem", None) or error)
        self.context = str(getattr(error, "context", None) or "")
        mark = getattr(error, "problem_mark", None)
        begin = getattr(error, "context_mark", None) or mark
        self.at: int = mark.line if mark else 0
        self.column: int = mark.column if mark else 0
        self.begin: int = begin.line if begin else 0
        self.begin_column: int = begin.column if begin else 0
        # The end of a file may be after its last line.
        self.lines += [""] * (max(self.at, self.begin) + 1 - len(self.lines))
        self.line = self.lines[self.at]
        self.above = next((at for at in range(self.at - 1, -1, -1) if _is_content(self.lines[at])), None)

    def wrong(self) -> Wrong:
        for at, line in enumerate(self.lines):
            if _CONFLICT.match(line):
                return Wrong(at + 1, "is part of a merge conflict", "keep one of both versions, and remove the marks")
        if re.match(r" *\t", self.line) and self.column <= len(self.line) - len(self.line.lstrip()):
            return self._tabs()
        found = self._scalar() or self._structure() or self._indentation()
        return found or Wrong(
            self.at + 1,
            f"is not valid YAML, or the line above it is not ({self.problem})",
            "look for a colon, a quotation mark or a bracket too many or too few",
        )

    def _tabs(self) -> Wrong:
        tabbed = [at for at, line in enumerate(self.lines) if re.match(r" *\t", line) and _is_content(line)]
        # With the width of the author's editor, a parser gets furthest.
        widths = (2, 4, 8, 0) if sum(map(len, self.lines)) < REPAIRABLE_BYTES else (2,)
        meant = max((self._without_tabs(tabbed, width) for width in widths), key=_readable_lines)
        also = _also([at + 1 for at in tabbed if at > self.at])
        return Wrong(self.at + 1, "is indented with a tab" + also, "use spaces, two for each level", meant)

    def _without_tabs(self, tabbed: Sequence[int], width: int) -> str:
        lines = [*self.lines]
        for at in tabbed:
            rest = lines[at].lstrip()
            lines[at] = lines[at][: -len(rest)].replace("\t", " " * width) + rest
        return "\n".join(lines)

    def _scalar(self) -> Wrong | None:
        """A value that is not written as its author believes."""
        begun = self.lines[self.begin][self.begin_column :]
        if "quoted scalar" in self.context:
            if "escape" in self.problem or "hex" in self.problem:
                message = r"has a \ in double quotes, where it begins an escape sequence"
                return Wrong(self.at + 1, message, "use single quotes")
            return Wrong(self.begin + 1, f"has a {begun[:1]} that nothing closes", "close it at the end of the value")
        if "directive" in self.context:
            return self._starts("%", None)
        if re.search("alias|anchor", self.context):
            return self._starts(begun[:1], self.begin_column)
        if "cannot start any token" in self.problem:
            return self._starts(self.line[self.column : self.column + 1], self.column)
        if "undefined alias" in self.problem:
            name = (re.match(r"\*([^\s,\[\]{}]+)", self.line[self.column :]) or ["", ""])[1]
            remedy = f"write `&{name}` above it, where that is defined, for example `x-{name}: &{name} {{user: ops}}`"
            return Wrong(self.at + 1, f"uses *{name}, which nothing defines", remedy)
        if "for merging" in self.problem:
            return Wrong(self.begin + 1, "has a << with something that is not keys", "merge keys, such as {user: ops}")
        return None

    def _starts(self, sign: str, column: int | None) -> Wrong:
        if column is not None and _TEMPLATE.search(self.line):
            return Wrong(self.at + 1, TEMPLATE, "write the value")
        line = self.at if column is not None else self.begin
        meant, value = None, "" if column is None else self.lines[line][column:].split(" #")[0].rstrip()
        if value and not re.search(r"[\[{]", self.lines[line][:column]):
            meant = self._with(line, self.lines[line][:column] + json.dumps(value))
        return Wrong(line + 1, f"has a value or key that begins with {sign}", "put it in quotes", meant)

    def _structure(self) -> Wrong | None:
        """Brackets, colons and documents."""
        if "flow" in self.context:
            if _TEMPLATE.search(self.lines[self.begin]):
                return Wrong(self.begin + 1, TEMPLATE, "write the value")
            return self._bracket()
        if "another document" in self.problem:
            return Wrong(self.at + 1, "begins a second document", "keep one, and remove the line with ---")
        if "<document start>" in self.problem:
            return Wrong(
                self.at + 1, "comes after the end of the content", "this is no YAML of keys: write `key: value` lines"
            )
        if "sequence entries are not allowed" in self.problem:
            return Wrong(self.at + 1, "has a list on the line of its key", "write each entry as `- ...` below the key")
        if "could not find expected ':'" in self.problem:
            return self._no_colon(self.begin, is_parent=False)
        if "mapping values are not allowed" in self.problem:
            return self._second_value()
        return None

    def _bracket(self) -> Wrong:
        at, opening = self.begin, self.lines[self.begin][self.begin_column : self.begin_column + 1]
        while opening not in ("[", "{") and at >= 0:
            opening = next((sign for sign in reversed(self.lines[at]) if sign in "[{"), "")
            at -= not opening
        closing = "]" if opening == "[" else "}"
        remedy = f"add `{closing}`, or the comma that is missing, and quote values with a colon or a bracket"
        return Wrong(max(at, 0) + 1, f"has a {opening} that is not closed, or text that does not fit in it", remedy)

    def _no_colon(self, at: int, is_parent: bool) -> Wrong:
        line = self.lines[at]
        if match := _NO_SPACE.fullmatch(line):
            meant = f"{match[1]}{match[2]}: {match[3]}"
            return Wrong(at + 1, "has no space after the colon", f"write `{meant.strip()}`", self._with(at, meant))
        if is_parent:
            return Wrong(at + 1, "has no colon", f"write `{line.strip()}:`", self._with(at, line.rstrip() + ":"))
        return Wrong(at + 1, "has no colon after its key", "write `key: value`, with a space after the colon")

    def _second_value(self) -> Wrong:
        if _TEMPLATE.search(self.line):
            return Wrong(self.at + 1, TEMPLATE, "write the value")
        if not re.search(r":\s", self.line[: self.column]) and self.above is not None:
            above = self.lines[self.above]
            if not re.search(r":(\s|$)", above):
                return self._no_colon(self.above, is_parent=_indent(above) < _indent(self.line))
            if _indent(above) < _indent(self.line):
                message = "is indented deeper than the line above it, which already has a value"
                return self._shifted(message, _indent(above))
        return Wrong(
            self.at + 1, "has a second colon", "write one key on each line, or put a value with a colon in quotes"
        )

    def _indentation(self) -> Wrong | None:
        if not re.search(r"expected key|<block end>|expected '-' indicator", self.problem):
            return None
        own = _indent(self.line)
        if self.column > own:
            rest = self.line[self.column :].strip()
            return Wrong(self.at + 1, f"has text after its value: {rest:.40}", "remove it, or put the value in quotes")
        levels, least = list[int](), own + 1000
        for line in filter(_is_content, reversed(self.lines[: self.at])):
            if _indent(line) < least:
                least = _indent(line)
                levels.append(least)
        if not levels or own in levels:
            return None
        wanted = min(levels, key=lambda level: (abs(level - own), -level))
        words = " or ".join(str(level) for level in levels if abs(level - own) <= 2) or str(wanted)
        return self._shifted(f"is indented by {_spaces(own)}, and the lines above it by {words}", wanted)

    def _shifted(self, message: str, wanted: int) -> Wrong:
        """Return the mistake of a line and what belongs to it, which should have `wanted` spaces."""
        own, lines, is_parent = _indent(self.line), [*self.lines], False
        for at in range(self.at, len(lines)):
            if not _is_content(lines[at]):
                continue
            indent = _indent(lines[at])
            if indent == own:
                is_parent = lines[at].rstrip().endswith(":")
            elif indent < own or not is_parent:
                break
            lines[at] = " " * (wanted + indent - own) + lines[at].lstrip(" ")
        return Wrong(self.at + 1, message, f"indent it by {_spaces(wanted)}", "\n".join(lines))

    def _with(self, at: int, line: str) -> str:
        return "\n".join([*self.lines[:at], line, *self.lines[at + 1 :]])
