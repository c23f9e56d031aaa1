"""The start of deploy.py, for tests that run only some of its steps."""

from rigup.run.console import calm
from rigup.run.recorder import record
from tasks.preflight import Context, preflight


def begin() -> Context:
    """Run preflight and record the plan, as deploy.py does."""
    calm()
    record()
    context = preflight()
    record(context.plan)
    return context
