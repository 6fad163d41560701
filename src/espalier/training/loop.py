"""``espalier.train``: epochs, a held-out split, the best epoch, and runs that resume.

Everything random in epoch e comes from (seed, e), so that a run that was interrupted and resumed
ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from espalier.errors import InvalidArgument
from espalier.progress import Progress, reporting
from espalier.samples import Data, Samples
from espalier.structure.merge import parameter_groups
from espalier.training.augment import MIXES, Mixed, augmentation
from espalier.training.checkpoint import load_checkpoint, save_checkpoint
from espalier.training.distillation import Distiller, at_least_float32
from espalier.training.metrics import evaluate
from espalier.training.settings import Settings

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Epoch:
    """What one epoch did. ``error`` in percent, on the held-out samples if there are any."""

    epoch: int
    train_loss: float
    error: float | None
    loss: float | None


@dataclass
class History:
    """All epochs of a run, and the one whose weights the model has now."""

    epochs: list[Epoch] = field(default_factory=list)
    chosen: int = -1


class Callback(Protocol):
    """Something that follows training. ``step`` is called after every optimizer step.

    :class:`espalier.Pruner` is one. If it has ``state_dict`` and ``load_state_dict``, they are kept
    in the checkpoint. If it has ``close_epoch``, that is given each :class:`Epoch` that is over. If
    it has ``loss``, as :class:`espalier.RateAware` has, that is called with nothing for each batch,
    and added to the loss.
    """

    def step(self) -> object: ...


@runtime_checkable
class _Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class _Follows(Protocol):
    def close_epoch(self, epoch: Epoch) -> object: ...


@runtime_checkable
class _Adds(Protocol):
    def loss(self) -> Tensor: ...


@runtime_checkable
class _Schedules(Protocol):
    @property
    def done(self) -> bool: ...


def train(
    model: nn.Module,
    data: Data,
    settings: Settings | None = None,
    *,
    held_out: Data | None = None,
    loss: Loss | None = None,
    teacher: nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | bool | None = None,
    **options: Any,
) -> History:
    """Train ``model`` on ``data``; masks stay, codebooks train like any parameter.

    Parameters
    ----------
    model : nn.Module
        Changed in place; left with the weights of the chosen epoch.
    data : Samples or DataLoader
    settings : Settings, optional
        Or give its fields as keywords: ``train(model, data, epochs=5, lr=1e-3)``.
    held_out : Samples or DataLoader, optional
        Evaluated after each epoch, and what the best epoch is chosen by. Take it from the training
        set (:meth:`Samples.split`), never from the test set. While a callback is not ``done`` (a
        :class:`espalier.Pruner` on its way down), no epoch is chosen.
    loss : callable, optional
        ``loss(outputs, targets)``; cross-entropy with the label smoothing of ``settings`` by
        default.
    teacher : nn.Module, optional
        Where ``distill`` is above 0: what to learn from beside the labels, the network before it
        was pruned for example. Not changed; run in evaluation mode.
    callbacks : sequence of Callback
    checkpoint : path, optional
        Written after each epoch. If it exists, the run goes on from there and ends as it would
        have.
    progress : bool or callable, optional
        True: a bar on standard error with the time left. Or a function that is given the steps
        done, the steps in all and a short text.

    Returns
    -------
    History

    Raises
    ------
    InvalidArgument
        A setting out of range; a checkpoint of other settings; the loss is NaN or infinite.
    """
    if settings is not None and options:
        raise InvalidArgument("give settings or its fields, not both")
    settings = settings or Settings(**options)
    with reporting(progress) as report:
        run = _Run(model, data, settings, held_out, loss, teacher, callbacks, checkpoint, report)
        return run.fit()


class _Run:
    """The state of one call of :func:`train`."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        settings: Settings,
        held_out: Data | None,
        loss: Loss | None,
        teacher: nn.Module | None,
        callbacks: Sequence[Callback],
        checkpoint: str | os.PathLike[str] | None,
        progress: Progress | None,
    ) -> None:
        if (teacher is not None) != (settings.distill > 0):
            raise InvalidArgument("distillation needs both: distill above 0 and a teacher")
        if settings.features and teacher is None:
            raise InvalidArgument("features are learnt from a teacher: give distill and one")
        self.model, self.data, self.settings = model, data, settings
        self.held_out, self.callbacks, self.progress = held_out, callbacks, progress
        self.checkpoint = Path(checkpoint) if checkpoint is not None else None
        # Not a method of its own: a cycle would keep the training set in memory after the run.
        smoothing = settings.label_smoothing
        self.loss = loss or partial(functional.cross_entropy, label_smoothing=smoothing)
        self.distiller = None if teacher is None else self._distiller(teacher)
        self.augment = augmentation(settings.augment)
        self.mix = MIXES[settings.mix] if settings.mix else None
        if isinstance(data, Samples) and len(data) < settings.batch_size:
            raise InvalidArgument(
                f"{len(data)} samples do not fill a batch of {settings.batch_size}"
            )
        whole = isinstance(data, Samples)
        self.steps_per_epoch = len(data) // settings.batch_size if whole else len(data)
        self.total = settings.epochs * self.steps_per_epoch
        self.optimizer = _optimizer(model, settings)
        self.average = _Average(model, settings.average) if settings.average else None
        self.history = History()
        self.best: dict[str, Tensor] | None = None
        self.taught: Tensor | None = None
        self.views: dict[tuple[int, int], Tensor] = {}
        if settings.views and not whole:
            raise InvalidArgument("views are of Samples: a DataLoader draws as it likes")
        self.device = next(model.parameters()).device

    def _distiller(self, teacher: nn.Module) -> Distiller:
        settings = self.settings
        return Distiller(
            self.model,
            teacher,
            share=settings.distill,
            temperature=settings.temperature,
            features=settings.features,
            feature_weight=settings.feature_weight,
            loss=self.loss,
        )

    def _objective(
        self, x: Tensor, y: Tensor, taught: Tensor | None, mixed: Mixed | None
    ) -> Tensor:
        with self._precision():
            outputs = at_least_float32(self.model(x))
            if mixed is not None and self.settings.distill < 1:
                y = mixed.targets(y, outputs.shape[1])
            if self.distiller is None:
                loss = self.loss(outputs, y)
            else:
                loss = self.distiller(x, outputs, y, taught)
        for callback in self.callbacks:
            if isinstance(callback, _Adds) and callable(callback.loss):
                loss = loss + callback.loss()
        return loss

    def _laid_out(self, x: Tensor) -> Tensor:
        x = x.to(self.device)
        if self.settings.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def _precision(self) -> torch.autocast:
        half = self.settings.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def _teach_once(self) -> Tensor | None:
        """The teacher's outputs on all samples, where every epoch would ask for the same.

        No more than the samples themselves take: else it is asked for each batch.
        """
        if self.distiller is None or self.settings.features or self.augment or self.mix:
            return None
        if not isinstance(self.data, Samples):
            return None
        x, size = self.data.x, self.settings.batch_size
        with self._precision():
            first = self.distiller.teach(self._laid_out(x[:size]))
            if len(x) * first[0].nbytes > x.nbytes:
                return None
            rest = [self.distiller.teach(self._laid_out(part)) for part in x[size:].split(size)]
        return torch.cat([first, *rest])

    def _teach_view(self, view: int, i: int, x: Tensor) -> Tensor | None:
        """The teacher's outputs on a batch that comes again when its view does."""
        if self.distiller is None or self.settings.features:
            return None
        if (view, i) not in self.views:
            with self._precision():
                self.views[view, i] = self.distiller.teach(x)
        return self.views[view, i]

    def fit(self) -> History:
        start = self._resume()
        if start < self.settings.epochs:
            self.taught = self._teach_once()
        training = self.model.training
        try:
            for epoch in range(start, self.settings.epochs):
                if self._out_of_patience():
                    break
                self._epoch(epoch)
                self._save()
        finally:
            if self.distiller is not None:
                self.distiller.close()
        if self.best is not None:
            self.model.load_state_dict(self.best)
        self.model.train(training)
        return self.history

    def _epoch(self, epoch: int) -> None:
        torch.manual_seed(self.settings.seed * 1_000_003 + epoch)  # dropout
        view = epoch % self.settings.views if self.settings.views else epoch
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + view)
        self.model.train()
        total = 0.0
        for i, (x, y, taught) in enumerate(self._batches(generator)):
            mixed = self.mix(x, generator) if self.mix else None
            x = self._laid_out(mixed.x if mixed else x)
            if self.settings.views:
                taught = self._teach_view(view, i, x)
            step = epoch * self.steps_per_epoch + i
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate(step) * group.get("scale", 1.0)
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._objective(x, y.to(self.device), taught, mixed)
            value = loss.item()
            if not math.isfinite(value):
                raise InvalidArgument(f"the loss is {value} in epoch {epoch}, step {i}: lower lr")
            loss.backward()
            self.optimizer.step()
            for callback in self.callbacks:
                callback.step()
            if self.average:
                self.average.update()
            total += value
            if self.progress:
                text = f"epoch {epoch + 1}/{self.settings.epochs}, loss {value:.3f}"
                self.progress(step + 1, self.total, text)
        self._close_epoch(epoch, total / self.steps_per_epoch)

    def _close_epoch(self, epoch: int, train_loss: float) -> None:
        if self.average:
            self.average.swap()
        error = loss = None
        if self.held_out is not None:
            metrics = evaluate(self.model, self.held_out)
            error, loss = metrics.error, metrics.loss
        self.history.epochs.append(Epoch(epoch, train_loss, error, loss))
        for callback in self.callbacks:
            if isinstance(callback, _Follows):
                callback.close_epoch(self.history.epochs[-1])
        if self._chosen(epoch):
            self.history.chosen = epoch
            self.best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        if self.average:
            self.average.swap()

    def _chosen(self, epoch: int) -> bool:
        """Whether ``epoch`` is the best so far, or, where nothing is chosen by, the last."""
        last = epoch == self.settings.epochs - 1
        if any(isinstance(c, _Schedules) and not c.done for c in self.callbacks):
            return last and self.best is None
        if self.held_out is None or self.settings.choose == "last":
            return last
        if self.best is None:
            return True
        new, old = self.history.epochs[epoch], self.history.epochs[self.history.chosen]
        assert new.error is not None
        assert old.error is not None
        assert new.loss is not None
        assert old.loss is not None
        return (new.error, new.loss) < (old.error, old.loss)

    def _out_of_patience(self) -> bool:
        since = len(self.history.epochs) - 1 - self.history.chosen
        return 0 < self.settings.patience <= since and self.best is not None

    def _rate(self, step: int) -> float:
        if self.settings.schedule == "constant":
            return self.settings.lr
        return self.settings.lr * 0.5 * (1 + math.cos(math.pi * step / self.total))

    def _batches(
        self, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Inputs, targets, and what the teacher says of the inputs, where that is known."""
        if not isinstance(self.data, Samples):
            for x, y in self.data:
                yield x, y, None
            return
        order = torch.randperm(len(self.data), generator=generator)
        size = self.settings.batch_size
        for i in range(self.steps_per_epoch):
            index = order[i * size : (i + 1) * size]
            x = self.data.x[index]
            taught = self.taught[index] if self.taught is not None else None
            yield (self.augment(x, generator) if self.augment else x), self.data.y[index], taught

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        save_checkpoint(
            self.checkpoint,
            {
                "settings": asdict(self.settings),
                "model": self.model.state_dict(),
                "best": self.best,
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.state_dict() if self.average else None,
                "callbacks": [c.state_dict() for c in self.callbacks if isinstance(c, _Stateful)],
                "epochs": [asdict(epoch) for epoch in self.history.epochs],
                "chosen": self.history.chosen,
            },
        )

    def _resume(self) -> int:
        if self.checkpoint is None or not self.checkpoint.exists():
            return 0
        state = load_checkpoint(self.checkpoint)
        # A setting that is younger than the run has its default there.
        if asdict(Settings()) | state.get("settings", {}) != asdict(self.settings):
            raise InvalidArgument(
                f"{self.checkpoint}: is of a run with other settings; remove it to start again"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = state["best"]
        if self.average and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        stateful = [c for c in self.callbacks if isinstance(c, _Stateful)]
        for callback, kept in zip(stateful, state["callbacks"], strict=True):
            callback.load_state_dict(kept)
        self.history = History([Epoch(**epoch) for epoch in state["epochs"]], state["chosen"])
        return len(self.history.epochs)


def _optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    groups = parameter_groups(model, settings.lr, settings.merged_lr)
    if not groups:
        raise InvalidArgument("the model has no parameter that requires a gradient")
    for group in groups:
        group["scale"] = group["lr"] / settings.lr
    if settings.optimizer == "adam":
        return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        groups,
        lr=settings.lr,
        momentum=0.9,
        nesterov=True,
        weight_decay=settings.weight_decay,
    )


class _Average:
    """Exponential moving average of the parameters (Polyak averaging), with a warm-up."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = list(model.parameters())
        self.shadow = [p.detach().clone() for p in self.parameters]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's parameters and their averages."""
        for parameter, shadow in zip(self.parameters, self.shadow, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(shadow)
            shadow.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shadow, self.updates = state["shadow"], int(state["updates"])
