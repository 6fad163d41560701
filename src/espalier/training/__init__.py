"""An ordinary training loop, for those who have none."""

from espalier.training.checkpoint import load_checkpoint, save_checkpoint
from espalier.training.distillation import Distiller, Ensemble
from espalier.training.loop import Callback, Epoch, History, train
from espalier.training.metrics import Metrics, evaluate, set_dropout
from espalier.training.settings import Settings

__all__ = [
    "Callback",
    "Distiller",
    "Ensemble",
    "Epoch",
    "History",
    "Metrics",
    "Settings",
    "evaluate",
    "load_checkpoint",
    "save_checkpoint",
    "set_dropout",
    "train",
]
