"""What is left of pyinfra's output in a shortened console."""

import logging
from collections.abc import Iterator

import pytest

from rigup.run.console import ShortLines


class Shown(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage().strip())


@pytest.fixture
def shown() -> Iterator[Shown]:
    logger, handler = logging.getLogger("calm"), Shown()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler.addFilter(ShortLines(handler))
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def said(*lines: str) -> None:
    for line in lines:
        logging.getLogger("calm").info(line)


def test_an_operation_that_changed_nothing_is_not_shown(shown: Shown) -> None:
    said("--> Starting operation: base | One", "[rig1] \x1b[34mNo changes\x1b[0m", "[rig2] No changes")
    assert shown.lines == []


def test_a_change_is_one_line_below_its_step(shown: Shown) -> None:
    said("--> Starting operation: base | One", "[rig1] No changes", "[rig2] Success")
    said("--> Starting operation: base | Two", "[rig1] \x1b[32mSuccess\x1b[0m", "[rig2] No changes")
    assert shown.lines == ["--> base", "[rig2] One", "[rig1] \x1b[32mTwo\x1b[0m"]


def test_what_an_operation_says_on_its_way_is_shown_as_it_comes(shown: Shown) -> None:
    said("--> Starting operation: config | Pull", "[rig1]     half way")
    assert shown.lines == ["--> config", "[rig1]     half way"]


def test_a_failure_names_its_operation(shown: Shown) -> None:
    said("--> Starting operation: base | One", "[rig1] No changes", "--> Starting operation: base | Two")
    said("[rig1] no room on /", "[rig1] \x1b[31mError: \x1b[0mexecuted 0 commands")
    assert shown.lines == ["--> base", "[rig1] no room on /", "[rig1] \x1b[31mTwo: failed\x1b[0m"]


def test_the_closing_table_is_left_to_the_summary_and_what_follows_it_is_shown(shown: Shown) -> None:
    said("--> Results:", "Operation  Hosts", "base | One  1", "--> Disconnecting from hosts...")
    assert shown.lines == ["--> Disconnecting from hosts..."]
