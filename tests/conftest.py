"""What all tests share: the option of `make soak`, and how hypothesis runs."""

import pytest
from hypothesis import HealthCheck, settings

# The same examples every time, however slow the machine is: no test fails by chance.
settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the long repetitions too")
