"""`rigup logs`: the journal of an endpoint's unit, as it is written."""

from __future__ import annotations

import argparse
import codecs
import shlex
import sys

from rigup.cli._hosts import add_host, add_inventory, find_target, one_endpoint, read_inventory
from rigup.cli._parser import Commands
from rigup.errors import RigupError
from rigup.paths import endpoint_unit
from rigup.ssh.batch import Command
from rigup.ssh.client import Client

LINES = 100


def register(commands: Commands) -> None:
    """Add `rigup logs`."""
    parser = commands.add_parser(
        "logs",
        help="print the log of an endpoint",
        description="Prints the journal of the endpoint's unit on its host. `rigup diagnose` explains it.",
        epilog="Exit codes: 0 success, 2 there is no such line, 1 failure.",
    )
    add_host(parser, endpoints=True, help="the endpoint; its name may be left out if the host has only one")
    parser.add_argument("-f", "--follow", action="store_true", help="print new lines until Ctrl-C")
    parser.add_argument("-n", "--lines", type=int, metavar="N", help=f"the last N lines (default: {LINES})")
    parser.add_argument("--since", metavar="TIME", help='lines since then, such as "10 min ago", today or "09:30"')
    add_inventory(parser)
    parser.set_defaults(run=_logs)


def _logs(options: argparse.Namespace) -> int:
    """Run `rigup logs`. Raises RigupError for an unknown endpoint, and for a TIME that journalctl does not accept."""
    target = find_target(read_inventory(options), options.host)
    words = ["journalctl", "--no-pager", "--quiet", "--output=short-iso", "--no-hostname"]
    words += [f"--unit={endpoint_unit(one_endpoint(target))}"]
    words += ["--follow"] if options.follow else []
    words += [f"--since={options.since}"] if options.since else []
    if options.lines is not None or not options.since:
        words += [f"--lines={LINES if options.lines is None else options.lines}"]
    elif options.follow:
        # Otherwise it would begin with the last ten lines.
        words += ["--no-tail"]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    any_line = False

    def write(chunk: bytes) -> None:
        nonlocal any_line
        any_line = True
        sys.stdout.write(decoder.decode(chunk))
        sys.stdout.flush()

    with Client(target.host) as client:
        result = client.stream(Command(shlex.join(words), client.sudo), write)
    if result.code:
        raise RigupError(f"{target.host.name}: {result.stderr.decode(errors='replace').strip()}")
    if not any_line:
        print("No line in this log.", file=sys.stderr)
        return 2
    return 0
