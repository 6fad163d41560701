"""Second order: how much the loss rises when a weight is removed."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from espalier.errors import InvalidArgument
from espalier.pruning.criterion import CRITERIA, Criterion, Stats


@CRITERIA.register("obd")
@dataclass(frozen=True)
class OptimalBrainDamage(Criterion):
    """score = h w^2 / 2, the rise of the loss to second order with a diagonal Hessian.

    LeCun, Denker and Solla 1990 ("Optimal Brain Damage", eq. 4 and 5). Deviation: the diagonal of
    the Hessian is replaced by that of the empirical Fisher information, E[(dL/dw)^2] over the
    user's samples (:func:`espalier.pruning.fisher.diagonal_fisher`), which needs first derivatives
    only.
    """

    needs_fisher: ClassVar[bool] = True

    def score(self, weight: Tensor, stats: Stats) -> Tensor:
        if stats.fisher is None:
            raise InvalidArgument("criterion 'obd' needs batches of data and a loss function")
        return stats.fisher * weight.square() / 2
