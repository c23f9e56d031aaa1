"""Time as a test steers it, for the programs that have this directory on their PYTHONPATH.

It passes only where a program sleeps, and a sleep is over in a moment. A test puts it forward by the number of seconds
in the file that STEERED_TIME names. So it makes no difference to a program how fast the machine is.
"""

import os
import time

_nap = time.sleep
_slept = [1_000_000.0]


def sleep(seconds: float) -> None:
    _slept[0] += seconds
    _nap(min(seconds, 0.02))


def monotonic() -> float:
    try:
        with open(os.environ["STEERED_TIME"]) as file:
            return _slept[0] + float(file.read())
    except FileNotFoundError:
        return _slept[0]


time.sleep, time.monotonic = sleep, monotonic
