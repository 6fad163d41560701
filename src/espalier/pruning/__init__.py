"""Where the nonzeros are: criteria, schedules, masks."""

from espalier.pruning.api import PrunedLayer, PruneReport, prune
from espalier.pruning.criterion import CRITERIA, Criterion, Stats
from espalier.pruning.fisher import diagonal_fisher
from espalier.pruning.pruner import Pruner
from espalier.pruning.schedule import SCHEDULES, Schedule

__all__ = [
    "CRITERIA",
    "SCHEDULES",
    "Criterion",
    "PruneReport",
    "PrunedLayer",
    "Pruner",
    "Schedule",
    "Stats",
    "diagonal_fisher",
    "prune",
]
