"""The audit of power limits and access control; the host's answers are given."""

from __future__ import annotations

import pytest

from rigup.audit.expect import Deviation
from rigup.config.settings import Settings
from tests.audit import test_hardware
from tests.unit.pci_tree import config_space


class Host:
    """Answers as a host would: two GPUs below a switch, with this access control, and these power limits."""

    def __init__(
        self, control: int = 0, limits: tuple[str, ...] = ("450.00 W", "300.00 W"), **settings: object
    ) -> None:
        self.settings = Settings.from_data(settings)
        self.control, self.limits = control, limits
        self.gpu_paths = [f"/sys/devices/pci0000:40/0000:40:01.1/0000:4{at}:00.0" for at in (1, 2)]

    def gpus(self, field: str) -> list[str]:
        return {"index": ["0", "1"], "uuid": ["GPU-a", "GPU-b"], "power.limit": list(self.limits)}[field]

    def output(self, command: str, *arguments: str) -> str:
        assert command.startswith("od ") and arguments == ("/sys/devices/pci0000:40/0000:40:01.1",)
        return config_space(self.control).hex(" ")


def test_power_limits_are_compared_card_by_card() -> None:
    test_hardware.test_hardware_power(Host(gpu_power=[450, 300]))  # type: ignore[arg-type]
    test_hardware.test_hardware_power(Host())  # type: ignore[arg-type]
    with pytest.raises(Deviation) as raised:
        test_hardware.test_hardware_power(Host(gpu_power=450))  # type: ignore[arg-type]
    assert (raised.value.expected, raised.value.found) == ("GPU 1: 450.00 W", "GPU 1: 300.00 W")


def test_access_control_is_read_where_it_must_be_off() -> None:
    test_hardware.test_hardware_acs(Host(control=0x1D))  # type: ignore[arg-type]
    test_hardware.test_hardware_acs(Host(control=0, acs=False))  # type: ignore[arg-type]
    with pytest.raises(Deviation) as raised:
        test_hardware.test_hardware_acs(Host(control=0x1D, acs=False))  # type: ignore[arg-type]
    assert raised.value.found == "on at 0000:40:01.1"
