"""`rigup diagnose`: explain an engine's failure from its log, or from all that its host says."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pyinfra.api.exceptions import FactProcessError

from rigup.cli._facts import Facts
from rigup.cli._hosts import Target, add_inventory, find_target, read_inventory
from rigup.cli._output import print_json
from rigup.cli._parser import Commands, add_json
from rigup.diagnosis.explain import Cause, Diagnosis, diagnose
from rigup.diagnosis.log import last_start
from rigup.errors import RigupError
from rigup.facts.journal import DriverReport, FullDisks, JournalLine, KernelErrors, UnitJournal
from rigup.paths import endpoint_unit
from rigup.ssh.client import Client

JSON = {
    "diagnoses": "a list: source (HOST/ENDPOINT; empty for a log), causes and symptoms (the most probable first: id, "
    "meaning, remedy, confidence, line, origin)"
}


def register(commands: Commands) -> None:
    """Add `rigup diagnose`."""
    parser = commands.add_parser(
        "diagnose",
        help="explain an engine's failure from its log and its host",
        description="Searches the last start in a log for known failures. For a host or an endpoint of the inventory it"
        " reads the journal, the kernel's errors, the driver and the disks; it changes nothing.",
        epilog="Exit codes: 0 a cause is named, 2 no cause is known or only symptoms, 1 the log cannot be read.",
    )
    parser.add_argument(
        "source",
        nargs="?",
        metavar="FILE|HOST[/ENDPOINT]",
        help="a log, or a host or endpoint of the inventory (default: standard input)",
    )
    add_json(parser, JSON)
    add_inventory(parser)
    parser.set_defaults(run=_diagnose)


def _diagnose(options: argparse.Namespace) -> int:
    """Run `rigup diagnose`. Raises RigupError if the log cannot be read."""
    if options.source is None:
        found = {"": _of_log(sys.stdin.buffer.read())}
    elif (path := Path(options.source)).exists():
        try:
            found = {"": _of_log(path.read_bytes())}
        except OSError as error:
            raise RigupError(f"{path}: {error.strerror}") from error
    else:
        found = _of_host(_target(options))
    if options.json:
        print_json({"diagnoses": [_data(name, diagnosis) for name, diagnosis in found.items()]})
    for name, diagnosis in () if options.json else found.items():
        if len(found) > 1:
            print(f"{name}:")
        print("\n".join(diagnosis.lines() or ["No known failure in this log."]))
    return 0 if any(diagnosis.causes for diagnosis in found.values()) else 2


def _data(source: str, diagnosis: Diagnosis) -> dict[str, object]:
    def listed(causes: list[Cause]) -> list[dict[str, str]]:
        return [
            {
                "id": each.fingerprint.id,
                "meaning": each.fingerprint.meaning,
                "remedy": each.remedy,
                "confidence": each.confidence,
                "line": each.line,
                "origin": each.fingerprint.source,
            }
            for each in causes
        ]

    return {"source": source, "causes": listed(diagnosis.causes), "symptoms": listed(diagnosis.symptoms)}


def _of_log(log: bytes) -> Diagnosis:
    return diagnose(log.decode(errors="replace").splitlines())


def _target(options: argparse.Namespace) -> Target:
    try:
        return find_target(read_inventory(options), options.source)
    except RigupError as error:
        raise RigupError(f"{options.source}: No such file, and as a host: {error.message}", error.remedy) from error


def _of_host(target: Target) -> dict[str, Diagnosis]:
    """Diagnose an endpoint, or all of a host, in one round trip. Raises Unreachable."""
    endpoints = [target.endpoint] if target.endpoint else list(target.host.settings.endpoints)
    with Client(target.host) as client:
        facts = Facts(client)
        journals = {name: facts.add(UnitJournal(), unit=endpoint_unit(name)) for name in endpoints}
        kernel, disks, driver = facts.add(KernelErrors()), facts.add(FullDisks()), facts.add(DriverReport())
        facts.read()
    try:
        errors, state = kernel(), [*disks(), *driver()]
        logs = {name: journal() for name, journal in journals.items()} or {"": []}
    except FactProcessError as error:
        raise RigupError(f"{target.host.name}: {error}") from error
    return {f"{target.host.name}/{name}": _of_journal(log, errors, state) for name, log in logs.items()}


def _of_journal(journal: list[JournalLine], kernel: list[JournalLine], state: list[str]) -> Diagnosis:
    """Diagnose an endpoint from its journal, what the kernel logged since what counts there, and the host's state."""
    log = [line.text for line in journal]
    since = journal[min(last_start(log).since, len(journal) - 1)].at if journal else 0
    return diagnose(log, [*(line.text for line in kernel if line.at >= since), *state])
