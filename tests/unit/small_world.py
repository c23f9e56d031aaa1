"""A miniature registry, hub and three apt repositories, as pages of a loopback site."""

import base64
import gzip
import hashlib
import json

from rigup.distros.driver import TOOLKIT_PACKAGES
from rigup.lock.openpgp import fingerprints
from tests.unit.loopback import Answer, Site
from tests.unit.sample import REPO, REVISION, TAG

OWNERS = ("NVIDIA", "Docker", "NVIDIA's toolkit")
INDEX = "application/vnd.oci.image.index.v1+json"
CREATED = "2026-02-23T10:11:12.123456789Z"


def digest(body: bytes) -> str:
    return "sha256:" + hashlib.sha256(body).hexdigest()


def image_pages(site: Site, name: str, tag: str, created: str = CREATED) -> str:
    """Add an image with an index of two platforms to the site; return the index's digest."""
    config = json.dumps(
        {"created": created, "config": {"Env": ["PATH=/usr/bin", "CUDA_VERSION=13.0.1", "ODD"]}}
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": {"digest": digest(config), "size": len(config)},
            "layers": [{"digest": "sha256:" + "1" * 64, "size": 1000}, {"digest": "sha256:" + "2" * 64, "size": 234}],
        }
    ).encode()
    index = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [
                {"digest": "sha256:" + "3" * 64, "platform": {"os": "linux", "architecture": "arm64"}},
                {"digest": digest(manifest), "platform": {"os": "linux", "architecture": "amd64"}},
            ],
        }
    ).encode()
    base = f"/v2/{name}"
    answer = Answer(index, headers={"Content-Type": INDEX, "Docker-Content-Digest": digest(index)})
    site.pages |= {
        f"{base}/manifests/{tag}": answer,
        f"{base}/manifests/{digest(index)}": answer,
        f"{base}/manifests/{digest(manifest)}": Answer(manifest),
        f"{base}/blobs/{digest(config)}": Answer(config),
    }
    return digest(index)


TEMPLATE = b"{{ messages | map(attribute='content') | join }}"
CONFIG = b'{"quantization_config": {"ignore": []}}'.ljust(100 - len(TEMPLATE))


def published(path: str, content: bytes) -> dict[str, object]:
    """A small file's entry in the hub's listing."""
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": oid}


def hub_pages(site: Site, revision: str = REVISION) -> None:
    tree = f"/api/models/{REPO}/tree/{revision}?recursive=true&expand=false"
    first = [
        {"type": "directory", "path": "d", "size": 0},
        published("config.json", CONFIG),
        published("chat_template.jinja", TEMPLATE),
    ]
    second = [{"type": "file", "path": "model.safetensors", "size": 5000, "lfs": {"size": 5000, "oid": "d" * 64}}]
    site.pages |= {
        f"/api/models/{REPO}/revision/main": Answer(json.dumps({"sha": revision}).encode()),
        tree: Answer(json.dumps(first).encode(), headers={"Link": f'<{site.url}{tree}&cursor=x>; rel="next"'}),
        f"{tree}&cursor=x": Answer(json.dumps(second).encode()),
        f"/{REPO}/resolve/{revision}/chat_template.jinja": Answer(TEMPLATE),
        f"/{REPO}/resolve/{revision}/config.json": Answer(CONFIG),
    }


def packages(*entries: tuple[str, str]) -> Answer:
    """Return a Packages.gz with these names and versions."""
    paragraphs = [
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nDescription: {name}\n more: words\n"
        for name, version in entries
    ]
    return Answer(gzip.compress("\n".join(paragraphs).encode()))


DRIVER = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced")


def public_key(owner: str, comment: str = "") -> bytes:
    """Return an armored file with a made-up public key, unlike that of any other owner."""
    body = b"\x04\x00\x00\x00\x00\x16" + owner.encode()
    lines = [
        "-----BEGIN PGP PUBLIC KEY BLOCK-----",
        *([f"Comment: {comment}"] if comment else []),
        "",
        base64.b64encode(bytes([0x98, len(body)]) + body).decode(),
        "-----END PGP PUBLIC KEY BLOCK-----",
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def apt_pages(site: Site) -> None:
    cuda = [(name, f"{version}-1") for name in DRIVER for version in ("595.71.05", "595.9.1", "595.91.07", "610.57.04")]
    cuda += [("nvidia-driver-pinning-595", "595-1"), ("nvidia-driver-pinning-610", "610-1")]
    cuda += [(f"nvidia-driver-pinning-{version}", f"{version}-1") for version in ("595.71.05", "595.91.07")]
    cuda += [("cuda-toolkit-13-2", "13.2.0-1"), ("cuda-toolkit-13-2", "13.2.1-1"), ("cuda-toolkit-13-3", "13.3.0-1")]
    docker = [
        (name, f"5:{version}-1~debian.13~trixie")
        for name in ("docker-ce", "docker-ce-cli")
        for version in ("29.6.1", "29.7.2", "29.10.0~rc.1")
    ]
    docker += [
        ("containerd.io", "2.2.6-1"),
        ("containerd.io", "2.10.1-1"),
        ("docker-buildx-plugin", "0.30.1-1"),
        ("docker-compose-plugin", "5.0.1-1"),
    ]
    toolkit = [(name, f"{version}-1") for name in TOOLKIT_PACKAGES for version in ("1.19.1", "1.20.1")]
    # Half of a release: the mirror was caught while it was being filled.
    toolkit += [(name, "1.21.0-1") for name in TOOLKIT_PACKAGES[:2]]
    site.pages |= {
        "/cuda/debian13/x86_64/Packages.gz": packages(*cuda),
        "/cuda/debian13/x86_64/8793F200.pub": Answer(public_key("NVIDIA")),
        "/docker/debian/dists/trixie/stable/binary-amd64/Packages.gz": packages(*docker),
        "/docker/debian/gpg": Answer(public_key("Docker")),
        "/toolkit/stable/deb/amd64/Packages.gz": packages(*toolkit),
        "/toolkit/gpgkey": Answer(public_key("NVIDIA's toolkit")),
    }


def world(site: Site) -> dict[str, object]:
    """Fill the site; return the settings that point to it."""
    name, _, tag = TAG.rpartition(":")
    image_pages(site, name, tag)
    hub_pages(site)
    apt_pages(site)
    return {
        "cuda_mirror": f"{site.url}/cuda",
        "docker_mirror": f"{site.url}/docker",
        "toolkit_mirror": f"{site.url}/toolkit",
        "apt_keys": [key for owner in OWNERS for key in fingerprints(public_key(owner))],
        "hub_endpoint": site.url,
        "registry_mirror": site.url,
    }
