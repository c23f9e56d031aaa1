"""Proof by trying: GPUs in containers, and an endpoint that answers."""

from __future__ import annotations

from pathlib import Path

from pyinfra.api.deploy import deploy

from rigup.operations import files
from rigup.operations import verify as verify_operations
from tasks.preflight import Brief

__all__ = ["verify"]

FILES = Path(__file__).resolve().parent.parent / "files"
PROVE = "/usr/local/lib/rigup/prove.py"


@deploy("verify")
def verify(brief: Brief) -> None:
    """Every endpoint was tried since it was started; what was proven for this start is not tried again."""
    files.install(name="Install the proof", dest=PROVE, content=(FILES / "prove.py").read_text(), mode="755")
    for endpoint in brief.plan.endpoints:
        verify_operations.proof(name=f"Prove that {endpoint.name} serves", endpoint=endpoint, gpus=brief.gpus)
