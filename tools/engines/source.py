"""The Python sources of a wheel, parsed and never imported: neither a GPU nor the engine's dependencies are needed."""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path


class Wheel:
    """The Python sources of a wheel, parsed on demand."""

    def __init__(self, path: Path):
        self.name, self.version = path.name.split("-")[:2]
        self.archive = zipfile.ZipFile(path)
        self.files = [name for name in self.archive.namelist() if name.endswith(".py") and "/test/" not in name]

    @cache  # noqa: B019 - one wheel lives as long as the process
    def tree(self, name: str) -> ast.Module:
        """Return the syntax tree of a file."""
        return ast.parse(self.archive.read(name))

    def trees(self, prefix: str) -> Iterator[ast.Module]:
        """Yield the syntax trees of all files whose path begins like this."""
        for name in self.files:
            if name.startswith(prefix):
                yield self.tree(name)


def words(node: ast.AST | None) -> list[str] | None:
    """Return the strings of a literal list, tuple or set; None if it contains anything else."""
    if not isinstance(node, ast.List | ast.Tuple | ast.Set):
        return None
    found = [item.value for item in node.elts if isinstance(item, ast.Constant) and isinstance(item.value, str)]
    return found if len(found) == len(node.elts) else None


def assigned(trees: Iterator[ast.Module]) -> dict[str, ast.AST]:
    """Return the top-level assignments of these modules."""
    found: dict[str, ast.AST] = {}
    for tree in trees:
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                found[node.target.id] = node.value
    return found


def head(node: ast.AST) -> str:
    """Return the name of a type: `Literal` for `typing.Literal[...]`."""
    target = node.value if isinstance(node, ast.Subscript) else node
    return target.attr if isinstance(target, ast.Attribute) else target.id if isinstance(target, ast.Name) else ""


def is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def fields(node: ast.ClassDef) -> dict[str, ast.AST]:
    return {
        item.target.id: item.annotation
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def classes(trees: Iterator[ast.Module]) -> dict[str, ast.ClassDef]:
    return {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def added(tree: ast.AST) -> Iterator[tuple[list[str], ast.Call]]:
    """Yield every `add_argument("--name", ...)` with its names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            if any(name.startswith("-") for name in names):
                yield names, node


def keyword(call: ast.Call, name: str) -> ast.AST | None:
    return next((item.value for item in call.keywords if item.arg == name), None)


def option(name: str) -> str:
    return "--" + name.replace("_", "-")
