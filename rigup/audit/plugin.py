"""The audit as a pytest plugin: compares the hosts of the inventory with their plan, and changes nothing.

    pytest tests/audit                       every host
    pytest tests/audit --hosts rig1,rig2     these hosts
    pytest tests/audit -k docker             one step's checks
    pytest tests/audit --deep                also the checks that read 240 GB

`rigup audit` runs the same checks. Every check has an id, `HOST: STEP-WHAT`. A finding says what was expected, what was
found, why it matters, and which step of the deploy repairs it. Of a host on which nothing is deployed, only that is
said. The exit code is 0 if everything is as planned, 2 if something is not, and 1 if a check could not run.
"""

from __future__ import annotations

import gc
import os
import textwrap
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rigup import commands
from rigup.audit.check import YOU, About
from rigup.audit.expect import Deviation
from rigup.audit.outcome import WORDS, Outcome, bare, exit_code, write
from rigup.audit.subject import Subject
from rigup.errors import RigupError
from rigup.ssh import testinfra_backend
from rigup.text import printable

# In the order of the deploy.
STEPS = (
    "preflight",
    "base",
    "kernel",
    "driver",
    "cuda",
    "docker",
    "hardware",
    "model",
    "config",
    "serve",
    "gateway",
    "verify",
    "balancer",
    "watch",
)

# Hosts that cannot be audited; the first check reports why.
_lost: set[str] = set()

# Hosts on which nothing is deployed: every check would say so in its own words.
_bare: set[str] = set()

# All outcomes so far, by the check's node id.
_outcomes: dict[str, Outcome] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the audit's options; `--hosts` is testinfra's own."""
    parser.addoption("--failed", action="store_true", help="audit: print only checks that do not pass")
    parser.addoption("--deep", action="store_true", help="audit: also run the checks that read all of the model store")
    parser.addoption("--outcomes", type=Path, metavar="FILE", help="audit: write the result of each check as JSON")


def pytest_configure(config: pytest.Config) -> None:
    """Prepare to reach the hosts. Each check is printed on one line; with -v, pytest prints them its own way."""
    if named := os.environ.get("RIGUP_INVENTORY"):
        os.environ["RIGUP_INVENTORY"] = os.path.abspath(named)
    os.chdir(config.rootpath)
    testinfra_backend.register()
    if config.option.verbose <= 0:
        config.pluginmanager.register(Lines(config))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse an inventory that cannot be read, and hosts that it does not have."""
    try:
        chosen(session.config)
    except RigupError as error:
        raise pytest.UsageError(str(error)) from None


def chosen(config: pytest.Config) -> list[str]:
    """Return the names of the hosts to audit. Raises RigupError."""
    inventory = testinfra_backend.inventory()
    names = config.getoption("hosts")
    return [inventory.host(name.strip()).name for name in names.split(",")] if names else list(inventory.hosts)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every check on every host, or on those that `--hosts` names."""
    if "rig" in metafunc.fixturenames:
        metafunc.parametrize("rig", chosen(metafunc.config), indirect=True, scope="session")


@pytest.fixture(scope="session")
def rig(request: pytest.FixtureRequest) -> Subject:
    """One host, and what it should be."""
    return Subject.of(request.param)


def step_of(item: pytest.Item) -> str:
    """Return `docker` for a check in test_docker.py."""
    return item.path.stem.removeprefix("test_")


def remedy(item: pytest.Item) -> str:
    """Return which steps of the deploy repair a finding."""
    steps = about(item).repair or (step_of(item),)
    if steps == (YOU,):
        return "repaired by: you"
    return f"repaired by: the {' and '.join(steps)} step{'s' if len(steps) > 1 else ''} of the deploy"


def id_of(item: pytest.Item) -> str:
    """Return `docker-runtime` for test_docker_runtime."""
    return item.originalname.removeprefix("test_").replace("_", "-")  # type: ignore[attr-defined, no-any-return]


def host_of(item: pytest.Item) -> str:
    return str(item.callspec.params["rig"])  # type: ignore[attr-defined]


def about(item: pytest.Item) -> About:
    """Return what `@check(...)` recorded."""
    known: About = item.function.about  # type: ignore[attr-defined]
    return known


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort by host and step of the deploy; let `-k docker-runtime` find a check by its id."""
    if not config.option.deep:
        items[:] = [item for item in items if not about(item).deep]
    hosts: dict[str, int] = {}
    for item in items:
        hosts.setdefault(host_of(item), len(hosts))
        item.extra_keyword_matches.add(id_of(item))
    items.sort(key=lambda item: (hosts[host_of(item)], STEPS.index(step_of(item))))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Run a check and note its outcome. Findings have no traceback: they are about a host, not about this code."""
    host, rig = host_of(pyfuncitem), pyfuncitem.funcargs["rig"]
    assert isinstance(rig, Subject)
    if host in _lost:
        note(pyfuncitem, "unchecked")
        pytest.skip(f"{host} cannot be audited")
    session = testinfra_backend.session(host)
    session.limit_s = testinfra_backend.DEEP_S if about(pyfuncitem).deep else testinfra_backend.COMMAND_S
    try:
        if rig.is_bare:
            _bare.add(host)
            pytest.skip("nothing is deployed here")
        if about(pyfuncitem).root and not rig.is_root:
            outcome = note(pyfuncitem, "unchecked", note="only root can read this, and this login may not use sudo")
            pytest.skip(outcome.note)
        result = yield
    except Deviation as deviation:
        outcome = note(pyfuncitem, **finding(rig, id_of(pyfuncitem), deviation))
    except RigupError as error:
        _lost.add(host)
        outcome = note(pyfuncitem, "unchecked", note=str(error))
    except Exception as error:
        # A mistake in the check, or output that it does not expect: the host is not known to be clean.
        outcome = note(pyfuncitem, "unchecked", note=f"the check itself failed: {type(error).__name__}: {error}")
    else:
        note(pyfuncitem, "ok")
        return result
    if outcome.result == "waived":
        pytest.skip(outcome.note)
    pytest.fail("\n".join(outcome.lines), pytrace=False)


def finding(rig: Subject, check: str, deviation: Deviation) -> dict[str, Any]:
    """Return the outcome of a deviation: a finding, or waived while a waiver of the inventory is valid."""
    values = {"expected": deviation.expected, "found": deviation.found}
    waiver = rig.settings.waivers.get(check)
    if waiver is None:
        return {"result": "finding", **values}
    today = datetime.now(UTC).date()
    return {"result": "waived" if waiver.holds(today) else "finding", **values, "note": waiver.note(today)}


def note(item: pytest.Item, result: str, **more: str) -> Outcome:
    """Note and return the outcome of a check."""
    known = about(item)
    lines = (item.function.__doc__ or "").strip().splitlines()  # type: ignore[attr-defined]
    outcome = Outcome(
        host=host_of(item),
        check=id_of(item),
        step=step_of(item),
        title=lines[0] if lines else "",
        severity=known.severity,
        settings=known.settings,
        repair=remedy(item),
        result=result,
        **{name: printable(text) for name, text in more.items()},
    )
    _outcomes[item.nodeid] = outcome
    return outcome


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the check's id to reports, in JUnit files too."""
    report = yield
    report.check = f"{host_of(item)}: {id_of(item)}"  # type: ignore[attr-defined]
    report.user_properties.append(("check", report.check))
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Set the exit code, and store the commands of this audit for the next one."""
    if session.config.option.collectonly:
        return
    if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        session.exitstatus = exit_code(_outcomes.values(), _bare)
    if session.config.option.outcomes:
        write(session.config.option.outcomes, list(_outcomes.values()), sorted(_bare))
    # pytest collects garbage five times as it ends, and the interpreter once more.
    gc.freeze()
    try:
        testinfra_backend.close_all()
    except RigupError:
        return


class Lines:
    """Print one line per check, and what a check has found below it."""

    WIDTH = 44

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        # No list of failures at the end: each is printed with its check.
        config.option.verbose = -1
        config.option.reportchars = ""
        config.option.tbstyle = "no"

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str]:
        """Let pytest count a report without printing it."""
        counts = report.when == "call" or report.outcome != "passed"
        return (report.outcome if counts else "", "", "")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print the outcome of a check."""
        if report.when != "call" and report.outcome == "passed":
            return
        outcome = _outcomes.get(report.nodeid)
        # Why a host cannot be audited is printed once.
        if (outcome is None and report.outcome != "failed") or (
            outcome and outcome.result == "unchecked" and not outcome.note
        ):
            return
        if report.outcome == "passed" and self._config.option.failed:
            return
        color = {"ok": "green", "finding": "red"}.get(outcome.result, "yellow") if outcome else "red"
        terminal: pytest.TerminalReporter = self._config.pluginmanager.getplugin("terminalreporter")
        terminal.write(f"{report.check:{self.WIDTH}} ")
        terminal.write(WORDS[outcome.result] if outcome else "ERROR", **{color: True})
        terminal.line("")
        for line in outcome.lines if outcome else report.longreprtext.splitlines():
            # All of its lines: a host must not print one that reads like the result of a check.
            terminal.line(textwrap.indent(printable(line), "    ", lambda _: True))

    def _hosts(self) -> list[str]:
        """Return the audited hosts; none if that is the whole inventory."""
        return chosen(self._config) if self._config.getoption("hosts") else []

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Count findings and checks that could not run."""
        for host in sorted(_bare):
            terminalreporter.line(bare(host))
        findings = sum(outcome.result == "finding" for outcome in _outcomes.values())
        if unchecked := sum(outcome.result == "unchecked" for outcome in _outcomes.values()):
            terminalreporter.line(f"{unchecked} check{'s' if unchecked != 1 else ''} could not run.")
        if findings:
            terminalreporter.line(
                f"{findings} finding{'s' if findings != 1 else ''}: `{commands.deploy(self._hosts())}` repairs "
                "everything that a step repairs."
            )
