"""Logs for TensorBoard: training, densities and sizes, as a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from espalier.errors import MissingDependency
from espalier.parametrization import current, mask_of
from espalier.targets import find_targets
from espalier.training.loop import Epoch

FOLDER = "tensorboard"


class Board:
    """Writes event files into ``tensorboard`` in the folder of a run.

    Parameters
    ----------
    folder : Path
        Of the run.
    epochs : int
        Of the stages that are done: the steps of what is logged go on from there.
    fresh : bool
        Remove what an earlier run logged there.

    Raises
    ------
    MissingDependency
        TensorBoard is not installed.
    """

    def __init__(self, folder: Path, epochs: int, fresh: bool) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingDependency(
                "--tensorboard needs TensorBoard: pip install 'espalier[tensorboard]'"
            ) from None
        if fresh:
            for path in (folder / FOLDER).glob("events.out.tfevents.*"):
                path.unlink()
        self._writer: Any = SummaryWriter(str(folder / FOLDER))
        self.epochs = epochs

    def follow(self, model: nn.Module) -> Follower:
        """A callback of :func:`espalier.train` that logs each epoch of ``model``."""
        return Follower(self, model, self.epochs)

    def scalar(self, name: str, value: float | None, step: int) -> None:
        """Log a number; None is left out."""
        if value is not None:
            self._writer.add_scalar(name, value, step)

    def densities(self, model: nn.Module, step: int) -> None:
        """Log the share of weights that each pruned layer keeps."""
        for target in find_targets(model):
            mask = mask_of(target) if current(target) is not None else None
            if mask is not None:
                layer = target.name.removesuffix(".weight")
                self.scalar(f"density/{layer}", float(mask.float().mean()), step)

    def close_stage(self, kind: str, values: Mapping[str, Any], model: nn.Module) -> None:
        """Log what a stage measured, and the weights as it leaves them."""
        if kind == "evaluate":
            self.scalar(f"{values['split']}/error", values["error"], self.epochs)
            self.scalar(f"{values['split']}/loss", values["loss"], self.epochs)
        elif kind == "save":
            ledger = values["ledger"]
            self.scalar(f"size/{values['path']}", ledger["file_bytes"], self.epochs)
            self.scalar(f"ratio/{values['path']}", ledger["ratio"], self.epochs)
        else:
            self.densities(model, self.epochs)
            for target in find_targets(model):
                if target.by_default and not target.obstacle:
                    value = target.value.detach().float()
                    kept = value[value != 0]
                    if kept.numel():
                        layer = target.name.removesuffix(".weight")
                        self._writer.add_histogram(f"weights/{layer}", kept, self.epochs)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class Follower:
    """Logs the epochs of one training."""

    def __init__(self, board: Board, model: nn.Module, before: int) -> None:
        self.board, self.model, self.before = board, model, before

    def step(self) -> None:
        """Nothing is logged by step."""

    def close_epoch(self, epoch: Epoch) -> None:
        """Log an epoch that is over."""
        at = self.before + epoch.epoch + 1
        self.board.scalar("train/loss", epoch.train_loss, at)
        self.board.scalar("held_out/error", epoch.error, at)
        self.board.scalar("held_out/loss", epoch.loss, at)
        self.board.densities(self.model, at)
        self.board.epochs = at
