"""A host whose login brings what a login can: another locale, umask, PATH, shell and home, and noise from its rc file.

sshd here runs as the tests' user. Its `ForceCommand` takes the place of that user's rc file and login shell, and a
stand-in for sudo that of PAM, which gives a command of sudo the umask and /etc/environment of a login again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.loopback_sshd import Sshd, running_sshd

SHELLS = ("sh", "picky", "bash", "zsh", "fish", "tcsh", "csh")

# The PATH of a login with `PATH="/opt/x:$PATH"` in /etc/environment, which expands nothing.
VARIABLES = {
    "PATH": "/opt/x:$PATH",
    "LANG": "de_DE.UTF-8",
    "LC_ALL": "de_DE.UTF-8",
    "LANGUAGE": "de",
    "HF_HUB_OFFLINE": "1",
    "PIP_USER": "1",
    "PYTHONHOME": "/nonexistent",
    "CURL_HOME": "/nonexistent",
    "GIT_DIR": "/nonexistent",
    "TMPDIR": "/nonexistent",
}

# Says what csh says to what is no csh: a newline or a ! between quotes, a variable, a redirection, an assignment.
PICKY = r"""#!/usr/bin/python3 -IB
import os, re, sys
line = sys.argv[2]
words = re.findall(r"'([^'\n!]*)'|([\w./:%+-]+)", line)
rest = re.sub(r"'[^'\n!]*'|[\w./:%+-]+|[ ]", "", line)
if sys.argv[1] != "-c" or rest:
    sys.exit(f"Unmatched or illegal: {rest[:20]!r}.")
words = [quoted or plain for quoted, plain in words]
os.execvp(words[0], words)
"""
LOGIN = """#!/bin/sh
umask 0077
cd {folder}
/bin/echo Welcome to rig1
/bin/echo 'warning: 93% of the quota is used' >&2
/bin/echo "$SSH_ORIGINAL_COMMAND" >>{folder}/lines
HOME={folder}/elsewhere; export HOME
exec {shell} -c "$(/bin/echo "$SSH_ORIGINAL_COMMAND" | /bin/sed 's|PATH=/|PATH={folder}/programs:/|g')"
"""
SUDO = """#!/bin/sh
umask 0077
{variables}
export {names}
while test "${{1#-}}" != "$1"; do shift; done
exec "$@"
"""


def shell_path(name: str, folder: Path) -> str:
    """Return the path of a shell. Skips the test if this machine lacks it."""
    if name == "picky":
        return str(folder / "picky")
    return shutil.which(name, path="/usr/bin:/bin") or pytest.skip(f"no {name} here (apt-get install {name})")


@contextmanager
def hostile_login(folder: Path, shell: str = "bash") -> Iterator[Sshd]:
    """Start a host with such a login.

    `folder/lines` is what login shells were given to run, and `folder/locales` is where locales are.
    """
    (folder / "programs").mkdir()
    variables = {**VARIABLES, "LOCPATH": str(folder / "locales")}
    scripts = {
        "picky": PICKY,
        "login": LOGIN.format(folder=folder, shell=shell_path(shell, folder)),
        "programs/sudo": SUDO.format(
            variables="\n".join(f"{name}='{value}'" for name, value in variables.items()), names=" ".join(variables)
        ),
    }
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    more = " ".join(f'"{name}={value}"' for name, value in variables.items())
    with running_sshd(folder, f"ForceCommand {folder}/login\n", more) as server:
        yield server
