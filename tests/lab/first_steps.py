"""The beginning of the road alone: for tests of many hosts, which need no endpoint."""

from rigup.console import calm
from rigup.events import record
from tasks.base import base
from tasks.kernel import kernel
from tasks.preflight import preflight

calm()
record()

brief = preflight()
record(brief.plan)

base(brief)
kernel(brief)
