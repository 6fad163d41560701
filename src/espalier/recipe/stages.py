"""What each stage of a recipe does to the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espalier.analysis.distributions import (
    WeightHistogram,
    weight_histogram,
    weight_histograms,
)
from espalier.errors import CorruptFile, InvalidArgument
from espalier.modes import evaluating
from espalier.parametrization import current, finalize, mask_of
from espalier.pruning import Pruner, prune
from espalier.pruning.fisher import Batches
from espalier.quantization.curvature import collect_curvature
from espalier.quantization.quantize import quantize
from espalier.quantization.rd import quantize_rd, search_lambda
from espalier.quantization.share import Refresher, share, share_layerwise
from espalier.rate_aware import RateAware
from espalier.recipe import schema
from espalier.recipe.board import Board
from espalier.recipe.refs import Split, build_model
from espalier.recipe.state import restore
from espalier.samples import Samples
from espalier.structure.cost import cost
from espalier.structure.factorize import factorize
from espalier.structure.filters import prune_filters, prune_filters_layerwise
from espalier.structure.merge import merge, merge_layerwise
from espalier.targets import find_targets
from espalier.torch_io import load, read_model, save
from espalier.training.checkpoint import load_checkpoint
from espalier.training.distillation import distillation_loss
from espalier.training.loop import Callback, History, Settings, train
from espalier.training.metrics import evaluate, set_dropout

TEACHER = "teacher.pt"
"""In the folder of a run: the network as the last ``train`` stage left it."""

EVALUATIONS = 12
"""How many networks a search for lambda makes and evaluates, at most."""


@dataclass(frozen=True)
class Context:
    """What a stage works on. ``index``: its place in the recipe, from 0."""

    model: nn.Module
    split: Split
    recipe: schema.Recipe
    folder: Path
    index: int
    progress: Callable[[int, int, str], None] | None
    board: Board | None = None

    def checkpoint(self, part: int = 0) -> Path:
        """Where this stage keeps its epochs, or those of one of its parts, from 1."""
        of = f"-{part:02d}" if part else ""
        return self.folder / f"stage-{self.index + 1:02d}{of}.pt"

    def checkpoints(self) -> list[Path]:
        """All that are there."""
        return sorted(self.folder.glob(f"stage-{self.index + 1:02d}*.pt"))

    @property
    def seed(self) -> int:
        """A seed of this stage's own."""
        return self.recipe.seed * 1000 + self.index


def run_stage(context: Context, stage: schema.Stage) -> dict[str, Any]:
    """Run one stage on ``context.model``; what it measured, as plain data."""
    match stage.options:
        case schema.RateAware() as options:
            return _rate_aware(context, options)
        case schema.Train() as options:
            return _train(context, options, context.checkpoint())
        case schema.Prune() as options:
            return _prune(context, options)
        case schema.PruneFilters() as options:
            return _prune_filters(context, options)
        case schema.Factorize() as options:
            return _factorize(context, options)
        case schema.Merge() as options:
            return _merge(context, options)
        case schema.Share() as options:
            return _share(context, options)
        case schema.Quantize() as options:
            return _quantize(context, options)
        case schema.QuantizeRd() as options:
            return _quantize_rd(context, options)
        case schema.Evaluate() as options:
            return _evaluate(context, options)
        case schema.Save() as options:
            return _save(context, options)
    raise InvalidArgument(f"no stage is called {stage.kind!r}")


def _train(
    context: Context, options: schema.Train, checkpoint: Path, *more: Callback
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
    history = train(
        context.model,
        context.split.train,
        settings,
        held_out=context.split.held_out,
        teacher=_teacher(context) if settings.distill else None,
        callbacks=callbacks,
        checkpoint=checkpoint,
        progress=context.progress,
    )
    return _trained(history) | {"density": _density(context.model)}


def _rate_aware(context: Context, options: schema.RateAware) -> dict[str, Any]:
    own = set(schema.RateAware.model_fields) - set(schema.Train.model_fields)
    steps = options.epochs * _steps_per_epoch(context, options.batch_size)
    how = options.model_dump(include=own - {"remove_dead", "refine"})
    if options.freeze_norms is None:
        how["freeze_norms"] = not context.recipe.trains_after(context.index)
    rate = RateAware(context.model, steps=steps, **how)
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
        trained = _train(context, part, checkpoint, rate)
        values = trained | {"epochs": values["epochs"] + trained["epochs"]}
        if options.remove_dead:
            example = next(x for x, _ in _samples(context, 1))[:1]
            found = rate.remove_dead_units(example.to(next(context.model.parameters()).device))
            removed += [asdict(group) for group in found]
    refined = _refined(context, options, rate) if options.refine else None
    report = rate.finish()
    return values | {
        "lambda": rate.lam,
        "file_bytes": report.file_bytes,
        "removed": removed,
        "refined": refined,
        "density": _density(context.model),
        "layers": [asdict(layer) for layer in report.layers],
        "skipped": [asdict(layer) for layer in report.skipped],
    }


def _refined(context: Context, options: schema.RateAware, rate: RateAware) -> dict[str, Any]:
    """Refine the symbols, by the labels or by what the teacher says of the samples."""
    device = next(context.model.parameters()).device
    batches = [
        (x.to(device), y.to(device))
        for x, y in _first(_samples(context, options.refine), options.refine, options.batch_size)
    ]
    if not options.distill:
        return asdict(rate.refine(batches))
    teacher = _teacher(context)
    with torch.no_grad(), evaluating(teacher):
        taught = [(x, teacher(x)) for x, _ in batches]
    return asdict(rate.refine(taught, partial(distillation_loss, temperature=options.temperature)))


def _steps_per_epoch(context: Context, batch_size: int) -> int:
    data = context.split.train
    return len(data) // batch_size if isinstance(data, Samples) else len(data)


def _teacher(context: Context) -> nn.Module:
    """The network as the last ``train`` stage left it, or as the recipe's weights are."""
    teacher, kept = build_model(context.recipe), context.folder / TEACHER
    if kept.exists():
        restore(teacher, load_checkpoint(kept))
    return finalize(teacher).to(next(context.model.parameters()).device)


def _trained(history: History) -> dict[str, Any]:
    chosen = history.epochs[history.chosen]
    return {
        "chosen_epoch": history.chosen,
        "held_out_error": chosen.error,
        "held_out_loss": chosen.loss,
        "epochs": [asdict(epoch) for epoch in history.epochs],
    }


def _pruner(context: Context, options: schema.GradualPrune, batch_size: int) -> Pruner:
    steps = max(1, round(options.epochs * _steps_per_epoch(context, batch_size)))
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
        batches=lambda: _samples(context, options.samples),
        seed=context.seed,
        **schedule,
    )


def _samples(context: Context, n: int) -> Batches:
    """``n`` training samples, drawn by the stage's seed."""
    data = context.split.train
    if not isinstance(data, Samples):
        return data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(context.seed))
    part = data.subset(order[:n])
    return [(part.x, part.y)]


def _prune(context: Context, options: schema.Prune) -> dict[str, Any]:
    report = prune(
        context.model,
        options.density,
        quality=options.quality,
        criterion=options.criterion,
        scope=options.scope,
        batches=_samples(context, options.samples),
        seed=context.seed,
    )
    return {
        "density": report.density,
        "layers": [asdict(layer) for layer in report.layers],
        "skipped": [asdict(layer) for layer in report.skipped],
    }


def _prune_filters(context: Context, options: schema.PruneFilters) -> dict[str, Any]:
    batches = _samples(context, options.samples)
    example = next(x for x, _ in batches)[:1]
    if options.layerwise is not None:
        return _prune_filters_layerwise(context, options, options.layerwise)
    report = prune_filters(
        context.model,
        options.keep,
        example=example,
        criterion=options.criterion,
        scope=options.scope,
        macs=options.macs,
        parameters=options.parameters,
        latency=options.latency,
        batches=batches,
    )
    return {
        "layers": [asdict(group) for group in report.groups],
        "skipped": [asdict(layer) for layer in report.skipped],
        "macs": [report.before.macs, report.after.macs],
        "parameters": [report.before.parameters, report.after.parameters],
    }


def _factorize(context: Context, options: schema.Factorize) -> dict[str, Any]:
    example = next(x for x, _ in _samples(context, 1))[:1]
    report = factorize(context.model, example=example, **options.model_dump())
    return asdict(report)


def _prune_filters_layerwise(
    context: Context, options: schema.PruneFilters, training: schema.Train
) -> dict[str, Any]:
    batches = _samples(context, options.samples)
    example = next(x for x, _ in batches)[:1]
    assert options.keep is not None
    before, layers = cost(context.model, example), []
    # As with shared layers: a resumed stage cuts the finished groups again, from the same weights.
    groups = prune_filters_layerwise(
        context.model,
        options.keep,
        example=example,
        criterion=options.criterion,
        batches=batches,
    )
    for i, group in enumerate(groups):
        trained = _train(context, training, context.checkpoint(part=i + 1))
        layers.append(asdict(group) | {"held_out_error": trained["held_out_error"]})
    after = cost(context.model, example)
    return {
        "layers": layers,
        "macs": [before.macs, after.macs],
        "parameters": [before.parameters, after.parameters],
    }


def _merge(context: Context, options: schema.Merge) -> dict[str, Any]:
    model = context.model
    batches = _first(_samples(context, options.samples), options.samples, options.batch_size)
    example = batches[0][0][:1].to(next(model.parameters()).device)
    how: dict[str, Any] = {
        "parts": options.parts,
        "layers": options.layers,
        "batches": batches,
        "start": options.start,
        "relu": options.relu,
        "width": options.width,
        "seed": context.seed,
    }
    before, skipped = cost(model, example), []
    exact: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    if options.layerwise is None:
        report = merge(model, example, **how)
        for merged in report.merged:
            (layers if merged.layers else exact).append(asdict(merged))
        skipped = [asdict(layer) for layer in report.skipped]
    else:
        for merged in merge_layerwise(model, example, **how):
            if not merged.layers:  # what is exact wants no training
                exact.append(asdict(merged))
                continue
            checkpoint = context.checkpoint(part=len(layers) + 1)
            trained = _train(context, options.layerwise, checkpoint)
            layers.append(asdict(merged) | {"held_out_error": trained["held_out_error"]})
    after = cost(model, example)
    return {
        "exact": exact,
        "layers": layers,
        "skipped": skipped,
        "macs": [before.macs, after.macs],
        "parameters": [before.parameters, after.parameters],
    }


def _share(context: Context, options: schema.Share) -> dict[str, Any]:
    how: dict[str, Any] = {
        "init": options.init,
        "solver": options.solver,
        "reseed": options.reseed,
        "refreshable": options.refreshable,
        "seed": context.seed,
    }
    weights = weight_histograms(read_model(context.model))
    if options.layerwise is None:
        report = share(context.model, options.bits, **how)
        return {
            "layers": [asdict(layer) for layer in report.layers],
            "skipped": [asdict(layer) for layer in report.skipped],
            "weights": _with_centroids(weights, context.model),
        }
    layers, centroids = [], []
    # A resumed stage shares the finished layers again, which is quick and has the same result, and
    # finds each one's training done.
    for i, layer in enumerate(share_layerwise(context.model, options.bits, **how)):
        centroids += _with_centroids([w for w in weights if w.name == layer.name], context.model)
        trained = _train(context, options.layerwise, context.checkpoint(part=i + 1))
        layers.append(asdict(layer) | {"held_out_error": trained["held_out_error"]})
    return {"layers": layers, "skipped": [], "weights": centroids}


def _with_centroids(weights: list[WeightHistogram], model: nn.Module) -> list[dict[str, Any]]:
    """The weights as they were before sharing, and the centroids as they are before training."""
    tensors = read_model(model).tensors
    shared = [w for w in weights if getattr(tensors[w.name], "codebook", None) is not None]
    now = [weight_histogram(w.name, tensors[w.name]).centroids for w in shared]
    return [replace(w, centroids=c).to_json() for w, c in zip(shared, now, strict=True)]


def _quantize(context: Context, options: schema.Quantize) -> dict[str, Any]:
    names = ("bits", "method", "granularity", "group_size", "keep_ends", "correct_bias")
    report = quantize(
        context.model,
        **options.model_dump(include={*names, "activations", "activation_options"}),
        **options.method_options,
        batches=_first(_samples(context, options.samples), options.samples, options.batch_size),
    )
    return asdict(report)


def _quantize_rd(context: Context, options: schema.QuantizeRd) -> dict[str, Any]:
    """Quantize with the recipe's lambda, or with the largest that the held-out data allows."""
    model = context.model
    seen = _first(_samples(context, options.samples), options.samples, options.batch_size)
    tell = context.progress or (lambda _done, _total, _text: None)
    tell(0, 1, "curvature")
    curvature = collect_curvature(model, seen, seed=context.seed)
    fold = options.fold_batchnorm
    how: dict[str, Any] = {
        "quantizer": options.quantizer,
        "curvature": curvature,
        "batches": seen if options.move_batchnorm else None,
        "correct_bias": options.correct_bias,
        "fold_batchnorm": not context.recipe.trains_after(context.index) if fold is None else fold,
    }
    lam: Any = options.lam
    searched: dict[str, Any] = {}
    if lam is None:
        lam, searched = _search(context, options, how)
    report = quantize_rd(model, lam, progress=context.progress, **how)
    tell(1, 1, f"lambda {lam}, {report.bits_per_weight:.2f} bits a weight")
    return {
        "lambda": lam,
        "bits_per_weight": report.bits_per_weight,
        **searched,
        "layers": [asdict(layer) for layer in report.layers],
        "skipped": [asdict(layer) for layer in report.skipped],
    }


def _search(
    context: Context,
    options: schema.QuantizeRd,
    how: dict[str, Any],
) -> tuple[float, dict[str, Any]]:
    held_out = context.split.held_out
    if held_out is None:
        raise InvalidArgument("quantize_rd: nothing is held out to choose lambda on; set holdout")
    by_error = options.max_error_rise is not None
    tried = 0

    def measure(candidate: nn.Module) -> float:
        nonlocal tried
        tried += 1
        found = evaluate(candidate, held_out, batch_size=options.batch_size)
        return found.error if by_error else found.loss

    rise = options.max_error_rise if by_error else options.max_loss_rise
    assert rise is not None
    before = measure(context.model)
    lam = search_lambda(
        context.model,
        measure,
        before + rise,
        evaluations=EVALUATIONS,
        progress=context.progress,
        **how,
    )
    return lam, {"evaluations": tried, "held_out_before": before, "limit": before + rise}


def _first(batches: Batches, samples: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """The first samples of ``batches``, in batches of ``size``, to look at more often."""

    kept: list[tuple[Tensor, Tensor]] = []
    left = samples
    for x, y in batches:
        x, y = x[:left], y[:left]
        kept += zip(x.split(size), y.split(size), strict=True)
        left -= len(x)
        if left <= 0:
            break
    return kept


def _evaluate(context: Context, options: schema.Evaluate) -> dict[str, Any]:
    data = context.split.test if options.split == "test" else context.split.held_out
    if data is None:
        raise InvalidArgument("evaluate: nothing is held out; set holdout, or evaluate on test")
    metrics = evaluate(context.model, data)
    return {"name": options.name, "split": options.split, "error": metrics.error} | asdict(metrics)


def _density(model: nn.Module) -> float | None:
    """Share of nonzero weights over all that are pruned or shared; None if none is."""
    kept = elements = 0
    for target in find_targets(model):
        if current(target) is not None:
            mask = mask_of(target)
            elements += target.value.numel()
            kept += target.value.numel() if mask is None else int(mask.sum())
    return kept / elements if elements else None


def _save(context: Context, options: schema.Save) -> dict[str, Any]:
    path = context.folder / options.path
    path.parent.mkdir(parents=True, exist_ok=True)
    ledger = save(context.model, path, coder=options.coder, effort=options.effort)
    _check_saved(context.model, path)
    return {"path": options.path, "coder": options.coder, "ledger": ledger.to_dict()}


def _check_saved(model: nn.Module, path: Path) -> None:
    """The file must give back every tensor of the model, bit for bit."""
    wanted, found = read_model(model).dense(), load(path)
    for name, array in wanted.items():
        bits = found[name].contiguous().flatten().view(torch.uint8).numpy().tobytes()
        if bits != array.tobytes():
            raise CorruptFile(f"{path}: {name} is not what was saved")
