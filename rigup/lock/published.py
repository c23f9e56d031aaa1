"""Read the small files of a checkpoint on the hub, to draft a recipe for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rigup.catalog.apply_patches import CONFIG, TEMPLATE, TOKENIZER
from rigup.catalog.chat_template import of_tokenizer
from rigup.catalog.draft_source import Published
from rigup.errors import RigupError
from rigup.lock.http import Unresolved, Web
from rigup.lock.hub import checkpoint_lock, published_file
from rigup.lock.lockfile import CheckpointLock
from rigup.lock.resolve import UNEXPECTED, ResolveError
from rigup.text import from_json

INDEX = "model.safetensors.index.json"
MODELOPT = "hf_quant_config.json"
GGUF = ".gguf"


def read_published(endpoint: str, repo: str, branch: str, cache: Path) -> tuple[Published, CheckpointLock]:
    """Return what a repository's small files say at the commit of a branch, and its entry for a lock.

    Raises ResolveError if the hub does not have it, and RigupError if its files are of another kind.
    """
    try:
        with Web() as web:
            lock = checkpoint_lock(web, endpoint, repo, branch)
        files = _Files(endpoint, repo, lock, cache)
        config = files.json(CONFIG)
        if config is None:
            kinds = "only GGUF files" if any(name.endswith(GGUF) for name in lock.listing) else "no config.json"
            raise RigupError(
                f"{repo} has {kinds}", "use the upload in safetensors, which the model's card names as its base"
            )
        tokenizer = files.json(TOKENIZER) or {}
        template = files.text(TEMPLATE) or of_tokenizer(tokenizer)
        weight_map = (files.json(INDEX) or {}).get("weight_map")
        quantization = (files.json(MODELOPT) or {}).get("quantization")
    except Unresolved as error:
        raise ResolveError.of([error]) from error
    except UNEXPECTED as error:
        wrong = f"an answer of the hub has an unexpected form ({type(error).__name__}: {error})"
        raise RigupError(f"{repo}: {wrong}", "check hub_endpoint") from error
    published = Published(
        repo=repo,
        branch=branch,
        commit=lock.revision,
        config=config,
        sizes={name: int(entry.partition(" ")[0]) for name, entry in lock.listing.items()},
        weights=lock.contents.weights,
        quantization=quantization if isinstance(quantization, dict) else None,
        template=template,
        tensors=frozenset(weight_map) if isinstance(weight_map, dict) else None,
        custom_tokenizer=bool(tokenizer.get("auto_map")),
    )
    return published, lock


class _Files:
    """The files of a repository at a commit."""

    def __init__(self, endpoint: str, repo: str, lock: CheckpointLock, cache: Path):
        self.endpoint, self.repo, self.lock, self.cache = endpoint, repo, lock, cache

    def text(self, name: str) -> str | None:
        content = published_file(self.endpoint, self.repo, self.lock, name, self.cache)
        return None if content is None else content.decode("utf-8", errors="replace")

    def json(self, name: str) -> dict[str, Any] | None:
        if (text := self.text(name)) is None:
            return None
        try:
            found = from_json(text)
        except ValueError as error:
            raise RigupError(f"{name} of {self.repo} is not JSON: {error}", "use another upload") from error
        if not isinstance(found, dict):
            raise RigupError(f"{name} of {self.repo} is not an object", "use another upload")
        return found
