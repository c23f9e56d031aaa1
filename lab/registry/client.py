"""A client for a container registry: the requests of the distribution protocol that pushing an image needs."""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from lab.errors import LabError
from lab.registry.layers import Blob

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


class Registry:
    """A registry over plain HTTP. Every method raises OSError when it does not answer."""

    def __init__(self, url: str, timeout: float = 120.0) -> None:
        self._address = urlsplit(url).netloc
        self._timeout = timeout

    @contextmanager
    def _ask(
        self, method: str, path: str, body: bytes | BinaryIO | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        with closing(http.client.HTTPConnection(self._address, timeout=self._timeout)) as connection:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            yield connection.getresponse()

    def answers(self) -> bool:
        """Whether a registry answers."""
        with self._ask("GET", "/v2/") as answer:
            return answer.status == 200

    def has_blob(self, name: str, blob: Blob) -> bool:
        """Whether the repository `name` contains the blob."""
        with self._ask("HEAD", f"/v2/{name}/blobs/{blob.digest}") as answer:
            return answer.status == 200

    def manifest_digest(self, name: str, reference: str) -> str | None:
        """Return the digest that a tag refers to; None without such a tag."""
        accept = {"Accept": f"{INDEX_TYPE}, {MANIFEST_TYPE}"}
        with self._ask("HEAD", f"/v2/{name}/manifests/{reference}", headers=accept) as answer:
            return answer.headers["Docker-Content-Digest"] if answer.status == 200 else None

    def push_blob(self, name: str, blob: Blob, content: Path | bytes) -> None:
        """Upload a blob in one piece unless the repository contains it."""
        if self.has_blob(name, blob):
            return
        with self._ask("POST", f"/v2/{name}/blobs/uploads/") as answer:
            if answer.status != 202:
                raise LabError(f"starting an upload to {name} was answered {answer.status}: {_text(answer)}")
            location = urlsplit(answer.headers["Location"])
        separator = "&" if location.query else "?"
        path = f"{location.path}{'?' if location.query else ''}{location.query}{separator}digest={blob.digest}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        if isinstance(content, bytes):
            self._put(path, content, headers)
        else:
            with content.open("rb") as stream:
                self._put(path, stream, headers)

    def mount_blob(self, name: str, blob: Blob, source: str) -> None:
        """Add a blob of the repository `source` to the repository `name` without uploading it."""
        if name == source or self.has_blob(name, blob):
            return
        with self._ask("POST", f"/v2/{name}/blobs/uploads/?mount={blob.digest}&from={source}") as answer:
            if answer.status != 201:
                raise LabError(f"mounting a blob of {source} in {name} was answered {answer.status}")

    def push_manifest(self, name: str, reference: str, media_type: str, content: bytes) -> None:
        """Store a manifest or index under a tag or its digest."""
        self._put(f"/v2/{name}/manifests/{reference}", content, {"Content-Type": media_type})

    def _put(self, path: str, body: bytes | BinaryIO, headers: Mapping[str, str]) -> None:
        with self._ask("PUT", path, body, headers) as answer:
            if answer.status != 201:
                raise LabError(f"PUT {path.partition('?')[0]} was answered {answer.status}: {_text(answer)}")


def _text(answer: http.client.HTTPResponse) -> str:
    body = answer.read(2000).decode(errors="replace")
    try:
        return "; ".join(str(error["message"]) for error in json.loads(body)["errors"])
    except (ValueError, KeyError, TypeError):
        return body
