"""The Hugging Face hub: what a branch points to today, and small files at a commit."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from rigup import commands
from rigup.fit.shape import kept
from rigup.lock.http import Unresolved, Web
from rigup.lock.lockfile import CheckpointLock
from rigup.text import from_json

SETTING = "hub_endpoint"
TOKEN_HOST = "huggingface.co"
MAX_PAGES = 1000
# Bytes of a config.json that the lock keeps. Those of real models are below 10,000.
MAX_CONFIG = 1 << 16
# Untrained weights are a property of the checkpoint, not of a host, so they are no setting: the publisher states it as
# a tag, and the lock records it with the commit. The lab's hub tags its miniatures, which can only write nonsense.
UNTRAINED = "random-weights"


def _token(url: str) -> str | None:
    # The token is for the hub only: not for a mirror of another name, nor for whoever answers without TLS. There is no
    # exception for loopback, since the lab's hub needs no token.
    parts = urlsplit(url)
    return os.environ.get("HF_TOKEN") if (parts.scheme, parts.hostname) == ("https", TOKEN_HOST) else None


def _headers(url: str) -> dict[str, str]:
    token = _token(url)
    return {"Authorization": f"Bearer {token}"} if token else {}


def token_for(endpoint: str) -> str | None:
    """Return the credential for a host's downloader: HF_TOKEN of this environment, and the only server to send it to.

    None if there is no token, or if `endpoint` is another server or has no TLS.
    """
    token = _token(endpoint)
    return token and json.dumps({"host": TOKEN_HOST, "token": token}) + "\n"


def checkpoint_lock(web: Web, endpoint: str, repo: str, revision: str) -> CheckpointLock:
    """Return the commit of `revision` (branch or commit), and its files with size and checksum. Raises Unresolved."""
    url = f"{endpoint}/api/models/{repo}/revision/{quote(revision, safe='')}"
    headers = _headers(url)
    _present(web, url, headers, f"{repo} at {revision}")
    about = web.json(SETTING, url, headers)
    commit = _field(about, "sha", url)
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise Unresolved(SETTING, url, f"{commit!r} is not a commit", "check that hub_endpoint is a hub or a mirror")
    if re.fullmatch(r"[0-9a-f]{40}", revision) and commit != revision:
        raise Unresolved(SETTING, url, f"answered with another commit, {commit}", "use another mirror")
    listing: dict[str, str] = {}
    page: str | None = f"{endpoint}/api/models/{repo}/tree/{commit}?recursive=true&expand=false"
    pages = 0
    while page:
        if (pages := pages + 1) > MAX_PAGES:
            raise Unresolved(SETTING, url, f"lists files on more than {MAX_PAGES} pages", "check hub_endpoint")
        # The server says where the next page is.
        headers = _headers(page)
        entries = web.json(SETTING, page, headers)
        if not isinstance(entries, list):
            raise Unresolved(SETTING, page, "did not answer with a list of files", "check hub_endpoint")
        listing |= {entry["path"]: _published(entry, page) for entry in entries if entry.get("type") == "file"}
        page = web.get(SETTING, page, headers).links.get("next", {}).get("url")
    if not listing:
        raise Unresolved(SETTING, url, "the repository has no files", "check the checkpoint's repo and branch")
    size = sum(int(entry.partition(" ")[0]) for entry in listing.values())
    tags = about.get("tags")
    return CheckpointLock(
        revision=commit,
        bytes=size,
        files=len(listing),
        listing=listing,
        config=_config(web, f"{endpoint}/{repo}/resolve/{commit}/config.json", listing.get("config.json")),
        random_weights=True if isinstance(tags, list) and UNTRAINED in tags else None,
    )


def _config(web: Web, url: str, published: str | None) -> dict[str, Any] | None:
    """Return what counts of a published config.json; None if there is none, or a lock cannot keep it."""
    if published is None:
        return None
    content = web.get(SETTING, url, _headers(url)).content
    if not _is(content, published):
        raise Unresolved(SETTING, url, f"differs from the file that the hub lists ({published})", "use another mirror")
    try:
        config = from_json(content)
        found = kept(config) if isinstance(config, dict) else None
        size = len(json.dumps(found, ensure_ascii=False, allow_nan=False).encode())
    except ValueError:
        return None
    return found if size <= MAX_CONFIG else None


def _published(entry: Mapping[str, Any], url: str) -> str:
    """Return a file's size and checksum: the sha256 if it is in Git LFS, else its Git object id."""
    large, name = entry.get("lfs"), f"{entry.get('path')}"
    kind, checksum = ("sha256", large.get("oid")) if isinstance(large, dict) else ("git", entry.get("oid"))
    if not isinstance(checksum, str) or not isinstance(entry.get("size"), int):
        raise Unresolved(SETTING, url, f"gives no size or checksum for {name}", "use another mirror")
    return f"{entry['size']} {kind}:{checksum}"


def published_file(endpoint: str, repo: str, lock: CheckpointLock, name: str, cache_dir: Path) -> bytes | None:
    """Return a small published file of a locked checkpoint; None if it has no such file.

    Its bytes are those that the lock names, from the hub or from `cache_dir`, where it is kept. Raises Unresolved.
    """
    url = f"{endpoint}/{repo}/resolve/{lock.revision}/{quote(name)}"
    if not lock.listing:
        raise Unresolved(
            SETTING, url, "the lock has no checksums of its files", f"run `{commands.rigup('update', 'checkpoints')}`"
        )
    if (published := lock.listing.get(name)) is None:
        return None
    kept = cache_dir / "published" / repo / lock.revision / name
    if kept.is_file() and _is(content := kept.read_bytes(), published):
        return content
    with Web() as web:
        content = web.get(SETTING, url, _headers(url)).content
    if not _is(content, published):
        raise Unresolved(SETTING, url, f"differs from the file that the lock names ({published})", "use another mirror")
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(kept)
    return content


def _is(content: bytes, published: str) -> bool:
    """Return whether these are the bytes of a file, as its entry in the lock's listing says."""
    size, _, checksum = published.partition(" ")
    kind, _, digest = checksum.partition(":")
    if kind == "sha256":
        found = hashlib.sha256(content)
    else:
        # A Git object id: of the content after a header.
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return len(content) == int(size) and found.hexdigest() == digest


def _present(web: Web, url: str, headers: Mapping[str, str], what: str) -> None:
    answer = web.ask(SETTING, url, headers)
    # The hub answers 401 for private repositories.
    if answer.status_code in (401, 403):
        raise Unresolved(SETTING, url, f"{what} needs a login", "set HF_TOKEN, and accept the model's terms on the hub")
    if answer.status_code == 404:
        raise Unresolved(SETTING, url, f"there is no {what}", "check the checkpoint's repo and branch")


def _field(data: Any, name: str, url: str) -> str:
    value = data.get(name) if isinstance(data, dict) else None
    if not isinstance(value, str):
        raise Unresolved(SETTING, url, f"answered without {name}", "check that hub_endpoint is a hub or a mirror")
    return value
