"""What each stage of a recipe does to the model."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espalier.analysis.distributions import (
    WeightHistogram,
    weight_histogram,
    weight_histograms,
)
from espalier.errors import CorruptFile, InvalidArgument
from espalier.pruning import prune
from espalier.quantization.curvature import collect_curvature
from espalier.quantization.quantize import quantize
from espalier.quantization.rd import quantize_rd, search_lambda
from espalier.quantization.share import share, share_layerwise
from espalier.recipe.context import Context, first, samples
from espalier.recipe.options import (
    Evaluate,
    Factorize,
    Merge,
    Prune,
    PruneFilters,
    Quantize,
    QuantizeRd,
    RateAware,
    Save,
    Share,
    Train,
)
from espalier.recipe.rate_aware import rate_aware
from espalier.recipe.schema import Stage
from espalier.recipe.training import train_stage
from espalier.structure.cost import cost
from espalier.structure.factorize import factorize
from espalier.structure.filters import prune_filters, prune_filters_layerwise
from espalier.structure.merge import merge, merge_layerwise
from espalier.torch_io import load, read_model, save
from espalier.training.metrics import evaluate

EVALUATIONS = 12
"""How many networks a search for lambda makes and evaluates, at most."""


def run_stage(context: Context, stage: Stage) -> dict[str, Any]:
    """Run one stage on ``context.model``; what it measured, as plain data."""
    match stage.options:
        case RateAware() as options:
            return rate_aware(context, options)
        case Train() as options:
            return train_stage(context, options, context.checkpoint())
        case Prune() as options:
            return _prune(context, options)
        case PruneFilters() as options:
            return _prune_filters(context, options)
        case Factorize() as options:
            return _factorize(context, options)
        case Merge() as options:
            return _merge(context, options)
        case Share() as options:
            return _share(context, options)
        case Quantize() as options:
            return _quantize(context, options)
        case QuantizeRd() as options:
            return _quantize_rd(context, options)
        case Evaluate() as options:
            return _evaluate(context, options)
        case Save() as options:
            return _save(context, options)
    raise InvalidArgument(f"no stage is called {stage.kind!r}")


def _prune(context: Context, options: Prune) -> dict[str, Any]:
    report = prune(
        context.model,
        options.density,
        quality=options.quality,
        criterion=options.criterion,
        scope=options.scope,
        batches=samples(context, options.samples),
        seed=context.seed,
    )
    return {
        "density": report.density,
        "layers": [asdict(layer) for layer in report.layers],
        "skipped": [asdict(layer) for layer in report.skipped],
    }


def _prune_filters(context: Context, options: PruneFilters) -> dict[str, Any]:
    batches = samples(context, options.samples)
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


def _factorize(context: Context, options: Factorize) -> dict[str, Any]:
    example = next(x for x, _ in samples(context, 1))[:1]
    report = factorize(context.model, example=example, **options.model_dump())
    return asdict(report)


def _prune_filters_layerwise(
    context: Context, options: PruneFilters, training: Train
) -> dict[str, Any]:
    batches = samples(context, options.samples)
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
        trained = train_stage(context, training, context.checkpoint(part=i + 1))
        layers.append(asdict(group) | {"held_out_error": trained["held_out_error"]})
    after = cost(context.model, example)
    return {
        "layers": layers,
        "macs": [before.macs, after.macs],
        "parameters": [before.parameters, after.parameters],
    }


def _merge(context: Context, options: Merge) -> dict[str, Any]:
    model = context.model
    batches = first(samples(context, options.samples), options.samples, options.batch_size)
    example = batches[0][0][:1]
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
            trained = train_stage(context, options.layerwise, checkpoint)
            layers.append(asdict(merged) | {"held_out_error": trained["held_out_error"]})
    after = cost(model, example)
    return {
        "exact": exact,
        "layers": layers,
        "skipped": skipped,
        "macs": [before.macs, after.macs],
        "parameters": [before.parameters, after.parameters],
    }


def _share(context: Context, options: Share) -> dict[str, Any]:
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
        trained = train_stage(context, options.layerwise, context.checkpoint(part=i + 1))
        layers.append(asdict(layer) | {"held_out_error": trained["held_out_error"]})
    return {"layers": layers, "skipped": [], "weights": centroids}


def _with_centroids(weights: list[WeightHistogram], model: nn.Module) -> list[dict[str, Any]]:
    """The weights as they were before sharing, and the centroids as they are before training."""
    tensors = read_model(model).tensors
    shared = [w for w in weights if getattr(tensors[w.name], "codebook", None) is not None]
    now = [weight_histogram(w.name, tensors[w.name]).centroids for w in shared]
    return [replace(w, centroids=c).to_json() for w, c in zip(shared, now, strict=True)]


def _quantize(context: Context, options: Quantize) -> dict[str, Any]:
    names = ("bits", "method", "granularity", "group_size", "keep_ends", "correct_bias")
    report = quantize(
        context.model,
        **options.model_dump(include={*names, "activations", "activation_options"}),
        **options.method_options,
        batches=first(samples(context, options.samples), options.samples, options.batch_size),
    )
    return asdict(report)


def _quantize_rd(context: Context, options: QuantizeRd) -> dict[str, Any]:
    """Quantize with the recipe's lambda, or with the largest that the held-out data allows."""
    model = context.model
    seen = first(samples(context, options.samples), options.samples, options.batch_size)
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
    options: QuantizeRd,
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


def _evaluate(context: Context, options: Evaluate) -> dict[str, Any]:
    data = context.split.test if options.split == "test" else context.split.held_out
    if data is None:
        raise InvalidArgument("evaluate: nothing is held out; set holdout, or evaluate on test")
    metrics = evaluate(context.model, data)
    return {"name": options.name, "split": options.split, "error": metrics.error} | asdict(metrics)


def _save(context: Context, options: Save) -> dict[str, Any]:
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
