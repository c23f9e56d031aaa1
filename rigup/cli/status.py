"""`rigup status`: what serves on each host and how busy it is, what its GPUs do, and what needs attention."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.live import Live

from rigup.cli._hosts import Target, add_host, add_inventory, find_targets, read_inventory
from rigup.cli._output import print_json
from rigup.cli._parser import Commands, add_json
from rigup.cli._status_page import write_page
from rigup.cli._status_system import exit_code, look_at_systems, systems_table
from rigup.cli._status_text import as_text
from rigup.cli._status_timer import install_timer
from rigup.cli._status_watch import look, watching
from rigup.cli._table import show
from rigup.cli._terminal import SafeConsole
from rigup.config.inventory import PAGES, Inventory
from rigup.errors import RigupError

REDRAW_S = 1.0
PIPE_WIDTH = 400


JSON = {
    "at": "when this was put together (ISO 8601, UTC)",
    "hosts": "by name: at, error, notes, endpoints (name, recipe, model, gpus, url, public_url, state, on_trial, "
    "health, since, restarts, verified, tokens_per_s, running, waiting, kv_cache, last_start_s), gpus (index, used, "
    "total, busy, temperature, watts, watt_limit, throttled, address, name; memory in MiB), xids (address, number, "
    "count, last), downloads (checkpoint, step, doing, bytes_done, bytes_total, rate), works (unit, since, progress), "
    "audit (at, plan, findings; null if there is no daily audit), balancer (at, servers (name, up, running); null if "
    "the load balancer does not run there)",
    "systems": "with --system, and nothing else: by name: error, rows (what, found, expected), reboot (why it is due)",
}


def register(commands: Commands) -> None:
    """Add `rigup status`."""
    parser = commands.add_parser(
        "status",
        help="show what serves on each host, how busy it is, the GPUs, downloads, and what needs attention",
        description="Reads the hosts and changes nothing on them.",
        epilog="Exit codes: 0 all endpoints serve, 2 some do not, 1 a host is unreachable.",
    )
    add_host(parser, "*", endpoints=True)
    form = parser.add_mutually_exclusive_group()
    add_json(parser, JSON, form)
    form.add_argument(
        "--html",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="FILE",
        help="write a page, FILE.html or the inventory's `status_page`",
    )
    form.add_argument(
        "--install-timer",
        action="store_true",
        help="write units for this user's systemd that write the inventory's `status_page` every five minutes",
    )
    parser.add_argument(
        "--system", action="store_true", help="show kernel, driver and boot settings, and whether a reboot is needed"
    )
    parser.add_argument(
        "--watch", action="store_true", help="show it again and again until Ctrl-C; with --json, one line each"
    )
    parser.add_argument(
        "--interval", type=_seconds, default=2.0, metavar="SECONDS", help="seconds between two looks (default: 2)"
    )
    add_inventory(parser)
    parser.set_defaults(run=_status)


def _seconds(word: str) -> float:
    seconds = float(word)
    if not 0.5 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("must be between 0.5 and 3600")
    return seconds


def _status(options: argparse.Namespace) -> int:
    """Run `rigup status`. Raises RigupError for an unknown host or endpoint, and for options that do not fit."""
    inventory = read_inventory(options)
    targets = find_targets(inventory, options.hosts)
    if options.system:
        return _system(targets, options.json)
    if options.install_timer:
        install_timer(inventory)
        return 0
    page = _page(options.html, inventory) if options.html is not None else None
    if options.watch:
        if page:
            raise RigupError("--html writes one page, so it cannot be combined with --watch", "leave one of them out")
        return _watch_as_json(targets, options.interval) if options.json else _watch(targets, options.interval)
    status = look(targets)
    if page:
        write_page(page, status)
        print(f"wrote {page}")
    elif options.json:
        print_json(asdict(status))
    else:
        # A pipe has no width.
        SafeConsole(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(as_text(status))
    return status.exit_code


def _system(targets: Sequence[Target], as_json: bool) -> int:
    systems = look_at_systems(targets)
    if as_json:
        print_json({"systems": {name: asdict(system) for name, system in systems.items()}})
    else:
        show(systems_table(systems))
    return exit_code(systems)


def _page(named: Path, inventory: Inventory) -> Path:
    """Return the file of the page. Raises RigupError if none is named, and for what is probably a host."""
    if named == Path():
        if inventory.status_page is None:
            raise RigupError(f"{inventory.path} sets no `status_page`", "set it, or name a file: --html status.html")
        return inventory.status_page
    if named.suffix not in PAGES:
        raise RigupError(f"--html {named} is not the name of a page", f"write {named}.html; hosts come before --html")
    return named


def _watch_as_json(targets: Sequence[Target], interval_s: float) -> int:
    """Print an object per line, once every host has been read. Ends with Ctrl-C."""
    with watching(targets, interval_s) as watch:
        while not watch.is_complete:
            watch.changed.wait()
            watch.changed.clear()
        while True:
            print_json(asdict(watch.status()), indent=None)
            time.sleep(interval_s)


def _watch(targets: Sequence[Target], interval_s: float) -> int:
    """Redraw the terminal. Ends with Ctrl-C. Raises RigupError if there is none."""
    if not sys.stdout.isatty():
        raise RigupError("--watch redraws a terminal, and standard output is not one", "use --watch --json in a pipe")
    with watching(targets, interval_s) as watch, Live(auto_refresh=False, screen=True, console=SafeConsole()) as live:
        while True:
            live.update(as_text(watch.status()), refresh=True)
            # Silence is counted, so it redraws also while no host answers.
            watch.changed.wait(REDRAW_S)
            watch.changed.clear()
