"""What can be swept: a way to make a layer smaller, with one number that says how much.

A *setting* says what is done to a network: for each layer that is changed, the value on each axis.
``{"conv1.weight": {"density": 0.3, "bits": 5}}`` prunes one layer and shares what is left of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

from torch import nn

from espalier.errors import InvalidArgument
from espalier.registry import Registry
from espalier.targets import Target, find_targets

Value: TypeAlias = float | int
Setting: TypeAlias = Mapping[str, Mapping[str, Value]]
"""Layer (the full name of its weight) -> axis -> value."""


class Axis(ABC):
    """One number for each layer, and what it does to a model.

    An axis is a frozen dataclass in a file of its own under ``axes``, registered by name. Its
    fields are what does not vary along it.

    Attributes
    ----------
    order : int
        Axes are applied to a model from the lowest to the highest: weights are pruned before what
        is left of them is shared.
    grid : tuple
        Values to sweep where the user names none.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    grid: ClassVar[tuple[Value, ...]]

    @abstractmethod
    def check(self, value: object) -> Value:
        """``value`` in its own type.

        Raises
        ------
        InvalidArgument
            It is out of range.
        """

    @abstractmethod
    def apply(self, model: nn.Module, values: Mapping[str, Value]) -> None:
        """Change ``model``: each layer that ``values`` names, by its value."""

    @abstractmethod
    def stage(self, values: Mapping[str, Value]) -> dict[str, Any]:
        """The stage of a recipe that does the same: ``{"prune": {"density": ...}}``."""

    def parse(self, text: str) -> Value:
        """A value as it is written on the command line."""
        try:
            return self.check(float(text) if "." in text or "e" in text.lower() else int(text))
        except InvalidArgument:
            raise
        except ValueError:
            raise InvalidArgument(f"{self.name}: {text!r} is not a number") from None

    def takes(self, target: Target) -> bool:
        """Whether the layer has this axis."""
        return target.by_default and not target.obstacle and target.value.numel() > 0


AXES: Registry[Axis] = Registry("axis", "espalier.analysis.axes")

Grid: TypeAlias = Mapping[str, Sequence[Value]]
"""Axis -> the values to try on it."""


def axes_in_order(names: Sequence[str]) -> list[Axis]:
    """The axes of those names, in the order in which they are applied."""
    return sorted((AXES.make(name) for name in names), key=lambda axis: axis.order)


def check_grid(grid: Grid | None) -> dict[str, tuple[Value, ...]]:
    """``grid`` with every value checked, each once; every axis with its own grid if it is None."""
    if grid is None:
        return {axis.name: axis.grid for axis in axes_in_order(AXES.names())}
    checked = {}
    for axis in axes_in_order(list(grid)):
        values = list(dict.fromkeys(axis.check(value) for value in grid[axis.name]))
        if not values:
            raise InvalidArgument(f"{axis.name}: the grid is empty")
        checked[axis.name] = tuple(values)
    if not checked:
        raise InvalidArgument(f"no axis to sweep; known are {', '.join(AXES.names())}")
    return checked


def by_axis(setting: Setting) -> list[tuple[Axis, dict[str, Value]]]:
    """The axes of ``setting`` in the order in which they are applied, each with its values."""
    names = sorted({name for values in setting.values() for name in values})
    return [
        (axis, {layer: v[axis.name] for layer, v in setting.items() if axis.name in v})
        for axis in axes_in_order(names)
    ]


def apply_setting(model: nn.Module, setting: Setting) -> nn.Module:
    """Change ``model`` as ``setting`` says, axis by axis; returns it."""
    for axis, values in by_axis(setting):
        axis.apply(model, values)
    return model


def stages_of(setting: Setting) -> list[dict[str, Any]]:
    """The stages of a recipe that do to a network what ``setting`` says."""
    return [axis.stage(values) for axis, values in by_axis(setting)]


def sweepable(model: nn.Module, axes: Sequence[Axis]) -> list[Target]:
    """The layers of ``model`` that have at least one of ``axes``, in its own order."""
    return [t for t in find_targets(model) if any(axis.takes(t) for axis in axes)]


def describe(setting: Setting) -> str:
    """``conv1.weight at density 0.3``, for messages."""
    if not setting:
        return "the network as it is"
    return "; ".join(
        f"{layer} at " + ", ".join(f"{name} {value:g}" for name, value in values.items())
        for layer, values in setting.items()
    )
