"""What a pruning criterion is: a score for every weight, the lowest of which go first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from espalier.registry import Registry


@dataclass(frozen=True)
class Stats:
    """What a criterion may know beside the weight itself.

    Attributes
    ----------
    kept : bool Tensor or None
        The mask so far.
    fisher : Tensor or None
        Diagonal of the empirical Fisher information, where the criterion ``needs_fisher``.
    generator : torch.Generator or None
        The only source of randomness.
    """

    kept: Tensor | None = None
    fisher: Tensor | None = None
    generator: torch.Generator | None = None


class Criterion(ABC):
    """``score(weight, stats) -> Tensor`` of the weight's shape; higher means more worth keeping.

    A criterion is a frozen dataclass in a file of its own under ``pruning/criteria``, registered by
    name. Scores are finite or +inf, never NaN; only their order counts, unless the caller prunes by
    threshold (``quality``), and then a weight is kept where its score is at least that value.
    """

    name: ClassVar[str]
    needs_fisher: ClassVar[bool] = False

    @abstractmethod
    def score(self, weight: Tensor, stats: Stats) -> Tensor:
        """Scores of ``weight``, in its shape."""


CRITERIA: Registry[Criterion] = Registry("criterion", "espalier.pruning.criteria")
