"""What a download is asked to fetch, and its hub token."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rigup_host.fetch.peers import Peer
from rigup_host.fetch.store import REVISION, File, Hopeless, Store
from rigup_host.files import from_json


@dataclass(frozen=True)
class Request:
    """What to fetch, from where, and to where."""

    store: Store
    hubs: tuple[str, ...]
    venv: Path
    sources: tuple[Path, ...]
    name: str
    peers: tuple[Peer, ...]

    @classmethod
    def read(cls, path: Path) -> Request:
        """Read a request. Raise Hopeless for an invalid one."""
        try:
            data = from_json(path.read_text())
            files = {name: File.read(name, entry) for name, entry in data["files"].items()}
            store = Store(str(data["repo"]), str(data["revision"]), Path(data["dest"]), files)
            peers = [Peer(each["name"], each["address"], int(each["port"])) for each in data.get("peers", [])]
            request = cls(
                store=store,
                hubs=tuple(map(str, data["hubs"])),
                venv=Path(data["venv"]),
                sources=tuple(map(Path, data.get("sources", []))),
                name=str(data.get("name", "")),
                peers=tuple(peers),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Hopeless(f"{path} is not a valid request: {type(error).__name__}: {error}") from error
        if not REVISION.fullmatch(store.revision):
            raise Hopeless(f"{path}: revision {store.revision!r} is not a commit of 40 hex digits")
        if not store.dest.is_absolute() or len(store.dest.parts) < 4:
            raise Hopeless(f"{path}: dest {data['dest']!r} is not an absolute directory in a store")
        if not files or not request.hubs:
            raise Hopeless(f"{path} has no files or no hubs")
        return request


def token_for(url: str) -> str | None:
    """Return the token for a hub, from systemd's credential `hub-token`; None if there is none for this hub.

    It is sent with TLS only. On loopback there is no network on which it could be read, and the tests' hubs are there.
    """
    path = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), "hub-token")
    try:
        found = from_json(path.read_text())
        parts = urlsplit(url)
        is_safe = parts.scheme == "https" or parts.hostname == "127.0.0.1"
        return str(found["token"]) if is_safe and parts.hostname == found["host"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
