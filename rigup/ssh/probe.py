"""Whether a login runs commands, and becomes root: what a host says instead, while the connection is made."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from contextlib import closing

import paramiko

from rigup.ssh import environment
from rigup.ssh.login import Login
from rigup.ssh.transport import BROKEN, CONNECT_S, NoConnection, words

SLOW_S = 5
"""Seconds after which a slow answer is announced."""

LIMIT_S = 120
"""Seconds that the host may take."""

_MAX_BYTES = 1 << 16

# What a host says, whoever prints it, and what helps; {1} is what the pattern's group has found.
_REMEDIES = (
    (r"login as the user \W?([\w.-]+)", "set `user: {1}` for this host in the inventory"),
    (
        r"password (?:has|is) expired|password expired|change your password|[Pp]assword change required",
        "log in once with `{ssh}` and change the password, or run `chage -M -1 {user}` as root on the host",
    ),
    (r"sudo: .*must have a tty", "add `Defaults:{user} !requiretty` under /etc/sudoers.d/ on the host"),
    (r"not in the sudoers|not allowed to", "add `{user} ALL=(ALL) NOPASSWD: ALL` under /etc/sudoers.d/ on the host"),
    (r"sudo\W.*(?:not found|No such file)", "install sudo on the host, or log in as root"),
    (r"account is (?:currently )?not available|nologin", "give {user} a login shell, or set another `user`"),
)
_ASKS = re.compile(r"sudo: .*password is required|sudo: .*askpass")


class AsksForPassword(NoConnection):
    """sudo works, but not without a password."""


def probe(transport: paramiko.Transport, login: Login, sudo: bool, say: Callable[[str], None]) -> None:
    """Run nothing, with `sudo` as root. Calls `say` with what takes long and why.

    Raises NoConnection with the host's words and a remedy, and one of BROKEN.
    """
    before, found, after, code = _run(transport, "sudo -H -n true" if sudo else ":", login, say)
    ssh = " ".join(login.command)
    if not found:
        raise NoConnection(
            f"the login of {login.user} runs no commands: {words(before) or 'it prints nothing'}",
            _remedy(before, login) or f"log in with `{ssh}` and see why",
        )
    if code:
        remedy = _remedy(after, login) or f"fix sudo: `{ssh} sudo -n true` must succeed"
        if _ASKS.search(after):
            raise AsksForPassword(
                f"sudo asks {login.user} for a password",
                f"add `{login.user} ALL=(ALL) NOPASSWD: ALL` under /etc/sudoers.d/ on the host, or log in as root",
            )
        raise NoConnection(f"{login.user} cannot use sudo: {words(after) or f'it exits with {code}'}", remedy)


def _start(channel: paramiko.Channel, command: str) -> tuple[bytes, bytes]:
    """Start a command whose streams are one; return the marks of its output and of its errors."""
    mark = secrets.token_hex(16)
    channel.set_combine_stderr(True)
    channel.exec_command(environment.login_line(command, mark))
    channel.shutdown_write()
    return environment.opening(mark, 1), environment.opening(mark, 2)


def _run(
    transport: paramiko.Transport, command: str, login: Login, say: Callable[[str], None]
) -> tuple[str, bool, str, int]:
    """Return what a login prints before a command, whether that runs, what it prints, and its exit code."""
    received, told = bytearray(), set[bool]()
    with closing(transport.open_session(timeout=LIMIT_S)) as channel:
        opening, other = _start(channel, command)
        while len(received) < _MAX_BYTES:
            is_sudo = opening in received
            channel.settimeout(LIMIT_S if is_sudo in told else SLOW_S)
            try:
                chunk = channel.recv(1 << 16)
            except TimeoutError:
                if is_sudo in told:
                    raise NoConnection(
                        f"it did not run a command within {LIMIT_S} s: {words(received.decode(errors='replace'))}",
                        f"see why `{' '.join(login.command)} {'sudo -n true' if is_sudo else 'true'}` takes so long",
                    ) from None
                told.add(is_sudo)
                say(_why_slow(transport, is_sudo))
                continue
            if not chunk:
                break
            received += chunk
        channel.status_event.wait(SLOW_S)
        # Both streams have a mark, in any order.
        before, found, after = received.replace(other, b"").partition(opening)
        return before.decode(errors="replace"), bool(found), after.decode(errors="replace"), channel.exit_status


def _why_slow(transport: paramiko.Transport, is_sudo: bool) -> str:
    """Return what is slow, with the usual reason for a slow sudo: it looks up the host's own name."""
    if not is_sudo:
        return f"no command has run after {SLOW_S} s: the host is busy, or its login shell's startup files are slow"
    try:
        # Not ours, which waits for a free session.
        with closing(paramiko.Transport.open_session(transport, timeout=CONNECT_S)) as channel:
            channel.settimeout(CONNECT_S)
            opening, other = _start(channel, "uname -n; cat /etc/hosts")
            output = channel.makefile("rb").read(_MAX_BYTES).replace(other, b"").partition(opening)[2]
            name, *lines = output.decode(errors="replace").splitlines() or [""]
    except BROKEN:
        name, lines = "", []
    names = {word for line in lines for word in line.partition("#")[0].split()[1:]}
    if name and name not in names:
        return (
            f"sudo is slow: no answer after {SLOW_S} s. It looks up the host's own name, {words(name)}, which "
            f"/etc/hosts does not have: add the line `127.0.1.1 {words(name)}` to /etc/hosts on the host"
        )
    return f"sudo is slow: no answer after {SLOW_S} s. Check name resolution on the host, and PAM"


def _remedy(said: str, login: Login) -> str:
    for pattern, remedy in _REMEDIES:
        if match := re.search(pattern, said, re.IGNORECASE):
            found = words(match[1]) if match.groups() else ""
            return remedy.format("", found, user=login.user, ssh=" ".join(login.command))
    return ""
