"""`rigup bench`: measure an endpoint, and keep the result as evidence."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from rigup import commands
from rigup.cli._bench_host import Measured, Start, look
from rigup.cli._bench_text import change_lines, failure_lines, load_table, speed_table, tool_lines
from rigup.cli._hosts import add_host, add_inventory, find_endpoint, read_inventory
from rigup.cli._output import print_json
from rigup.cli._parser import Commands, add_json
from rigup.cli._table import show
from rigup.config.inventory import Host, Inventory
from rigup.errors import RigupError
from rigup.measure import evidence as evidence_file
from rigup.measure import programs, schedule
from rigup.measure.compare import Change, check_method, compare
from rigup.measure.evidence import Evidence
from rigup.measure.records import Reader
from rigup.plan.model import EndpointPlan
from rigup.ssh.batch import Command
from rigup.ssh.client import Client

MOST = 64
TOOL_TRIES = 40
TTFT_S, TPOT_S = 2.0, 0.05
JSON = {
    "file": "where the result is stored",
    "changes": "a list, with --against: what, figure, before, after, change (a share), worse",
    "method": "a number; results with different ones cannot be compared",
    "rigup": "its version",
    "at": "when it began (ISO 8601, UTC)",
    "command": "the command line",
    "complete": "false if it was interrupted",
    "host": "its name",
    "endpoint": "its name",
    "engine": "vllm or sglang",
    "recipe": "its name",
    "generation": "the digest of everything that makes the endpoint",
    "image": "the image by digest, or null",
    "image_tag": "the tag that it was resolved from, or null",
    "packages": "the packages of an engine without an image",
    "repo": "the checkpoint's repository",
    "revision": "the checkpoint's commit",
    "drafter": "the checkpoint of a drafter that has one of its own, as REPO@COMMIT, or null",
    "driver": "the version of the loaded driver, or null",
    "cards": "a list of the endpoint's cards: index, name, uuid, power_limit (watts)",
    "lock": "the sha256 of the lock file, or null",
    "targets": "what a request must meet for the goodput: ttft, tpot (seconds)",
    "levels": "a list: workload, concurrency, repeats, requests, failed (by kind), figures (by name, each with the "
    "min, median and max of the repeats, or null): tok_s, user_tok_s, goodput (requests per second), met (a share), "
    "ttft_p50, ttft_p95, ttft_p99, tpot_p50, tpot_p95, tpot_p99, e2e_p50, e2e_p95, e2e_p99 (seconds), accepted (a "
    "share), kv_cache (a share), watts, joules_per_token",
    "tool_calls": "a list: stream, tries, right, low and high (95 % interval of the share), wrong (by kind)",
}


def register(subcommands: Commands) -> None:
    """Add `rigup bench`."""
    parser = subcommands.add_parser(
        "bench",
        help="measure how fast an endpoint is, and how reliable its tool calls are",
        description="Sends the endpoint the requests of 1, 2, 4 users and so on, from its own host, and stores the "
        "result in evidence/ next to the inventory. Nothing else should use the endpoint meanwhile. Ctrl-C keeps what "
        "was measured so far.",
        epilog="Exit codes: 0 success, 2 something is worse than in the result of --against, 1 failure, 130 Ctrl-C.",
    )
    add_host(parser, endpoints=True, help="the endpoint; its name may be left out if the host has only one")
    listed = "; ".join(f"{name}: {what}" for name, what in schedule.WORKLOADS.items())
    parser.add_argument(
        "--workload",
        dest="workloads",
        action="append",
        choices=schedule.WORKLOADS,
        help=f"what to send; may be repeated (default: all). {listed}",
    )
    parser.add_argument(
        "--max-users", type=_positive, default=MOST, metavar="N", help=f"the most users at a time (default: {MOST})"
    )
    parser.add_argument(
        "--tool-calls",
        type=_count,
        metavar="N",
        help=f"how often to try a task with five tool calls (default: {TOOL_TRIES} if the recipe is for tools)",
    )
    for name, seconds, what in (("ttft", TTFT_S, "the first token"), ("tpot", TPOT_S, "each further token")):
        parser.add_argument(
            f"--{name}",
            type=_seconds,
            default=seconds,
            metavar="SECONDS",
            help=f"what counts as a good time for {what} (default: {seconds})",
        )
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with an earlier result")
    add_json(parser, JSON)
    add_inventory(parser)
    parser.set_defaults(run=_bench)


def _count(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is not a number")
    return int(word)


def _positive(word: str) -> int:
    if (number := _count(word)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _seconds(word: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of seconds")
    return seconds


def _bench(options: argparse.Namespace) -> int:
    """Run `rigup bench`. Raises RigupError if the endpoint cannot be measured, and if no request was answered."""
    inventory = read_inventory(options)
    host, name = find_endpoint(inventory, options.host)
    earlier = evidence_file.read(options.against) if options.against else None
    if earlier:
        check_method(earlier, schedule.METHOD)
    start: Start | None = None
    measured = Measured(Reader(host.name))
    try:
        with Client(host) as client:
            start = look(client, host, name, inventory, options)
            _measure(client, host, start.plan, measured, options)
    except (KeyboardInterrupt, RigupError):
        if start and measured.records:
            _finish(start.evidence(measured.records, complete=False), inventory, earlier, options)
            # Ctrl-C ends the process without Python's own cleanup.
            sys.stdout.flush()
        raise
    evidence = start.evidence(measured.records, complete=True)
    changes = _finish(evidence, inventory, earlier, options)
    if not any(level.repeats for level in evidence.levels):
        log = commands.rigup("logs", f"{host.name}/{name}")
        raise RigupError(f"{host.name}/{name}: no request was answered", f"`{log}` shows why")
    return 2 if any(change.worse for change in changes) else 0


def _measure(
    client: Client, host: Host, endpoint: EndpointPlan, measured: Measured, options: argparse.Namespace
) -> None:
    """Run the measurements on the host. Raises RigupError if one of them fails there."""
    most = schedule.most_users(endpoint, options.max_users)
    measured.levels = schedule.levels(options.workloads or schedule.WORKLOADS, most)
    tries = options.tool_calls
    if tries is None:
        tries = TOOL_TRIES if endpoint.smoke.tools and not endpoint.smoke.random_weights else 0
    argvs = [programs.bench_argv(endpoint, measured.levels)]
    argvs += [programs.tool_calls_argv(endpoint, tries)] if tries else []
    what = f"{len(measured.levels)} levels, {schedule.REPEATS} repeats each"
    print(f"{host.name}/{endpoint.name}: {what}. Ctrl-C keeps what was measured.", file=sys.stderr, flush=True)
    for argv in argvs:
        result = client.stream(Command(shlex.join(argv), client.sudo), measured.write)
        if result.code or not measured.at_end:
            said = result.stderr.decode(errors="replace").strip() or f"exit code {result.code}"
            raise RigupError(f"{host.name}: the measurement failed: {said[-500:]}", "deploy, so that the host has it")


def _finish(
    evidence: Evidence, inventory: Inventory, earlier: Evidence | None, options: argparse.Namespace
) -> list[Change]:
    """Store the result, print it, and return what changed since an earlier one."""
    path = evidence_file.path_of(evidence, inventory.path)
    evidence_file.write(evidence, path)
    changes = compare(earlier, evidence) if earlier else []
    if options.json:
        shown = evidence.model_dump(mode="json", exclude={"records"})
        print_json({"file": str(path), "changes": [asdict(each) for each in changes], **shown})
        return changes
    show(speed_table(evidence))
    print()
    show(load_table(evidence))
    print()
    for line in (*failure_lines(evidence), *tool_lines(evidence)):
        print(line)
    if earlier:
        for line in change_lines(changes, earlier.at):
            print(line)
    print(f"{'Stored' if evidence.complete else 'Interrupted; stored what was measured'} in {path}")
    return changes
