"""Users that services run as."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.facts.system import UserExists
from rigup.operations._ledger import note


@operation()
def system(user: str) -> Generator[StringCommand, None, None]:
    """Create a system user without a login or a home directory, in a group of its own."""
    if host.get_fact(UserExists, user=user):
        host.noop(f"the user {user} exists")
        return
    yield note("users", [user])
    yield StringCommand(
        "useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin --",
        QuoteString(user),
    )
