"""Dynamic network surgery: masks that are estimated again and again."""

from dataclasses import dataclass
from typing import ClassVar

from espalier.errors import InvalidArgument
from espalier.pruning.schedule import SCHEDULES, Schedule, positive
from espalier.pruning.schedules.cubic import Cubic


@SCHEDULES.register("surgery")
@dataclass(frozen=True)
class Surgery(Schedule):
    """Prune and splice: a weight that was cut in error goes on training and can come back.

    Guo, Yao and Chen 2016 (arXiv 1608.04493, section 3): the gradient of the masked network updates
    pruned weights too (eq. 2), and masks follow the updated magnitudes with a dead band between the
    thresholds a and b (eq. 3). Deviations: the density is given, and reached along a cubic over the
    first ``ramp`` of the steps, where the paper fixes thresholds; the dead band is a bonus of
    ``margin`` on the scores of kept weights, so that counts stay exact; masks are estimated every
    ``every`` steps, where the paper draws steps at random with falling probability.

    Made for SGD, as in the paper. Adam gives the weights behind the mask steps of full size however
    small their gradients are, so that they drift and the masks flicker: on LeNet-5 the error rose
    to tens of percent until the masks were final.

    Parameters
    ----------
    steps : int
        Steps until the masks are final.
    every : int
        Steps between two estimates.
    ramp : float
        Share of ``steps`` over which the density falls, in [0, 1].
    margin : float
        Width of the dead band, relative, >= 0.
    start : int
        Step of the first estimate.
    """

    regrows: ClassVar[bool] = True

    steps: int = 1000
    every: int = 50
    ramp: float = 0.5
    margin: float = 0.1
    start: int = 0

    def __post_init__(self) -> None:
        positive("steps", self.steps)
        positive("every", self.every)
        if not 0 <= self.ramp <= 1:
            raise InvalidArgument(f"ramp must lie in [0, 1], not {self.ramp}")
        if self.margin < 0:
            raise InvalidArgument(f"margin must not be negative, not {self.margin}")

    def density(self, step: int, final: float) -> float:
        falling = round(self.steps * self.ramp)
        if falling < 1:
            return final if step >= self.start else 1.0
        return Cubic(falling, self.every, self.start).density(step, final)

    def due(self, step: int) -> bool:
        since = step - self.start
        return 0 <= since <= self.steps and (since % self.every == 0 or since == self.steps)

    def done(self, step: int) -> bool:
        return step >= self.start + self.steps
