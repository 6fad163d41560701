"""The stage ``rate_aware``."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from espalier import rate_aware as method
from espalier.modes import evaluating
from espalier.recipe.context import Context, density, first, samples, steps_per_epoch
from espalier.recipe.options import RateAware, Train
from espalier.recipe.teachers import teacher_of
from espalier.recipe.training import train_stage
from espalier.training.distillation import distillation_loss


def rate_aware(context: Context, options: RateAware) -> dict[str, Any]:
    own = set(RateAware.model_fields) - set(Train.model_fields)
    steps = options.epochs * steps_per_epoch(context, options.batch_size)
    how = options.model_dump(include=own - {"remove_dead", "refine", "fixed_epochs"})
    if options.freeze_norms is None:
        how["freeze_norms"] = not context.recipe.trains_norms_after(context.index)
    rate = method.RateAware(context.model, steps=steps, **how)
    parts = [
        options.epochs * (i + 1) // max(1, options.remove_dead)
        - options.epochs * i // max(1, options.remove_dead)
        for i in range(max(1, options.remove_dead))
    ]
    values: dict[str, Any] = {"epochs": []}
    removed: list[dict[str, Any]] = []
    # As with layers one after another, a resumed stage goes through the finished parts again.
    for i, epochs in enumerate(parts):
        part = options.model_copy(update={"epochs": epochs})
        checkpoint = context.checkpoint(i + 1 if len(parts) > 1 else 0)
        trained = train_stage(context, part, checkpoint, rate)
        values = trained | {"epochs": values["epochs"] + trained["epochs"]}
        if options.remove_dead:
            example = next(x for x, _ in samples(context, 1))[:1]
            removed += [asdict(group) for group in rate.remove_dead_units(example)]
    refined = _refined(context, options, rate) if options.refine else None
    fixed = _fixed(context, options, rate, len(parts) + 1) if options.fixed_epochs else None
    report = rate.finish()
    return values | {
        "lambda": rate.lam,
        "file_bytes": report.file_bytes,
        "removed": removed,
        "refined": refined,
        "fixed": fixed,
        "density": density(context.model),
        "layers": [asdict(layer) for layer in report.layers],
        "skipped": [asdict(layer) for layer in report.skipped],
    }


def _refined(context: Context, options: RateAware, rate: method.RateAware) -> dict[str, Any]:
    """Refine the symbols, by the labels or by what the teacher says of the samples."""
    batches = first(samples(context, options.refine), options.refine, options.batch_size)
    if not options.distill:
        return asdict(rate.refine(batches, progress=context.progress))
    teacher = teacher_of(context, options)
    with torch.no_grad(), evaluating(teacher):
        taught = [(x, teacher(x)) for x, _ in batches]
    loss = partial(distillation_loss, temperature=options.temperature)
    return asdict(rate.refine(taught, loss, progress=context.progress))


def _fixed(
    context: Context, options: RateAware, rate: method.RateAware, part: int
) -> dict[str, Any]:
    """Train the steps, and what has no grid, with the symbols as they are."""
    rate.fix_symbols()
    update = {"epochs": options.fixed_epochs, "lr": options.lr / 10}
    return train_stage(context, options.model_copy(update=update), context.checkpoint(part), rate)
