"""Proof by trying: GPUs in containers, and an endpoint that answers."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from rigup.operations import verify as verify_operations
from tasks.context import Context

__all__ = ["verify"]


@deploy("verify")
def verify(context: Context) -> None:
    """Every endpoint was tried since it was started; what was proven for this start is not tried again."""
    for endpoint in context.plan.endpoints:
        verify_operations.proof(name=f"Prove that {endpoint.name} serves", endpoint=endpoint, gpus=context.gpus)
