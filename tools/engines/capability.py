"""On which compute capabilities vLLM's attention backends run: its own conditions, evaluated without running them."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from tools.engines.source import Wheel, classes, head

CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1))
"""From Turing to consumer Blackwell."""

METHOD = "supports_compute_capability"
COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.GtE: operator.ge,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
    ast.In: lambda one, many: one in many,
}


class Unknown(Exception):
    """The condition asks for something that is only known where it runs."""


def attention_backends(wheel: Wheel, registry: ast.ClassDef) -> dict[str, list[str]]:
    """Return by backend the compute capabilities on which it runs; left out if its condition needs more to decide."""
    found = {}
    for item in registry.body:
        if not isinstance(item, ast.Assign) or not isinstance(item.value, ast.Constant) or not item.value.value:
            continue
        module, _, owner = str(item.value.value).rpartition(".")
        file = module.replace(".", "/") + ".py"
        if file not in wheel.files:
            continue
        condition = _condition(owner, classes(iter([wheel.tree(file)])))
        try:
            runs = [each for each in CAPABILITIES if condition is None or _evaluate(condition, each)]
        except Unknown:
            continue
        if condition is not None:
            found[head(item.targets[0])] = [f"{major}.{minor}" for major, minor in runs]
    return found


def _condition(name: str, known: Mapping[str, ast.ClassDef]) -> ast.expr | None:
    """Return what a backend's condition returns; None if the class and its bases in this file have none."""
    owner = known.get(name)
    while owner is not None:
        for item in owner.body:
            if isinstance(item, ast.FunctionDef) and item.name == METHOD:
                last = item.body[-1]
                alone = all(isinstance(each, ast.Expr | ast.ImportFrom) for each in item.body[:-1])
                return last.value if alone and isinstance(last, ast.Return) else ast.Name("unknown")
        owner = next((known[head(base)] for base in owner.bases if head(base) in known), None)
    return None


def _evaluate(node: ast.expr, capability: tuple[int, int]) -> Any:
    """Return the value of an expression about `capability`. Raises Unknown for what is not about it."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name(id="capability"):
            return capability
        case ast.Attribute(value=ast.Name(id="capability"), attr="major" | "minor" as part):
            return capability[part == "minor"]
        case ast.Call(func=ast.Name(id="DeviceCapability"), args=parts):
            return tuple(_evaluate(part, capability) for part in parts)
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return tuple(_evaluate(part, capability) for part in parts)
        case ast.BoolOp(op=joined, values=parts):
            values = [_evaluate(part, capability) for part in parts]
            return all(values) if isinstance(joined, ast.And) else any(values)
        case ast.Compare(left=left, ops=[single], comparators=[right]) if type(single) in COMPARE:
            return COMPARE[type(single)](_evaluate(left, capability), _evaluate(right, capability))
    raise Unknown(ast.unparse(node))
