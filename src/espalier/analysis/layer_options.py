"""What each layer of a sweep can be made, with its coded size and what it loses alone."""

from __future__ import annotations

import copy
import io
import itertools
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from espalier.analysis.axis import AXES, Setting, Value, apply_setting
from espalier.analysis.evaluations import Evaluations
from espalier.analysis.sensitivity import Sweep
from espalier.errors import InvalidArgument
from espalier.torch_io import save

Path: TypeAlias = tuple[int, ...]
"""The number of the option that each layer takes."""


@dataclass(frozen=True)
class Option:
    """What one layer can be made: a value on some axes, its coded size, and its loss alone."""

    values: dict[str, Value]
    size_bytes: int
    loss: float


@dataclass(frozen=True)
class Table:
    """The options of every layer; the first of each is the layer as it is.

    ``fixed_bytes``: what the file holds beside these weights.
    """

    layers: tuple[str, ...]
    options: tuple[tuple[Option, ...], ...]
    fixed_bytes: int

    def setting(self, path: Path) -> dict[str, dict[str, Value]]:
        """What ``path`` does to the network."""
        chosen = zip(self.layers, self.options, path, strict=True)
        return {layer: row[i].values for layer, row, i in chosen if row[i].values}

    def size_bytes(self, path: Path) -> int:
        """The file of ``path``."""
        return self.fixed_bytes + sum(
            row[i].size_bytes for row, i in zip(self.options, path, strict=True)
        )


def option_table(trials: Evaluations, sweep: Sweep) -> Table:
    """The options of a sweep's layers: every combination of the values on its axes.

    The sizes of combinations are measured here; their losses are the sums of the sweep's.
    """
    if coupled := [axis for axis in sweep.axes if not AXES.get(axis).adds_up]:
        raise InvalidArgument(
            f"{coupled[0]}: what one layer loses changes the size of others, so that the sweep's "
            "sizes do not add up; choose from a sweep of other axes"
        )
    rows: list[list[dict[str, Value]]] = []
    for layer in sweep.layers:
        axes = [a for a in sweep.axes if sweep.curve(layer.name, a)]
        choices = [[None, *(p.value for p in sweep.curve(layer.name, a))] for a in axes]
        rows.append(
            [
                {a: v for a, v in zip(axes, values, strict=True) if v is not None}
                for values in itertools.product(*choices)
            ]
        )
    settings = [
        {layer.name: values}
        for layer, row in zip(sweep.layers, rows, strict=True)
        for values in row
    ]
    outcomes = iter(trials.measure(settings, metric=False))
    losses = {(p.layer, p.axis, p.value): max(0.0, sweep.loss(p)) for p in sweep.points}
    options = []
    for layer, row in zip(sweep.layers, rows, strict=True):
        found = []
        for values in row:
            outcome = next(outcomes)
            assert outcome.layer is not None
            loss = sum(losses[layer.name, axis, value] for axis, value in values.items())
            found.append(Option(values, outcome.layer.size_bytes, loss))
        options.append(tuple(found))
    as_they_are = sum(row[0].size_bytes for row in options)
    return Table(
        tuple(layer.name for layer in sweep.layers),
        tuple(options),
        sweep.file_bytes - as_they_are,
    )


def file_bytes(model: nn.Module, setting: Setting, example: Any = None) -> int:
    """The length of the real file of ``model`` changed by ``setting``."""
    changed = apply_setting(copy.deepcopy(model), setting, example)
    return save(changed, io.BytesIO()).file_bytes
