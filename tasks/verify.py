"""Verification: GPUs in containers, and endpoints that answer."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from rigup.operations import verify as verify_operations
from tasks.context import Context


@deploy("verify")
def verify(context: Context) -> None:
    """Verify every endpoint once after each start."""
    for endpoint in context.plan.endpoints:
        verify_operations.verified(name=f"Verify that {endpoint.name} serves", endpoint=endpoint, gpus=context.gpus)
