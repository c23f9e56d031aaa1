"""The first steps of the deploy: for tests of many hosts, which need no endpoint."""

from rigup.run.console import calm
from rigup.run.recorder import record
from tasks.base import base
from tasks.kernel import kernel
from tasks.preflight import preflight

calm()
record()

context = preflight()
record(context.plan)

base(context)
kernel(context)
