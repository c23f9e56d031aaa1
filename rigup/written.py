"""YAML for programs that read it by other rules than Python does: compose and Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

__all__ = ["doubled", "yaml_text"]

# Go's readers take `1e3`, `0o17` and `.5` for numbers, where Python's writes them without quotes.
_SURELY_TEXT = re.compile(r"(--|/|[A-Za-z]).*", re.DOTALL)


def doubled(value: str) -> str:
    """`$` means a variable to compose and to Kubernetes; doubled it is itself."""
    return value.replace("$", "$$")


def yaml_text(document: Mapping[str, Any]) -> str:
    """A document as YAML in which every text is a text to any reader."""
    return yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes equal parts out each time: `&id001` helps no reader."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, value: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", value, None if _SURELY_TEXT.fullmatch(value) else '"')


_Dumper.add_representer(str, _Dumper.text)
