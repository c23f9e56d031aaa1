"""The Hugging Face hub: what a branch points to today, and small files at a commit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from rigup.lock.http import Unresolved, Web
from rigup.lock.lockfile import CheckpointLock

__all__ = ["checkpoint_lock", "published_file", "token_for"]

SETTING = "hub_endpoint"
TOKEN_HOST = "huggingface.co"
LARGEST = 64 << 20
# Untrained weights are a property of the checkpoint, not of a host, so they are no setting: the publisher states it as
# a tag, and the lock records it with the commit. The lab's hub tags its miniatures, which can only write nonsense.
UNTRAINED = "random-weights"


def _headers(endpoint: str) -> dict[str, str]:
    # The token is for the hub only and must never be sent to a mirror of another name.
    token = os.environ.get("HF_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token and urlsplit(endpoint).hostname == TOKEN_HOST else {}


def token_for(endpoint: str) -> str | None:
    """Return the credential for a host's downloader: HF_TOKEN of this environment, and the only server to send it to.

    None if there is no token, or if `endpoint` is another server.
    """
    token = os.environ.get("HF_TOKEN")
    if not token or urlsplit(endpoint).hostname != TOKEN_HOST:
        return None
    return json.dumps({"host": TOKEN_HOST, "token": token}) + "\n"


def checkpoint_lock(web: Web, endpoint: str, repo: str, revision: str) -> CheckpointLock:
    """Return the commit of `revision` (branch or commit), and its files with size and checksum. Raises Unresolved."""
    headers = _headers(endpoint)
    url = f"{endpoint}/api/models/{repo}/revision/{quote(revision, safe='')}"
    _present(web, url, headers, f"{repo} at {revision}")
    about = web.json(SETTING, url, headers)
    commit = _field(about, "sha", url)
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise Unresolved(SETTING, url, f"{commit!r} is not a commit", "check that hub_endpoint is a hub or a mirror")
    if re.fullmatch(r"[0-9a-f]{40}", revision) and commit != revision:
        raise Unresolved(SETTING, url, f"answered with another commit, {commit}", "use another mirror")
    listing: dict[str, str] = {}
    page: str | None = f"{endpoint}/api/models/{repo}/tree/{commit}?recursive=true&expand=false"
    while page:
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
        random_weights=True if isinstance(tags, list) and UNTRAINED in tags else None,
    )


def _published(entry: Mapping[str, Any], url: str) -> str:
    """Return a file's size and checksum: the sha256 if it is in Git LFS, else its Git object id."""
    large, name = entry.get("lfs"), f"{entry.get('path')}"
    kind, checksum = ("sha256", large.get("oid")) if isinstance(large, dict) else ("git", entry.get("oid"))
    if not isinstance(checksum, str) or not isinstance(entry.get("size"), int):
        raise Unresolved(SETTING, url, f"gives no size or checksum for {name}", "use another mirror")
    return f"{entry['size']} {kind}:{checksum}"


def published_file(endpoint: str, repo: str, revision: str, name: str, cache_dir: Path) -> bytes | None:
    """Return a small published file at a 40-digit revision; None if the repository has no such file there.

    A commit never changes, so each file, and its absence, is requested once and kept under `cache_dir`.
    Raises Unresolved.
    """
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(f"{revision!r} is not a commit")
    kept = cache_dir / "published" / repo / revision / name
    absent = kept.with_name(kept.name + ".absent")
    if kept.is_file():
        return kept.read_bytes()
    if absent.exists():
        return None
    url = f"{endpoint}/{repo}/resolve/{revision}/{quote(name)}"
    with Web() as web:
        answer = web.ask(SETTING, url, _headers(endpoint))
        missing = answer.status_code == 404
        content = b"" if missing else web.get(SETTING, url, _headers(endpoint)).content
    if len(content) > LARGEST:
        raise Unresolved(SETTING, url, f"has {len(content)} bytes, too many for a config file", "check hub_endpoint")
    target = absent if missing else kept
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(target)
    return None if missing else content


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
