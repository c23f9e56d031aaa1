"""The quantization methods of a release, each with the compute capability that it needs at least."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from tools.engines.source import Wheel, classes, head

TABLES = ("method_to_config", "BASE_QUANTIZATION_METHODS")
"""vLLM's and SGLang's tables of a method's name and the class that reads its configuration."""


def methods(wheel: Wheel, package: str) -> dict[str, int | None]:
    """Return the methods by name with ten times the least compute capability: 75 is Turing's 7.5.

    None if the class computes it, or has none.
    """
    table = _table(wheel.tree(f"{package}__init__.py"))
    known = classes(wheel.trees(package))
    return {name: _least(known.get(owner), known) for name, owner in sorted(table.items())}


def _table(tree: ast.Module) -> dict[str, str]:
    """Return the class of every method; of a method that differs between platforms the one for CUDA."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name) and target.id in TABLES:
                found |= _entries(node.value)
        elif isinstance(node, ast.If) and "is_cuda" in ast.unparse(node.test):
            for call in _updates(node):
                found |= _entries(call)
        elif isinstance(node, ast.Call) and head(node.func) == "setdefault" and len(node.args) == 2:
            # Further names of one class, which vLLM keeps in a list of `Literal`.
            for name in _literals(tree):
                found.setdefault(name, head(node.args[1]))
    return found


def _entries(table: ast.Dict) -> dict[str, str]:
    return {
        str(key.value): head(value)
        for key, value in zip(table.keys, table.values, strict=True)
        if isinstance(key, ast.Constant)
    }


def _updates(node: ast.If) -> Iterator[ast.Dict]:
    for statement in node.body:
        for each in ast.walk(statement):
            if isinstance(each, ast.Call) and head(each.func) == "update" and isinstance(each.args[0], ast.Dict):
                yield each.args[0]


def _literals(tree: ast.Module) -> list[str]:
    return [
        str(part.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and head(node.targets[0]) == "QuantizationMethods"
        for part in ast.walk(node.value)
        if isinstance(part, ast.Constant)
    ]


def _least(owner: ast.ClassDef | None, known: Mapping[str, ast.ClassDef]) -> int | None:
    """Return what `get_min_capability` of a class, or of the nearest base that has it, returns."""
    while owner is not None:
        for item in owner.body:
            if isinstance(item, ast.FunctionDef) and item.name == "get_min_capability":
                values = [node.value for node in ast.walk(item) if isinstance(node, ast.Return)]
                only = values[0] if len(values) == 1 else None
                return only.value if isinstance(only, ast.Constant) and isinstance(only.value, int) else None
        owner = next((known[head(base)] for base in owner.bases if head(base) in known), None)
    return None
