"""`rigup` as a shell runs it, in this process: Python and what the command imports are begun once."""

from __future__ import annotations

import io
import os
import subprocess
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from rigup.cli.main import main


def rigup(*argv: str, cwd: Path, answer: str = "") -> subprocess.CompletedProcess[str]:
    """What it said and ended with; what processes that it starts say themselves is not among that."""
    out, err = io.StringIO(), io.StringIO()
    # A command may change the environment, for what it starts.
    own = patch.dict(os.environ)
    with chdir(cwd), own, redirect_stdout(out), redirect_stderr(err), patch("sys.stdin", io.StringIO(answer)):
        status = main(argv)
    return subprocess.CompletedProcess(argv, status, out.getvalue(), err.getvalue())
