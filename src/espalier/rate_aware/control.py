"""How lambda goes: up a ramp to a value, or wherever the size of the file wants it."""

from __future__ import annotations

import math
from dataclasses import dataclass

FIRST = 1e-6
"""Where a controller's lambda begins, unless it is told."""
GAIN = 0.15
"""Of the error e, which lambda goes on moving by until it is gone."""
AHEAD = 0.9
"""Of what e rose by since the last time."""
MOST = 0.35
"""The most that lambda's logarithm moves at a time."""


@dataclass
class Ramp:
    """lambda rises linearly from 0 to ``lam`` over ``steps``, and stays."""

    lam: float
    steps: int

    def at(self, step: int) -> float:
        """lambda after so many steps."""
        return self.lam * min(1.0, (step + 1) / self.steps) if self.steps else self.lam


@dataclass
class Controller:
    """lambda, led so that the size follows a path down to ``target`` bytes.

    The path falls geometrically from the first size that is seen to the target over ``steps``, and
    stays there. With e = ln(size / path), ln lambda moves by GAIN e + AHEAD (rise of e): the first
    term goes on until the size is met, the second sees where it is going. A network that has all
    that it needs in fewer bytes does not grow, however low lambda falls.

    Examples
    --------
    >>> control = Controller(1000.0, 10, lam=1e-6)
    >>> control.update(0, 4000.0)  # the start: no error yet
    >>> control.lam
    1e-06
    >>> control.update(10, 2000.0)  # twice as large as it should be
    >>> control.lam > 1e-6
    True
    """

    target: float
    steps: int
    lam: float = FIRST
    first: float = 0.0
    error: float = 0.0

    def at(self, step: int) -> float:
        """lambda after so many steps."""
        return self.lam

    def path(self, step: int) -> float:
        """The size that is wanted after so many steps, in bytes."""
        left = max(0.0, 1 - step / self.steps) if self.steps else 0.0
        return self.target * (max(self.first, self.target) / self.target) ** left

    def update(self, step: int, size: float) -> None:
        """Look at the size, in bytes, after so many steps."""
        if not self.first:
            self.first = size
        error = math.log(size / self.path(step))
        move = GAIN * error + AHEAD * (error - self.error)
        self.lam *= math.exp(max(-MOST, min(MOST, move)))
        self.error = error
