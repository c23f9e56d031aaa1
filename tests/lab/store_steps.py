"""The steps up to the checkpoint, and waiting for it: for tests of the store, which need no endpoint."""

from pyinfra.api.deploy import deploy

from rigup.operations import model as operations
from tasks.base import base
from tasks.context import Context
from tasks.model import model
from tests.lab.begin import begin


@deploy("wait")
def wait(context: Context) -> None:
    for checkpoint in context.plan.checkpoints:
        operations.wait(name=f"Download and verify {checkpoint.repo}", checkpoint=checkpoint, timeout=300)


context = begin()
base(context)
model(context)
wait(context)
