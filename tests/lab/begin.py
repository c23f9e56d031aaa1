"""The start of deploy.py, for tests that run only some of its steps."""

from rigup.run.console import shorten_output
from rigup.run.recorder import record_plan, start_recording
from tasks.context import Context
from tasks.preflight import preflight


def begin() -> Context:
    """Run preflight and record the plan, as deploy.py does."""
    shorten_output()
    start_recording()
    context = preflight()
    record_plan(context.plan)
    return context
