"""Read a vLLM wheel: options, variables, architectures, quantization methods, attention backends."""

from __future__ import annotations

import ast
from typing import Any

from tools.engines.capability import attention_backends
from tools.engines.kinds import kind, shape, typed
from tools.engines.quantization import methods
from tools.engines.source import Wheel, added, assigned, classes, fields, head, keyword, option, words


def vllm(wheel: Wheel) -> dict[str, Any]:
    """Return what `recipes/engines/` keeps of a vLLM release."""
    config = classes(wheel.trees("vllm/config/"))
    known = assigned(wheel.trees("vllm/config/")) | assigned(wheel.trees("vllm/engine/arg_utils.py"))
    backends = classes(wheel.trees("vllm/v1/attention/backends/registry.py"))["AttentionBackendEnum"]
    attention = [
        item.targets[0].id
        for item in backends.body
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name) and item.targets[0].id != "CUSTOM"
    ]
    arguments = wheel.tree("vllm/engine/arg_utils.py")
    # `model_kwargs = get_kwargs(ModelConfig)`: the class that a group of options comes from.
    groups = {
        node.targets[0].id: node.value.args[0].id
        for node in ast.walk(arguments)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Call)
        and head(node.value.func) == "get_kwargs"
        and isinstance(node.value.args[0], ast.Name)
    }
    # `moe_kwargs = kernel_kwargs["moe_backend"]`: a variable for one option.
    singles = {
        node.targets[0].id: node.value
        for node in ast.walk(arguments)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Subscript)
    }
    # Numbers that may be `8k` (human_readable_int) or `auto`.
    sizes = {"max_model_len"}
    for node in ast.walk(arguments):
        if isinstance(node, ast.Assign) and head(node.targets[0]) == "human_readable_int_args":
            sizes |= set(words(node.value) or ())
    options: dict[str, Any] = {}
    keys: dict[str, dict[str, Any]] = {}

    def shapes(owner: ast.ClassDef) -> dict[str, Any]:
        return {name: shape(annotation, known) for name, annotation in sorted(fields(owner).items())}

    for names, call in added(arguments):
        # `**model_kwargs["dtype"]`, or a modified copy of it.
        annotation = None
        for each in ast.walk(call):
            each = singles.get(each.id, each) if isinstance(each, ast.Name) else each
            if isinstance(each, ast.Subscript) and isinstance(each.value, ast.Name) and each.value.id in groups:
                owner = config.get(groups[each.value.id])
                if owner and isinstance(each.slice, ast.Constant):
                    annotation = annotation or fields(owner).get(str(each.slice.value))
        for name in names:
            options[name] = kind(annotation, known) if annotation else typed(call)
            if name.strip("-").replace("-", "_") in sizes:
                options[name] = "size"
            if annotation and "AttentionBackendEnum" in ast.dump(annotation):
                options[name] = list(attention)
            action = keyword(call, "action")
            if isinstance(action, ast.Constant) and str(action.value).startswith("store_"):
                options[name] = "flag"
    vllm_class = classes(wheel.trees("vllm/engine/arg_utils.py"))["EngineArgs"]
    for name, annotation in fields(vllm_class).items():
        # The type of a JSON option is the class in its field's annotation.
        for each in ast.walk(annotation):
            if isinstance(each, ast.Name) and each.id in config and option(name) in options:
                keys[option(name)] = shapes(config[each.id])
    keys["--speculative-config"] = shapes(config["SpeculativeConfig"])
    # It moved after 0.17.
    moved = ("vllm/entrypoints/common/cli_args.py", "vllm/entrypoints/openai/cli_args.py")
    command_line = wheel.tree(next(name for name in moved if name in wheel.files))
    frontend = classes(iter([command_line]))
    for name in ("BaseFrontendArgs", "FrontendArgs"):
        if name in frontend:
            options |= {option(field): kind(annotation, known) for field, annotation in fields(frontend[name]).items()}
    options |= {name: typed(call) for names, call in added(command_line) for name in names}
    environment = assigned(wheel.trees("vllm/envs.py"))["environment_variables"]
    assert isinstance(environment, ast.Dict)
    options["--tool-call-parser"] = registered(wheel, "vllm/tool_parsers/__init__.py", "_TOOL_PARSERS_TO_REGISTER")
    options["--reasoning-parser"] = registered(wheel, "vllm/reasoning/__init__.py", "_REASONING_PARSERS_TO_REGISTER")
    variables = [str(key.value) for key in environment.keys if isinstance(key, ast.Constant)]
    quantization = methods(wheel, "vllm/model_executor/layers/quantization/")
    for name in ("--quantization", "-q"):
        options[name] = sorted(quantization)
    return {
        "options": options,
        "keys": {name: of for name, of in keys.items() if of},
        "environment": sorted(variables),
        "architectures": served_by_vllm(wheel),
        "quantization": quantization,
        "attention": attention_backends(wheel, backends),
    }


# The tables of vLLM's registry that hold models to chat with; the others embed, classify, rank or draft.
CHAT_MODELS = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS")


def served_by_vllm(wheel: Wheel) -> list[str]:
    """Return the architectures (config.json) that it serves itself, without the fallback to transformers' code."""
    file = "vllm/model_executor/models/registry.py"
    return sorted({name for table in CHAT_MODELS for name in registered(wheel, file, table)})


def registered(wheel: Wheel, file: str, name: str) -> list[str]:
    table = assigned(iter([wheel.tree(file)]))[name]
    assert isinstance(table, ast.Dict)
    return sorted(str(key.value) for key in table.keys if isinstance(key, ast.Constant))
