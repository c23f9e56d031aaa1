"""The audit: what the hosts of the inventory are, against what their plan says. It reads, and changes nothing.

    pytest tests/audit                       every host
    pytest tests/audit --hosts rig1,rig2     these hosts
    pytest tests/audit -k docker             one step's checks

Every check has an id, `HOST: STEP-WHAT`. One that fails says what was expected, what was found, and which step of the
deploy repairs it. The exit code is 0 where everything is as planned.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from subject import Deviation, Subject

from rigup import testinfra_backend
from rigup.errors import RigupError

ROOT = Path(__file__).resolve().parents[2]

# The order of the road.
STEPS = ("preflight", "base", "kernel", "driver", "cuda", "docker", "model", "config", "serve", "gate", "verify")

# What stops all further checks of a host, once it has been said.
_lost: set[str] = set()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--failed`: findings alone."""
    parser.addoption("--failed", action="store_true", help="audit: print only the checks that fail")


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
    """Which step of the deploy puts right what a check finds."""
    step = step_of(item)
    if step == "preflight":
        return "repaired by: you; a deploy refuses such a host"
    # An endpoint that does not answer is started anew by the step that started it.
    return f"repaired by: the {'serve' if step == 'verify' else step} step of the deploy"


def id_of(item: pytest.Item) -> str:
    """`docker-runtime` for test_docker_runtime."""
    return item.originalname.removeprefix("test_").replace("_", "-")  # type: ignore[attr-defined, no-any-return]


def host_of(item: pytest.Item) -> str:
    return str(item.callspec.params["rig"])  # type: ignore[attr-defined]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Host by host, in the order of the road; `-k docker-runtime` finds a check by its id."""
    hosts: dict[str, int] = {}
    for item in items:
        hosts.setdefault(host_of(item), len(hosts))
        item.extra_keyword_matches.add(id_of(item))
    items.sort(key=lambda item: (hosts[host_of(item)], STEPS.index(step_of(item))))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Findings as words, without a traceback: they are about a host, not about this code."""
    host = host_of(pyfuncitem)
    if host in _lost:
        pytest.skip(f"{host} cannot be audited")
    try:
        return (yield)
    except Deviation as deviation:
        found = f"{deviation}\n{remedy(pyfuncitem)}"
    except RigupError as error:
        _lost.add(host)
        found = str(error)
    pytest.fail(found, pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports carry the check's id, in JUnit files too."""
    report = yield
    report.check = f"{host_of(item)}: {id_of(item)}"  # type: ignore[attr-defined]
    report.user_properties.append(("check", report.check))  # type: ignore[attr-defined]
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remember what was asked, so that the next audit asks it at once."""
    if session.config.option.collectonly:
        return
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
        words = {"passed": ("ok", {"green": True}), "failed": ("FAILED", {"red": True})}
        # Skipped ones belong to a host whose reason was printed already.
        if report.outcome == "skipped" or (report.outcome == "passed" and self._config.option.failed):
            return
        terminal: pytest.TerminalReporter = self._config.pluginmanager.getplugin("terminalreporter")
        word, markup = words[report.outcome]
        terminal.write(f"{report.check:{self.WIDTH}} ")  # type: ignore[attr-defined]
        terminal.write(word, **markup)
        terminal.line("")
        if report.outcome == "failed":
            for line in report.longreprtext.splitlines():
                terminal.line(f"    {line}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        failed = len(terminalreporter.stats.get("failed", []))
        if failed:
            terminalreporter.line(
                f"{failed} finding{'s' if failed != 1 else ''}: `pyinfra inventory/lab.py deploy.py` puts right "
                "what a step repairs."
            )
