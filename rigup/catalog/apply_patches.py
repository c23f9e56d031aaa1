"""Apply a recipe's patches to a checkpoint's published files. Pure and idempotent.

The patched files form an overlay: they are mounted over the published ones, or passed to the engine, and the store is
never written. A patch whose condition does not hold, or that the checkpoint does not need, changes nothing.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from rigup.catalog import chat_template
from rigup.catalog.patch import IgnorePatch, Patch, SamplingPatch, TemplatePatch, YarnPatch
from rigup.catalog.recipe import Recipe
from rigup.errors import RigupError
from rigup.text import from_json

CONFIG = "config.json"
GENERATION = "generation_config.json"
TEMPLATE = "chat_template.jinja"
TOKENIZER = "tokenizer_config.json"

# Where each file has its list of modules that are not quantized. One of the files may be missing, but not both.
IGNORE_LISTS: Mapping[str, tuple[str, str]] = {
    CONFIG: ("quantization_config", "ignore"),
    "hf_quant_config.json": ("quantization", "exclude_modules"),
}

NOT_FITTING = "remove the patch from the recipe, or use the checkpoint that it was written for"

# The published files that each kind of patch reads.
READS: Mapping[str, tuple[str, ...]] = {
    "quantization-ignore": tuple(IGNORE_LISTS),
    "yarn": (CONFIG,),
    "chat-template": (TEMPLATE, TOKENIZER),
    "generation-defaults": (GENERATION,),
}


def needed_patches(recipe: Recipe, image_created: datetime | None) -> tuple[Patch, ...]:
    """Return the patches that the recipe needs with an image built at that time; None for a recipe without one."""
    return tuple(patch for patch in recipe.patches if applies(patch, recipe, image_created))


def applies(patch: Patch, recipe: Recipe, image_created: datetime | None) -> bool:
    """Return whether the recipe needs the patch with an image built at that time; None for a recipe without one."""
    when = None if isinstance(patch, YarnPatch) else patch.when
    if when is None:
        return True
    # Without an image the engine is installed by version, for which there is `engine_before`.
    if when.image_before is not None and (
        image_created is None or image_created.astimezone(UTC).date() >= when.image_before
    ):
        return False
    # A recipe without a lowest version may run with any, so it keeps the patch.
    lowest = recipe.engine_version
    if when.engine_before is not None and lowest is not None and _version(lowest) >= _version(when.engine_before):
        return False
    return when.speculation is None or when.speculation == (recipe.speculation is not None)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def reads(patches: Iterable[Patch]) -> list[str]:
    """Return the names of the published files that these patches read."""
    return list(dict.fromkeys(name for patch in patches for name in READS[patch.target]))


def patch_files(published: Mapping[str, str], patches: Iterable[Patch], engine: str) -> dict[str, str]:
    """Return the patched files by name: only those whose text differs from the published one.

    `published` maps a file's name to its text. TEMPLATE goes to the engine's --chat-template, because not every
    checkpoint has such a file; the others replace the published ones. Raises RigupError for a patch that does not fit
    the checkpoint, and for a file that is not JSON.
    """
    patches = list(patches)
    files = dict(published)
    if ignored := [patch for patch in patches if isinstance(patch, IgnorePatch)]:
        _ignore(files, ignored)
    for patch in patches:
        if isinstance(patch, YarnPatch):
            _yarn(files, patch, engine)
        elif isinstance(patch, SamplingPatch):
            _sampling(files, patch)
        elif isinstance(patch, TemplatePatch):
            _template(files, patch)
    return {name: text for name, text in files.items() if text != published.get(name)}


def _ignore(files: dict[str, str], patches: Iterable[IgnorePatch]) -> None:
    additions = list(dict.fromkeys(pattern for patch in patches for pattern in patch.add))
    found = False
    for name, (section, key) in IGNORE_LISTS.items():
        if name not in files:
            continue
        config = _parsed(name, files[name])
        block = config.get(section)
        if block is None:
            continue
        listed = block.get(key, []) if isinstance(block, dict) else None
        if not isinstance(listed, list) or not all(isinstance(entry, str) for entry in listed):
            raise RigupError(f"the published {name} has no list of names at {section}.{key}", NOT_FITTING)
        found = True
        missing = [pattern for pattern in additions if not _covered(pattern, listed)]
        if missing:
            block[key] = [*listed, *missing]
            files[name] = _text(config)
    if not found:
        raise RigupError(
            "the checkpoint has neither config.json with a quantization_config nor hf_quant_config.json with a "
            "quantization block, so its ignore list cannot be patched",
            NOT_FITTING,
        )


def _covered(pattern: str, listed: Iterable[str]) -> bool:
    """Return whether the list has the pattern or a wider one: checkpoints exported since March 2026 list `mtp*`."""
    # Two names that the pattern matches, because an entry for a single layer would cover only one of them.
    examples = [pattern.replace("*", name) for name in ("0", "other")]
    return any(pattern == entry or all(fnmatch.fnmatchcase(example, entry) for example in examples) for entry in listed)


def _yarn(files: dict[str, str], patch: YarnPatch, engine: str) -> None:
    """Raise RigupError if the patch repeats another rope than the checkpoint's; vLLM gets the rest as an argument."""
    config = _parsed(CONFIG, files.get(CONFIG, "{}"))
    text = config.get("text_config")
    rope = text.get("rope_parameters") if isinstance(text, dict) else None
    if not isinstance(text, dict) or not isinstance(rope, dict):
        raise RigupError(f"the published {CONFIG} has no text_config.rope_parameters", NOT_FITTING)
    patched = json.loads(json.dumps(patch.parameters))
    if rope == patched:
        return
    own = {key: value for key, value in rope.items() if key != "rope_type"}
    repeated = json.loads(json.dumps(patch.rope))
    if (own, text.get("max_position_embeddings")) != (repeated, patch.tokens):
        raise RigupError(
            f"the yarn patch has the rope {repeated} of {patch.tokens} tokens, but the published {CONFIG} has "
            f"{own} of {text.get('max_position_embeddings')}",
            "correct the recipe's patch",
        )
    if engine == "sglang":
        text["rope_parameters"] = patched
        files[CONFIG] = _text(config)


def _sampling(files: dict[str, str], patch: SamplingPatch) -> None:
    if GENERATION not in files:
        # A mount needs a file to cover, and cannot create one in the read-only store.
        raise RigupError(
            f"the checkpoint has no {GENERATION} to patch",
            "use --override-generation-config (vLLM) or --preferred-sampling-params (SGLang) in argv",
        )
    config = _parsed(GENERATION, files[GENERATION])
    changed = {**config, **patch.set.model_dump(exclude_none=True)}
    if changed != config:
        files[GENERATION] = _text(changed)


def _template(files: dict[str, str], patch: TemplatePatch) -> None:
    own = files.get(TEMPLATE)
    if own is None and TOKENIZER in files:
        own = chat_template.of_tokenizer(_parsed(TOKENIZER, files[TOKENIZER]))
    if patch.text is None and own is None:
        raise RigupError(
            f"the checkpoint has neither {TEMPLATE} nor a chat template in {TOKENIZER} to patch",
            "give the patch a template as `text`",
        )
    base = patch.text if patch.text is not None else own or ""
    changed = chat_template.changed(base, merge=patch.system == "merge", thinking=patch.thinking)
    if changed != own:
        files[TEMPLATE] = changed


def _text(config: Mapping[str, Any]) -> str:
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _parsed(name: str, text: str) -> dict[str, Any]:
    try:
        config = from_json(text)
    except json.JSONDecodeError as error:
        raise RigupError(f"the published {name} is not valid JSON (line {error.lineno}, {error.msg})") from error
    if not isinstance(config, dict):
        raise RigupError(f"the published {name} is not a JSON object")
    return config
