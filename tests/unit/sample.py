"""One resolved world for the tests: the project's catalog, a lock that fits it, the published config files."""

from datetime import UTC, datetime

from rigup.catalog.loader import default_catalog
from rigup.config.settings import Settings
from rigup.distros.driver import TOOLKIT_PACKAGES
from rigup.lock.lockfile import CheckpointLock, ImageLock, Lock
from rigup.plan.build import Published, make_plan
from rigup.plan.model import Plan

CATALOGUE = default_catalog()
TAG = "vllm/vllm-openai:cu130-nightly"
REPO = "nvidia/Qwen3.5-397B-A17B-NVFP4"
DIGEST = "sha256:" + "ab" * 32
REVISION = "c5c90ef5aaa1489993ca51affdc95fc3cd84e8c2"
GIB = 1 << 30
LISTING = {"config.json": f"100 git:{'c' * 40}", "model.safetensors": f"5000 sha256:{'d' * 64}"}

PUBLISHED: Published = {
    f"{REPO}@{REVISION}": {
        "config.json": '{"quantization_config": {"ignore": ["lm_head"], "quant_algo": "NVFP4"}}',
        # One that needs no patch.
        "chat_template.jinja": "{% for message in messages %}{{ message.content }}{% endfor %}",
    }
}


def image(created: datetime = datetime(2026, 4, 10, tzinfo=UTC), cuda: str | None = "13.0.1") -> ImageLock:
    return ImageLock(digest=DIGEST, created=created, bytes=9 * GIB, cuda=cuda)


def lock(made: ImageLock | None = None) -> Lock:
    """A lock for Debian 13 and the default settings."""
    driver = ("nvidia-driver-pinning-595.71.05", "nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced")
    return Lock(
        images={TAG: made or image()},
        checkpoints={f"{REPO}@main": CheckpointLock(revision=REVISION, bytes=234 * GIB, files=40, listing=LISTING)},
        packages={
            "debian13": {
                "driver-595": dict.fromkeys(driver, "595.71.05-1"),
                "docker": {"docker-ce": "5:28.5.2-1~debian.13~trixie", "containerd.io": "2.2.6-1"},
                "toolkit": dict.fromkeys(TOOLKIT_PACKAGES, "1.20.1-1"),
                "cuda-toolkit-13-2": {"cuda-toolkit-13-2": "13.2.1-1"},
            }
        },
    )


def plan(made: ImageLock | None = None, **settings: object) -> Plan:
    return make_plan("rig1", Settings.from_data(settings), CATALOGUE, lock(made), PUBLISHED)


# The beginning of a user's recipe, which extends the catalog's recipe `base`.
OWN = """\
id: mine
title: Mine
extends: {base}
status: assembled
tool_calls: unknown
evidence: [{{source: here, kind: assembled, says: a guess}}]
"""
