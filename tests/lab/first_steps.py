"""The first steps of the deploy: for tests of many hosts, which need no endpoint."""

from rigup.run.console import shorten_output
from rigup.run.recorder import record_plan, start_recording
from tasks.base import base
from tasks.kernel import kernel
from tasks.preflight import preflight

shorten_output()
start_recording()

context = preflight()
record_plan(context.plan)

base(context)
kernel(context)
