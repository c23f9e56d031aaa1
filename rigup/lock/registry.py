"""Container registries: what a tag points to today (the part of the OCI distribution protocol that a pull needs)."""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from rigup.lock.http import Unresolved, Web
from rigup.lock.lockfile import ImageLock
from rigup.text import from_json

if TYPE_CHECKING:
    import httpx

HUB = "https://registry-1.docker.io"
MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


def registry_of(tag: str, mirror: str | None) -> tuple[str, str, str]:
    """Return where an image is: base URL, repository, and tag. A mirror replaces Docker Hub only."""
    name, _, version = tag.rpartition(":")
    host, slash, rest = name.partition("/")
    # Docker's own rule: a first component with a dot or a port is a registry.
    if slash and ("." in host or ":" in host or host == "localhost"):
        return f"https://{host}", rest, version
    return mirror or HUB, name if slash else f"library/{name}", version


def image_lock(web: Web, tag: str, mirror: str | None, digest: str | None = None) -> ImageLock:
    """Return what `tag` points to, or the image with `digest` in the same repository. Raises Unresolved."""
    base, repository, version = registry_of(tag, mirror)
    session = _Session(web, base, repository, "registry_mirror" if base in (mirror, HUB) else f"image {tag}")
    top, found = session.manifest(digest or version)
    image = top
    if "manifests" in top:
        image, _ = session.manifest(session.platform(top))
    config = session.blob(str(image["config"]["digest"]))
    environment = dict(entry.split("=", 1) for entry in (config.get("config") or {}).get("Env") or [] if "=" in entry)
    layers = [image["config"], *image["layers"]]
    return ImageLock(
        digest=found,
        created=datetime.fromisoformat(config["created"]),
        bytes=sum(int(layer["size"]) for layer in layers),
        cuda=environment.get("CUDA_VERSION"),
    )


class _Session:
    """One repository of one registry, with the anonymous token that its registry issues."""

    def __init__(self, web: Web, base: str, repository: str, setting: str):
        self.web, self.base, self.repository, self.setting = web, base, repository, setting
        self.token: str | None = None

    def manifest(self, reference: str) -> tuple[dict[str, Any], str]:
        """Return a manifest or an index, and its digest."""
        url = f"{self.base}/v2/{self.repository}/manifests/{reference}"
        answer = self._get(url, {"Accept": MANIFESTS})
        digest = "sha256:" + hashlib.sha256(answer.content).hexdigest()
        for claimed in (answer.headers.get("Docker-Content-Digest"), reference):
            if claimed and claimed.startswith("sha256:") and claimed != digest:
                raise Unresolved(
                    self.setting, url, f"the response has the digest {digest}, not {claimed}", "use another mirror"
                )
        manifest = self._parsed(url, answer)
        if "manifests" not in manifest and not ("config" in manifest and "layers" in manifest):
            raise Unresolved(self.setting, url, "answered with an unknown kind of manifest", "check the image's name")
        return manifest, digest

    def platform(self, index: dict[str, Any]) -> str:
        """Return the digest of an index's image for linux/amd64."""
        for entry in index["manifests"]:
            platform = entry.get("platform") or {}
            if (platform.get("os"), platform.get("architecture")) == ("linux", "amd64"):
                return str(entry["digest"])
        raise Unresolved(
            self.setting, f"{self.base}/{self.repository}", "has no image for linux/amd64", "choose another tag"
        )

    def blob(self, digest: str) -> dict[str, Any]:
        """Return an image's configuration."""
        url = f"{self.base}/v2/{self.repository}/blobs/{digest}"
        answer = self._get(url, {})
        if (found := "sha256:" + hashlib.sha256(answer.content).hexdigest()) != digest:
            raise Unresolved(self.setting, url, f"the response has the digest {found}", "use another mirror")
        config = self._parsed(url, answer)
        if "created" not in config:
            raise Unresolved(self.setting, url, "does not say when the image was built", "choose another tag")
        return config

    def _get(self, url: str, headers: dict[str, str]) -> httpx.Response:
        answer = self.web.ask(self.setting, url, headers | self._authorization())
        if answer.status_code == 401 and self.token is None:
            self.token = self._fetch_token(url, answer.headers.get("WWW-Authenticate", ""))
            answer = self.web.ask(self.setting, url, headers | self._authorization())
        if answer.status_code in (401, 403):
            raise Unresolved(
                self.setting, url, f"answered {answer.status_code}: it needs a login", "use a public image or a mirror"
            )
        if answer.status_code == 404:
            raise Unresolved(
                self.setting,
                url,
                "has no such image or tag",
                # Docker Hub deletes nightly-COMMIT tags after a while.
                "nightly tags are deleted after a while: choose a recipe with another image, or a mirror that has it",
            )
        return self.web.get(self.setting, url, headers | self._authorization())

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def _fetch_token(self, url: str, challenge: str) -> str:
        fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        if not challenge.lower().startswith("bearer ") or not fields.get("realm", "").startswith(
            ("http://", "https://")
        ):
            raise Unresolved(self.setting, url, "needs a login", "use a public image or a mirror")
        query = {key: fields[key] for key in ("service", "scope") if key in fields}
        query.setdefault("scope", f"repository:{self.repository}:pull")
        answer = self.web.json(self.setting, f"{fields['realm']}?{urlencode(query)}")
        token = answer.get("token") or answer.get("access_token") if isinstance(answer, dict) else None
        if not isinstance(token, str):
            raise Unresolved(self.setting, fields["realm"], "issued no token", "try again, or use a mirror")
        return token

    def _parsed(self, url: str, answer: httpx.Response) -> dict[str, Any]:
        try:
            data = from_json(answer.content)
        except ValueError as error:
            remedy = f"check that {self.base} is a registry"
            raise Unresolved(self.setting, url, "did not answer with JSON", remedy) from error
        if not isinstance(data, dict):
            raise Unresolved(
                self.setting, url, "did not answer with an object", f"check that {self.base} is a registry"
            )
        return data
