"""Who teaches in a run: the network as it was, and others that were trained beside it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from torch import nn
from torch.nn.modules.conv import _ConvNd

from espalier.errors import InvalidArgument
from espalier.parametrization import finalize
from espalier.recipe.context import TEACHERS, Context
from espalier.recipe.options import Train
from espalier.recipe.refs import build_model
from espalier.recipe.state import model_state, restore
from espalier.structure.fold import fold_batch_norms
from espalier.training.checkpoint import load_checkpoint, save_checkpoint
from espalier.training.distillation import Ensemble
from espalier.training.loop import History, train
from espalier.training.metrics import set_dropout
from espalier.training.settings import Settings


def train_teachers(context: Context, options: Train, settings: Settings) -> list[History]:
    """Train networks as the recipe's own was, from other seeds, and keep them in the folder."""
    return [
        _train_one(context, options, replace(settings, seed=settings.seed * 1000 + part), part)
        for part in range(1, options.teachers + 1)
    ]


def _train_one(context: Context, options: Train, settings: Settings, part: int) -> History:
    teacher = build_model(context.recipe, settings.seed)
    teacher.to(context.device)
    if options.dropout is not None:
        set_dropout(teacher, options.dropout)
    history = train(
        teacher,
        context.split.train,
        settings,
        held_out=context.split.held_out,
        checkpoint=context.checkpoint(part),
        progress=context.progress,
    )
    save_checkpoint(_path(context.folder, part), model_state(teacher))
    return history


def keep_teacher(context: Context) -> None:
    """The network as it is now teaches from here on, and those of an earlier stage no more."""
    trained = context.recipe.stages[context.index].training
    for part in range(trained.teachers + 1 if trained else 1, len(_kept(context.folder)) + 1):
        _path(context.folder, part).unlink(missing_ok=True)
    save_checkpoint(_path(context.folder, 0), model_state(context.model))


def teacher_of(context: Context, options: Train) -> nn.Module:
    """What the last ``train`` stage left, one network or more, or the recipe's weights.

    Batch norms are folded, unless layers' outputs are learnt too: they do not survive that.
    """
    kept = _kept(context.folder)
    wanted = 0
    for stage in context.recipe.stages[: context.index]:
        if stage.kind == "train" and stage.training is not None:
            wanted = stage.training.teachers + 1
    if len(kept) < wanted:
        kind = context.recipe.stages[context.index].kind
        raise InvalidArgument(
            f"{context.folder}: {kind} learns from {wanted} networks, of which {len(kept)} are"
            f" there ({TEACHERS}); --force starts again"
        )
    teachers = [build_model(context.recipe) for _ in range(max(1, len(kept)))]
    for teacher, path in zip(teachers, kept, strict=False):
        restore(teacher, load_checkpoint(path))
    teachers = [finalize(teacher).to(context.device) for teacher in teachers]
    if not options.features:
        for teacher in teachers:
            with suppress(InvalidArgument):  # one that cannot be traced answers as it is
                fold_batch_norms(teacher)
    return teachers[0] if len(teachers) == 1 else Ensemble(teachers)


def cast_once(teacher: nn.Module) -> nn.Module:
    """Hold in bfloat16 what autocast would cast for each batch; the outputs are the same."""
    for module in teacher.modules():
        if isinstance(module, nn.Linear | _ConvNd):
            module.bfloat16()
    return teacher


def drop_teachers(folder: Path) -> None:
    """At the end of a run."""
    for path in _kept(folder):
        path.unlink()


def _kept(folder: Path) -> list[Path]:
    return sorted(folder.glob(TEACHERS))


def _path(folder: Path, part: int) -> Path:
    """The file of the network itself, part 0, or of another."""
    return folder / TEACHERS.replace("*", f"-{part:02d}" if part else "")
