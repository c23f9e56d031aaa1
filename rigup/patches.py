"""Typed patches to a checkpoint's published config files; pure, and without effect when applied twice.

A quantized checkpoint says in two places which modules it left unquantized: `quantization_config.ignore` in config.json
and `quantization.exclude_modules` in hf_quant_config.json. Either file may be missing, not both. The store itself is
never written: the results are mounted over the published files.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from rigup.errors import RigupError
from rigup.schema import Patch, Recipe

__all__ = ["CONFIG_FILES", "applies", "patch_files"]

# Where each file holds its list.
CONFIG_FILES: Mapping[str, tuple[str, str]] = {
    "config.json": ("quantization_config", "ignore"),
    "hf_quant_config.json": ("quantization", "exclude_modules"),
}


def applies(patch: Patch, recipe: Recipe, image_created: datetime) -> bool:
    """Whether this recipe needs the patch with an image made at that time."""
    when = patch.when
    if when is None:
        return True
    if when.image_before is not None and image_created.astimezone(UTC).date() >= when.image_before:
        return False
    # A recipe without a floor may run with any version, so the patch stays.
    floor = recipe.engine.min
    if when.engine_before is not None and floor is not None and _version(floor) >= _version(when.engine_before):
        return False
    return when.speculation is None or when.speculation == (recipe.speculation is not None)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def patch_files(published: Mapping[str, str], patches: Iterable[Patch]) -> dict[str, str]:
    """The patched files by name; only those whose text has to differ from what was published.

    `published` maps a file's name to its text. Raises RigupError where neither file has such a list, or one is no JSON.
    """
    additions = list(dict.fromkeys(pattern for patch in patches for pattern in patch.add))
    if not additions:
        return {}
    changed: dict[str, str] = {}
    seen = False
    for name, (section, key) in CONFIG_FILES.items():
        if name not in published:
            continue
        config = _parsed(name, published[name])
        block = config.get(section)
        if block is None:
            continue
        listed = block.get(key, []) if isinstance(block, dict) else None
        if not isinstance(listed, list) or not all(isinstance(entry, str) for entry in listed):
            raise RigupError(f"the published {name} has no list of names at {section}.{key}: the patch does not fit it")
        seen = True
        missing = [pattern for pattern in additions if not _covered(pattern, listed)]
        if missing:
            block[key] = [*listed, *missing]
            changed[name] = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    if not seen:
        raise RigupError(
            "the checkpoint has neither config.json with a quantization_config nor hf_quant_config.json with a "
            "quantization block: a patch of its ignore list has nothing to act on"
        )
    return changed


def _covered(pattern: str, listed: Iterable[str]) -> bool:
    """Whether the list has it already, or has a wider pattern: checkpoints exported since March 2026 list `mtp*`."""
    # Two names that the pattern matches: an entry for one layer alone covers one of them.
    examples = [pattern.replace("*", name) for name in ("0", "other")]
    return any(pattern == entry or all(fnmatch.fnmatchcase(example, entry) for example in examples) for entry in listed)


def _parsed(name: str, text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise RigupError(f"the published {name} is no JSON: line {error.lineno}: {error.msg}") from error
    if not isinstance(config, dict):
        raise RigupError(f"the published {name} holds no JSON object")
    return config
