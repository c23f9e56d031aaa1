"""The environment of everything that rigup runs on a host, whatever the login has.

A login brings its locale, umask, PATH, shell and rc files, and PAM gives /etc/environment to logins and to sudo. With
them commands would print other words, find other programs, and write files that others cannot read. So a command
starts without any of that. Only what the caller gives it (proxies, say) comes on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

VARIABLES: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    # pip reads no configuration at all, and Python no packages from the home directory.
    "PIP_CONFIG_FILE": "/dev/null",
    "PYTHONNOUSERSITE": "1",
}

# Both programs have only characters that mean the same in every shell between single quotes: no !, \ or '.
_SETTLE = 'umask 022; chdir "/"; $ENV{HOME} = (getpwuid $<)[7]; '
_RUN = _SETTLE + 'exec { $ARGV[0] } @ARGV or die "cannot run $ARGV[0]"'
_ENTER = _SETTLE + (
    '$mark = shift; syswrite STDERR, $mark . "-2"; syswrite STDOUT, $mark . "-1"; '
    'exec "/bin/sh", "-c", join("", @ARGV) =~ s/%(..)/chr hex $1/ger; exit 127'
)
_SAFE = ' "#$&()*+,-./:;<=>?@[]^_`{|}~'
# Below the longest word of a line in BSD's csh.
_WORD = 900


def words(more: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the words to put before a command so that it has exactly the fixed variables and `more`."""
    return ("/usr/bin/env", "-i", *(f"{name}={value}" for name, value in {**VARIABLES, **(more or {})}.items()))


CLEAN = (*words(), "/usr/bin/perl", "-e", _RUN)
"""The words to put before a command after sudo or su: these take over the login's umask and /etc/environment."""


def login_line(command: str, mark: str) -> str:
    """Return the line to send to a login shell, of any kind, that makes /bin/sh run `command`.

    The output of the command begins after `opening(mark, STREAM)`; what the login printed comes before that.
    """
    text = quote(command, safe=_SAFE)
    payload = [text[at : at + _WORD] for at in range(0, len(text), _WORD)]
    return " ".join(f"'{word}'" for word in (*words(), "/usr/bin/perl", "-e", _ENTER, mark, *payload))


def opening(mark: str, stream: int) -> bytes:
    """Return what precedes a command's output on a stream: 1 is standard output, 2 is standard error.

    On a terminal both are one stream, in which that of standard output is the last.
    """
    return f"{mark}-{stream}".encode()


def not_run(output: str) -> str:
    """Return the message for a login whose `output` lacks the opening: its shell has not run the command."""
    said = (output.strip() or "nothing").splitlines()[-1]
    return f"its login shell ran no command, but printed: {said}. Check the shell of that login and what it reads"
