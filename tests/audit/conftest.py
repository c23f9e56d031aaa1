"""The audit: what the hosts of the inventory are, against what their plan says. It reads, and changes nothing.

    pytest tests/audit                       every host
    pytest tests/audit --hosts rig1,rig2     these hosts
    pytest tests/audit -k docker             one step's checks
    pytest tests/audit --deep                with the checks that read 240 GB

`rigup audit` is the same with words of its own. Every check has an id, `HOST: STEP-WHAT`. One that fails says what was
expected, what was found, why it matters, and which step of the deploy repairs it. The exit code is 0 where everything
is as planned, 2 where something is not, and 1 where something could not be looked at.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from outcomes import Outcome, exit_code, write
from subject import YOU, About, Deviation, Subject

from rigup.errors import RigupError
from rigup.ssh import testinfra_backend

ROOT = Path(__file__).resolve().parents[2]

# The order of the road.
STEPS = (
    "preflight",
    "base",
    "kernel",
    "driver",
    "cuda",
    "docker",
    "model",
    "config",
    "serve",
    "gateway",
    "verify",
    "watch",
)

# What stops all further checks of a host, once it has been said.
_lost: set[str] = set()

# Of every check that was made, in their order.
_outcomes: dict[str, Outcome] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--failed`: findings alone."""
    parser.addoption("--failed", action="store_true", help="audit: print only the checks that fail")
    parser.addoption("--deep", action="store_true", help="audit: also the checks that read every byte of the store")
    parser.addoption("--outcomes", type=Path, metavar="FILE", help="audit: write what came of each check as JSON")


def pytest_configure(config: pytest.Config) -> None:
    """Checks are printed here, one line each; with -v pytest prints them its own way."""
    if named := os.environ.get("RIGUP_INVENTORY"):
        os.environ["RIGUP_INVENTORY"] = os.path.abspath(named)
    os.chdir(ROOT)
    testinfra_backend.register()
    if config.option.verbose <= 0:
        config.pluginmanager.register(Lines(config))


def pytest_sessionstart(session: pytest.Session) -> None:
    """An inventory that cannot be read, or a host that is not in it, ends the audit before it begins."""
    try:
        chosen(session.config)
    except RigupError as error:
        raise pytest.UsageError(str(error)) from None


def chosen(config: pytest.Config) -> list[str]:
    """The names of the hosts to audit. Raises RigupError."""
    known = testinfra_backend.inventory()
    wanted = config.getoption("hosts")
    return [known.host(name.strip()).name for name in wanted.split(",")] if wanted else list(known.hosts)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every check runs on every host, or on those that `--hosts` names."""
    if "rig" in metafunc.fixturenames:
        metafunc.parametrize("rig", chosen(metafunc.config), indirect=True, scope="session")


@pytest.fixture(scope="session")
def rig(request: pytest.FixtureRequest) -> Subject:
    """One host, and what it shall be."""
    return Subject.of(request.param)


def step_of(item: pytest.Item) -> str:
    """`docker` for a check in test_docker.py."""
    return item.path.stem.removeprefix("test_")


def remedy(item: pytest.Item) -> str:
    """Which steps of the deploy put right what a check finds."""
    steps = about(item).repair or (step_of(item),)
    if steps == (YOU,):
        return "repaired by: you"
    return f"repaired by: the {' and '.join(steps)} step{'s' if len(steps) > 1 else ''} of the deploy"


def id_of(item: pytest.Item) -> str:
    """`docker-runtime` for test_docker_runtime."""
    return item.originalname.removeprefix("test_").replace("_", "-")  # type: ignore[attr-defined, no-any-return]


def host_of(item: pytest.Item) -> str:
    return str(item.callspec.params["rig"])  # type: ignore[attr-defined]


def about(item: pytest.Item) -> About:
    """What the check says of itself with `@check(...)`."""
    known: About = item.function.about  # type: ignore[attr-defined]
    return known


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Host by host, in the order of the road; `-k docker-runtime` finds a check by its id."""
    _refuse_waivers_of_nothing(items)
    if not config.option.deep:
        items[:] = [item for item in items if not about(item).deep]
    hosts: dict[str, int] = {}
    for item in items:
        hosts.setdefault(host_of(item), len(hosts))
        item.extra_keyword_matches.add(id_of(item))
    items.sort(key=lambda item: (hosts[host_of(item)], STEPS.index(step_of(item))))


def _refuse_waivers_of_nothing(items: list[pytest.Item]) -> None:
    """A waiver that names no check waives nothing, and its writer thinks that it does."""
    if {step_of(item) for item in items} != set(STEPS):
        return
    known = {id_of(item) for item in items}
    inventory = testinfra_backend.inventory()
    wrong = {
        f"{host.name}: waivers.{name}: no check has that id"
        for host in inventory.hosts.values()
        for name in host.settings.waivers
        if name not in known
    }
    if wrong:
        raise pytest.UsageError(f"{inventory.path}: " + "; ".join(sorted(wrong)))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Findings as words, without a traceback: they are about a host, not about this code."""
    host, rig = host_of(pyfuncitem), pyfuncitem.funcargs["rig"]
    if host in _lost:
        note(pyfuncitem, "unseen")
        pytest.skip(f"{host} cannot be audited")
    try:
        if about(pyfuncitem).root and not rig.is_root:
            outcome = note(pyfuncitem, "unseen", note="only root can see it, and this login may not become root")
            pytest.skip(outcome.note)
        result = yield
    except Deviation as deviation:
        outcome = note(pyfuncitem, **judged(rig, id_of(pyfuncitem), deviation))
    except RigupError as error:
        _lost.add(host)
        outcome = note(pyfuncitem, "unseen", note=str(error))
    except Exception as error:
        # A mistake in the check, or an answer that nobody foresaw: never taken for a clean host.
        outcome = note(pyfuncitem, "unseen", note=f"the check itself failed: {type(error).__name__}: {error}")
    else:
        note(pyfuncitem, "ok")
        return result
    if outcome.result == "waived":
        pytest.skip(outcome.note)
    pytest.fail("\n".join(outcome.lines), pytrace=False)


def judged(rig: Subject, check: str, deviation: Deviation) -> dict[str, Any]:
    """A finding, or what the inventory waives; a waiver that has run out waives nothing, and says so."""
    said = {"expected": deviation.expected, "found": deviation.found}
    waiver = rig.settings.waivers.get(check)
    if waiver is None:
        return {"result": "finding", **said}
    if datetime.now(UTC).date() > waiver.until:
        return {"result": "finding", **said, "note": f"the waiver has run out on {waiver.until}: {waiver.reason}"}
    return {"result": "waived", **said, "note": f"waived until {waiver.until}: {waiver.reason}"}


def note(item: pytest.Item, result: str, **said: str) -> Outcome:
    """Write down what came of a check."""
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
        **said,
    )
    _outcomes[item.nodeid] = outcome
    return outcome


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports carry the check's id, in JUnit files too."""
    report = yield
    report.check = f"{host_of(item)}: {id_of(item)}"  # type: ignore[attr-defined]
    report.user_properties.append(("check", report.check))  # type: ignore[attr-defined]
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The exit code; and remember what was asked, so that the next audit asks it at once."""
    if session.config.option.collectonly:
        return
    if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        session.exitstatus = exit_code(_outcomes.values())
    if session.config.option.outcomes:
        write(session.config.option.outcomes, list(_outcomes.values()))
    # pytest looks for garbage five times as it ends, and the interpreter once more.
    gc.freeze()
    try:
        testinfra_backend.close_all()
    except RigupError:
        return


class Lines:
    """One line per check, and below it what a failed one has found."""

    WIDTH = 44

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        # Quiet, no list of failures at the end: each stands where it belongs.
        config.option.verbose = -1
        config.option.reportchars = ""
        config.option.tbstyle = "no"

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str]:
        """Counted by pytest, and printed here."""
        counts = report.when == "call" or report.outcome != "passed"
        return (report.outcome if counts else "", "", "")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        outcome = _outcomes.get(report.nodeid)
        # A host whose loss was said already is said once.
        if (outcome is None and report.outcome != "failed") or (
            outcome and outcome.result == "unseen" and not outcome.note
        ):
            return
        if report.outcome == "passed" and self._config.option.failed:
            return
        words = {
            "ok": ("ok", {"green": True}),
            "finding": ("FAILED", {"red": True}),
            "waived": ("waived", {"yellow": True}),
            "unseen": ("not seen", {"yellow": True}),
        }
        word, markup = words[outcome.result] if outcome else ("ERROR", {"red": True})
        terminal: pytest.TerminalReporter = self._config.pluginmanager.getplugin("terminalreporter")
        terminal.write(f"{report.check:{self.WIDTH}} ")  # type: ignore[attr-defined]
        terminal.write(word, **markup)
        terminal.line("")
        for line in outcome.lines if outcome else report.longreprtext.splitlines():
            terminal.line(f"    {line}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        failed = sum(outcome.result == "finding" for outcome in _outcomes.values())
        if unseen := sum(outcome.result == "unseen" for outcome in _outcomes.values()):
            terminalreporter.line(f"{unseen} check{'s' if unseen != 1 else ''} could not be made.")
        if failed:
            terminalreporter.line(
                f"{failed} finding{'s' if failed != 1 else ''}: `pyinfra inventory/lab.py deploy.py` puts right "
                "what a step repairs."
            )
