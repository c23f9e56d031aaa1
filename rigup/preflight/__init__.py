"""Preflight: find everything that would stop a deploy halfway, before anything on a host is changed.

`snapshot` defines what is read from a host, `disk`, `docker`, `hardware`, `kernel`, `network` and `software` hold the
checks, and `checks` runs them. The code is pure: `tasks.gather` reads the hosts. May import `plan` and what that may
import, but not `facts` or `operations`.

What an earlier deploy left is not a problem: its own port, a partial checkpoint, installed packages. Only what is still
missing counts.
"""
