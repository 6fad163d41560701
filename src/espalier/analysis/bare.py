"""The sweep of a bare checkpoint: no data, no model, one tensor at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from espalier.analysis.axis import AXES, Grid, Setting, check_grid
from espalier.analysis.evaluations import LayerOutcome, Outcome, measure_setting
from espalier.analysis.kept import Kept
from espalier.analysis.processes import in_processes, serial, until_done
from espalier.analysis.sensitivity import Point, Sweep, SweptLayer
from espalier.compress.plan import kind_of, why_exact
from espalier.errors import InvalidArgument
from espalier.interop import Checkpoint, TensorInfo
from espalier.options import Lookup
from espalier.progress import Progress, reporting
from espalier.state import Array
from espalier.torch_io import to_tensor

_LAYER = "layer.weight"


def bare_sensitivity(
    checkpoint: Checkpoint,
    grid: Grid | None = None,
    *,
    layers: Sequence[str] | None = None,
    jobs: int | None = None,
    keep: str | os.PathLike[str] | None = None,
    progress: Progress | bool | None = None,
) -> Sweep:
    """The relative error and the SQNR of each weight of a checkpoint over a grid.

    Parameters and errors are those of :func:`espalier.sensitivity`. Of the tensors no more are in
    memory than there are jobs, twice.
    """
    checked = check_grid(grid)
    for name in checked:
        if not AXES.get(name).adds_up:
            raise InvalidArgument(
                f"{name}: a bare checkpoint does not say which layers depend on each other; give "
                "the network and its data"
            )
    infos = _weights(checkpoint, layers)
    kept = Kept(keep, {"model": _digest(checkpoint), "metric": "", "data": ""})
    wanted = {info.name: settings(info, checked) for info in infos}
    total = sum(len(of_one) for of_one in wanted.values())
    with reporting(progress) as report:

        def calls() -> Iterator[tuple[Any, ...]]:
            for info in infos:
                missing = [s for s in wanted[info.name] if kept.get(s) is None]
                if missing:
                    dtype, array = checkpoint.load(info.name)
                    yield info.name, dtype, array, missing

        done = sum(kept.get(s) is not None for of_one in wanted.values() for s in of_one)

        def attempt() -> Iterator[list[Outcome]]:
            if serial(jobs):
                return (_measure(*call) for call in calls())
            return in_processes(_measure, calls(), jobs)

        def take(outcomes: list[Outcome]) -> None:
            nonlocal done
            for outcome in outcomes:
                kept.put(outcome.setting, outcome.record())
            done += len(outcomes)
            if report:
                report(done, total, next(iter(outcomes[0].setting)))

        until_done(attempt, lambda: len(kept), take)
    return _sweep(checkpoint, infos, wanted, kept)


def settings(info: TensorInfo, grid: Grid) -> list[Setting]:
    """What is done to one tensor; first nothing."""
    changes: list[Setting] = [
        {info.name: {axis: value}} for axis, values in grid.items() for value in values
    ]
    return [{info.name: {}}, *changes]


def _weights(checkpoint: Checkpoint, patterns: Sequence[str] | None) -> list[TensorInfo]:
    infos = [info for info in checkpoint.infos.values() if not why_exact(info)]
    if patterns:
        lookup: Lookup[bool] = Lookup({"*": None, **dict.fromkeys(patterns, True)}, "layers")
        chosen = lookup.resolve(
            [((i.name.removesuffix(".weight"), i.name), kind_of(i)) for i in infos]
        )
        infos = [info for info, wanted in zip(infos, chosen, strict=True) if wanted]
    if not infos:
        raise InvalidArgument(f"{checkpoint.path}: holds no weight that can be swept")
    return infos


def _digest(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256()
    for name, info in checkpoint.infos.items():
        digest.update(f"{name} {info.dtype} {info.shape}\n".encode())
        digest.update(checkpoint.load(name)[1].data)
    return digest.hexdigest()[:32]


def _module(dtype: str, array: Array) -> nn.Module:
    """A network of one layer, whose weight is ``array``."""
    weight = nn.Parameter(to_tensor(array, dtype), requires_grad=False)
    outputs, inputs, *kernel = weight.shape
    how: dict[str, Any] = {"bias": False, "device": "meta"}
    layer: nn.Module
    if not kernel:
        layer = nn.Linear(inputs, outputs, **how)
    else:
        kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        layer = kinds[len(kernel) - 1](inputs, outputs, tuple(kernel), **how)  # type: ignore[arg-type]
    layer.weight = weight
    return nn.ModuleDict({"layer": layer})


def _measure(name: str, dtype: str, array: Array, wanted: Sequence[Setting]) -> list[Outcome]:
    model = _module(dtype, array)
    found = []
    for setting in wanted:
        try:
            outcome = measure_setting(model, None, {_LAYER: setting[name]})
        except InvalidArgument as error:
            raise InvalidArgument(str(error).replace(_LAYER, name)) from None
        found.append(Outcome(setting, None, outcome.layer, outcome.seconds))
    return found


def _sweep(
    checkpoint: Checkpoint,
    infos: Sequence[TensorInfo],
    wanted: dict[str, list[Setting]],
    kept: Kept,
) -> Sweep:
    layers, points = [], []
    for info in infos:
        for setting in wanted[info.name]:
            record = kept.get(setting)
            assert record is not None
            layer = LayerOutcome(**record["layer"])
            values = setting[info.name]
            if not values:
                layers.append(SweptLayer(info.name, kind_of(info), info.size, layer.size_bytes))
            for axis, value in values.items():
                points.append(
                    Point(
                        info.name,
                        axis,
                        AXES.make(axis).check(value),
                        None,
                        **asdict(layer),
                        seconds=record["seconds"],
                    )
                )
    return Sweep(
        model=_digest(checkpoint),
        metric="",
        better="higher",
        data="",
        baseline=None,
        file_bytes=checkpoint.file_bytes,
        original_bytes=sum(info.nbytes for info in checkpoint.infos.values()),
        layers=tuple(layers),
        points=tuple(points),
    )
