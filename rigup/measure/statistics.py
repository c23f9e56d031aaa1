"""Percentiles, spreads and intervals, each by one stated method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

Z_95 = 1.959964
"""The 97.5th percentile of the normal distribution: 95 % lie within as many standard deviations on both sides."""


class Spread(BaseModel):
    """The lowest, the middle and the highest of the values of several repeats."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: float
    median: float
    max: float

    @property
    def width(self) -> float:
        """The distance between the lowest and the highest value."""
        return self.max - self.min


def percentile(values: Iterable[float], percent: float) -> float | None:
    """Return the nearest-rank percentile: the lowest value that `percent` of all values do not exceed.

    It is a value that was measured, never one between two. None if there are no values.
    """
    found = sorted(values)
    if not found:
        return None
    # Rounded first: 0.07 * 100 is above 7 in floating point, and would be the eighth.
    return found[max(0, math.ceil(round(percent * len(found) / 100, 9)) - 1)]


def spread(values: Sequence[float]) -> Spread | None:
    """Return the spread; its middle is the mean of the two middle values of an even number. None without values."""
    found, count = sorted(values), len(values)
    if not found:
        return None
    return Spread(min=found[0], median=(found[(count - 1) // 2] + found[count // 2]) / 2, max=found[-1])


def wilson(successes: int, tries: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share (E. B. Wilson, 1927), from 0 to 1; all of that without tries.

    Unlike the normal approximation it is right for few tries and for shares near 0 or 1.
    """
    if not tries:
        return 0.0, 1.0
    share, z2 = successes / tries, Z_95**2
    middle = share + z2 / (2 * tries)
    reach = Z_95 * math.sqrt(share * (1 - share) / tries + z2 / (4 * tries * tries))
    whole = 1 + z2 / tries
    return max(0.0, (middle - reach) / whole), min(1.0, (middle + reach) / whole)
