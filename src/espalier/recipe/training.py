"""Stages that train: ``train``, ``retrain``, ``fine_tune``, and the training within others."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from espalier.pruning import Pruner
from espalier.quantization.share import Refresher
from espalier.recipe.context import Context, density, samples, steps_per_epoch
from espalier.recipe.options import GradualPrune, Train
from espalier.recipe.teachers import cast_once, teacher_of, train_teachers
from espalier.training.loop import Callback, History, train
from espalier.training.metrics import set_dropout
from espalier.training.settings import Settings


def train_stage(
    context: Context, options: Train, checkpoint: Path, *more: Callback
) -> dict[str, Any]:
    names = {f.name for f in fields(Settings)} - {"seed"}
    settings = Settings(**options.model_dump(include=names), seed=context.seed)
    if options.dropout is not None:
        set_dropout(context.model, options.dropout)
    callbacks = list(more)
    if options.prune is not None:
        callbacks.append(_pruner(context, options.prune, settings.batch_size))
    if options.refresh_every:
        callbacks.append(Refresher(context.model, options.refresh_every))
    if context.board is not None:
        callbacks.append(context.board.follow(context.model))
    teacher = teacher_of(context, options) if settings.distill else None
    if teacher is not None and settings.precision == "bfloat16":
        cast_once(teacher)
    history = train(
        context.model,
        context.split.train,
        settings,
        held_out=context.split.held_out,
        teacher=teacher,
        callbacks=callbacks,
        checkpoint=checkpoint,
        progress=context.progress,
    )
    values = trained(history) | {"density": density(context.model)}
    if options.teachers:
        values["teachers"] = [trained(h) for h in train_teachers(context, options, settings)]
    return values


def trained(history: History) -> dict[str, Any]:
    chosen = history.epochs[history.chosen]
    return {
        "chosen_epoch": history.chosen,
        "held_out_error": chosen.error,
        "held_out_loss": chosen.loss,
        "epochs": [asdict(epoch) for epoch in history.epochs],
    }


def _pruner(context: Context, options: GradualPrune, batch_size: int) -> Pruner:
    steps = max(1, round(options.epochs * steps_per_epoch(context, batch_size)))
    schedule: dict[str, Any] = {"steps": steps, "every": options.every}
    if options.schedule == "rounds":
        every = max(1, steps // max(1, options.rounds - 1))
        schedule = {"rounds": options.rounds, "every": every}
    return Pruner(
        context.model,
        options.density,
        schedule=options.schedule,
        criterion=options.criterion,
        scope=options.scope,
        batches=lambda: samples(context, options.samples),
        seed=context.seed,
        **schedule,
    )
