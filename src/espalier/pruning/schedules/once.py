"""Prune at once."""

from dataclasses import dataclass

from espalier.pruning.schedule import SCHEDULES, Schedule


@SCHEDULES.register("once")
@dataclass(frozen=True)
class Once(Schedule):
    """density = final from step ``start`` on; then the network is retrained (Han et al. 2016)."""

    start: int = 0

    def density(self, step: int, final: float) -> float:
        return final if step >= self.start else 1.0

    def due(self, step: int) -> bool:
        return step == self.start

    def done(self, step: int) -> bool:
        return step >= self.start
