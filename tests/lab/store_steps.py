"""The deploy up to the verified checkpoint: for tests of the store, which need no endpoint."""

from pyinfra.api.deploy import deploy

from rigup.operations import model as operations
from rigup.run.console import calm
from rigup.run.recorder import record
from tasks.base import base
from tasks.model import model
from tasks.preflight import Context, preflight


@deploy("wait")
def wait(context: Context) -> None:
    for checkpoint in context.plan.checkpoints:
        operations.wait(name=f"Download and verify {checkpoint.repo}", checkpoint=checkpoint, timeout=300)


calm()
record()

context = preflight()
record(context.plan)

base(context)
model(context)
wait(context)
