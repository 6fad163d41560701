"""Gradual pruning along a cubic."""

from dataclasses import dataclass

from espalier.pruning.schedule import SCHEDULES, Schedule, positive


@SCHEDULES.register("cubic")
@dataclass(frozen=True)
class Cubic(Schedule):
    """sparsity = s_f (1 - (1 - t)^3), t from 0 to 1 over ``steps``.

    Zhu and Gupta 2017 (arXiv 1710.01878, section 3, eq. 1) with initial sparsity 0: fast while
    there is much that is redundant, slow towards the end.

    Parameters
    ----------
    steps : int
        Steps from the first cut to the last.
    every : int
        Steps between two cuts (the paper's Delta t).
    start : int
        Step of the first cut.
    """

    steps: int = 1000
    every: int = 100
    start: int = 0

    def __post_init__(self) -> None:
        positive("steps", self.steps)
        positive("every", self.every)

    def density(self, step: int, final: float) -> float:
        if step >= self.start + self.steps:
            return final
        t = max(step - self.start, 0) / self.steps
        return 1.0 - (1.0 - final) * (1.0 - (1.0 - t) ** 3)

    def due(self, step: int) -> bool:
        since = step - self.start
        return 0 <= since <= self.steps and (since % self.every == 0 or since == self.steps)

    def done(self, step: int) -> bool:
        return step >= self.start + self.steps
