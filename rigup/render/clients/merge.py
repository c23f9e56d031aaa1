"""Merge a configuration into the text of a client's file: what is ours is set, everything else stays."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rigup.config.yaml_file import dotted, read_document
from rigup.errors import Finding, InputError
from rigup.render.clients.formats import Configuration, combined
from rigup.text import from_json

# Strings first: `//` in a URL is no comment.
_STRING_OR_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
BY_HAND = "add what is printed by hand"


def json_merged(path: Path, text: str, configuration: Configuration) -> str:
    """Return the text of a JSON file with the configuration in it; the same text if it is in it already.

    Raises InputError if the text is not JSON, and if the change would lose its comments.
    """
    comments = [match for match in _STRING_OR_COMMENT.finditer(text) if match[0].startswith("/")]
    bare = _STRING_OR_COMMENT.sub(lambda match: _blank(match[0]) if match[0].startswith("/") else match[0], text)
    try:
        before = from_json(bare) if bare.strip() else {}
    except json.JSONDecodeError as error:
        raise _refusal(path, error.lineno, f"is not valid JSON: {error.msg}", "fix it or move it away") from error
    after = _merged(path, before, configuration)
    if after == before:
        return text
    if comments:
        line = text.count("\n", 0, comments[0].start()) + 1
        raise _refusal(path, line, "has comments, which a change would lose", BY_HAND)
    indent = re.search(r'\{\s*\n([ \t]+)"', text)
    return json.dumps(after, indent=indent[1] if indent else "  ", ensure_ascii=False) + "\n"


def _blank(comment: str) -> str:
    """Return spaces in place of a comment, so that lines stay where they are."""
    return re.sub(r"[^\n]", " ", comment)


def _merged(path: Path, before: Any, configuration: Configuration) -> Any:
    if not isinstance(before, dict):
        raise _refusal(path, 1, "does not contain keys", "fix it or move it away")
    for loc in _conflicts(before, combined(configuration.defaults, configuration.data), ()):
        raise InputError([Finding(str(path), None, dotted(loc), "does not contain keys", "fix it or move it away")])
    # The order of the file, and its own values before the defaults.
    return combined(combined(combined(before, configuration.defaults), before), configuration.data)


def _conflicts(before: Any, ours: Any, loc: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the keys where we have keys and the file has something else, which would be lost."""
    if not isinstance(ours, Mapping):
        return
    if not isinstance(before, Mapping):
        yield loc
        return
    for key in ours.keys() & before.keys():
        yield from _conflicts(before[key], ours[key], (*loc, key))


def _refusal(path: Path, line: int | None, message: str, remedy: str) -> InputError:
    return InputError([Finding(str(path), line, "", message, remedy)])


def yaml_merged(path: Path, text: str, configuration: Configuration) -> str:
    """Return the text of a YAML file with our items in its list; the same text if they are in it already.

    The configuration's data is one list of items with a `name`: ours replace those with the same name. Only their lines
    change, so that comments and the writing of all others stay. Raises InputError if the file is not valid YAML, and if
    it is written so that a change needs more than that.
    """
    document = read_document(path)
    before = {} if document.data is None else document.data
    ((key, items),) = configuration.data.items()
    if not isinstance(before, dict):
        raise _refusal(path, 1, "does not contain keys", "fix it or move it away")
    if not isinstance(before.get(key) or [], list):
        raise InputError([document.finding((key,), "is not a list", "fix it or move it away")])
    listed = list(before.get(key) or [])
    for item in items:
        at = _index(listed, item["name"])
        if at is None:
            text = _with_item(text, key, at, item)
            listed.append(item)
        elif listed[at] != item:
            text = _with_item(text, key, at, item)
            listed[at] = item
    missing = {name: value for name, value in configuration.defaults.items() if name not in before}
    if missing:
        text = _with_keys(text, missing)
    if _loaded(text) != {**before, key: listed, **missing}:
        raise InputError([document.finding((key,), "is not written one item below the other", BY_HAND)])
    return text


def _index(items: list[Any], name: str) -> int | None:
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    return names.index(name) if name in names else None


def _loaded(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _dumped(data: Any) -> str:
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)


def _with_keys(text: str, data: Mapping[str, Any]) -> str:
    return f"{text.rstrip()}\n{_dumped(data)}".lstrip()


def _with_item(text: str, key: str, at: int | None, item: Mapping[str, Any]) -> str:
    """Return the text with the item in place of item `at` of the list, or as its last; right if its form is simple."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    entries = root.value if isinstance(root, yaml.MappingNode) else []
    found = next((value for name, value in entries if name.value == key), None)
    if found is None:
        return _with_keys(text, {key: [item]})
    if not found.value:
        # `models: []`, or nothing.
        before, after = text[: found.start_mark.index].rstrip(), text[found.end_mark.index :]
        comment, _, rest = after.partition("\n")
        return f"{f'{before} {comment.strip()}'.rstrip()}\n{_indented(_dumped([item]), 2)}{rest}"
    if at is not None:
        node = found.value[at]
        block = _indented(_dumped(dict(item)), node.start_mark.column).strip()
        return text[: node.start_mark.index] + block + text[_end(text, node) :]
    last = found.value[-1]
    line = text[: last.start_mark.index].rpartition("\n")[2]
    end = text.find("\n", _end(text, last))
    head, rest = (text, "") if end < 0 else (text[:end], text[end + 1 :])
    return f"{head}\n{_indented(_dumped([item]), max(line.rfind('-'), 0))}{rest}"


def _indented(text: str, columns: int) -> str:
    return "".join(f"{' ' * columns}{line}\n" for line in text.splitlines())


def _end(text: str, node: yaml.Node) -> int:
    """Return where a value ends: that of a block is said to end where the next one begins, after its comments."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(last, tuple) else last)
    start, end = node.start_mark.index, node.end_mark.index
    return start + len(text[start:end].rstrip())
