"""What a pruning schedule is: the density at each step of training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from espalier.errors import InvalidArgument
from espalier.registry import Registry


class Schedule(ABC):
    """``density(step, final) -> float`` in [final, 1], falling from 1 to ``final``.

    A schedule is a frozen dataclass in a file of its own under ``prune/schedules``, registered by
    name. Steps count calls of :meth:`espalier.Pruner.step`, from 0.

    Attributes
    ----------
    regrows : bool
        Whether pruned weights go on training behind the mask and may come back.
    margin : float
        With ``regrows``: by how much, relative to its score, a kept weight is favoured over a
        pruned one, so that the mask does not flicker.
    """

    name: ClassVar[str]
    regrows: ClassVar[bool] = False
    margin: float = 0.0

    @abstractmethod
    def density(self, step: int, final: float) -> float:
        """Density that the masks have after ``step``, for a weight that ends at ``final``."""

    @abstractmethod
    def due(self, step: int) -> bool:
        """Whether the masks are estimated again at ``step``."""

    @abstractmethod
    def done(self, step: int) -> bool:
        """Whether nothing will change after ``step``."""


def positive(name: str, value: int) -> None:
    """Refuse a count that is not at least 1."""
    if value < 1:
        raise InvalidArgument(f"{name} must be at least 1, not {value}")


SCHEDULES: Registry[Schedule] = Registry("schedule", "espalier.pruning.schedules")
