"""What a filter criterion is: one number for each filter, the lowest of which go first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from espalier.registry import Registry


@dataclass(frozen=True)
class FilterStats:
    """What a criterion may know of a layer.

    Attributes
    ----------
    weight : Tensor, (filters, ...)
        The layer's filters, flattened to one row each.
    norm : nn.Module or None
        The batch norm that the layer's outputs go to at once, if there is one.
    pooled : Tensor or None, (samples, filters)
        Mean over positions of the layer's outputs, after its activation; where the criterion
        ``needs_outputs``.
    zeros : Tensor or None, (filters,)
        Share of zeros in the same outputs.
    taylor : Tensor or None, (filters,)
        Mean over samples of abs(sum over positions of output x gradient); where it
        ``needs_gradients``.
    """

    weight: Tensor
    norm: nn.Module | None = None
    pooled: Tensor | None = None
    zeros: Tensor | None = None
    taylor: Tensor | None = None


class FilterCriterion(ABC):
    """``score(stats) -> Tensor`` with one number for each filter; higher is more worth keeping.

    A criterion is a frozen dataclass in a file of its own under ``structure/filter_criteria``,
    registered by name. Scores are finite.
    """

    name: ClassVar[str]
    needs_outputs: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    @abstractmethod
    def score(self, stats: FilterStats) -> Tensor:
        """Scores of the filters, (filters,)."""


FILTER_CRITERIA: Registry[FilterCriterion] = Registry(
    "filter criterion", "espalier.structure.filter_criteria"
)
"""Filter criteria, one file each."""
