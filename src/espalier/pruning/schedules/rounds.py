"""Rounds of prune and retrain."""

from dataclasses import dataclass

from espalier.pruning.schedule import SCHEDULES, Schedule, positive


@SCHEDULES.register("rounds")
@dataclass(frozen=True)
class Rounds(Schedule):
    """density = final^(r / rounds) in round r = 1, 2, ...: each round cuts the same share.

    Iterative pruning of Han et al. 2015 (arXiv 1506.02626, section 3.4): prune, retrain for
    ``every`` steps, prune again.

    Parameters
    ----------
    rounds : int
        Number of cuts.
    every : int
        Steps of retraining between two cuts.
    start : int
        Step of the first cut.
    """

    rounds: int = 5
    every: int = 500
    start: int = 0

    def __post_init__(self) -> None:
        positive("rounds", self.rounds)
        positive("every", self.every)

    def density(self, step: int, final: float) -> float:
        if step < self.start:
            return 1.0
        done = min((step - self.start) // self.every + 1, self.rounds)
        return final if done == self.rounds else float(final ** (done / self.rounds))

    def due(self, step: int) -> bool:
        since = step - self.start
        return since >= 0 and since % self.every == 0 and since // self.every < self.rounds

    def done(self, step: int) -> bool:
        return step >= self.start + (self.rounds - 1) * self.every
