"""What can be swept: a way to make a layer smaller, with one number that says how much.

A *setting* says what is done to a network: for each layer that is changed, the value on each axis.
``{"conv1.weight": {"density": 0.3, "bits": 5}}`` prunes one layer and shares what is left of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
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
    by_default : bool
        Whether it is swept where the user names no axis.
    replaces : bool
        Whether its layers become several, each with a weight of its own.
    adds_up : bool
        Whether what it does to one layer leaves the sizes of all others as they are.
    wants_example : bool
        Whether it has a field ``example``, which gets an input of the network where one is known.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    grid: ClassVar[tuple[Value, ...]]
    by_default: ClassVar[bool] = True
    replaces: ClassVar[bool] = False
    adds_up: ClassVar[bool] = True
    wants_example: ClassVar[bool] = False

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

    def targets(self, model: nn.Module) -> list[Target]:
        """The layers of ``model`` that have this axis, in its own order."""
        return [target for target in find_targets(model) if self.takes(target)]


AXES: Registry[Axis] = Registry("axis", "espalier.analysis.axes")

Grid: TypeAlias = Mapping[str, Sequence[Value]]
"""Axis -> the values to try on it."""


def make_axis(name: str, example: Any = None) -> Axis:
    """The axis of that name, which knows ``example`` if it wants one."""
    return AXES.make(name, **({"example": example} if AXES.get(name).wants_example else {}))


def axes_in_order(names: Sequence[str], example: Any = None) -> list[Axis]:
    """The axes of those names, in the order in which they are applied."""
    return sorted((make_axis(name, example) for name in names), key=lambda axis: axis.order)


def wants_example(names: Iterable[str]) -> bool:
    """Whether one of the axes of those names wants an input of the network."""
    return any(AXES.get(name).wants_example for name in names)


def check_grid(grid: Grid | None) -> dict[str, tuple[Value, ...]]:
    """``grid`` with every value checked, each once; the default axes' own grids if it is None."""
    if grid is None:
        return {axis.name: axis.grid for axis in axes_in_order(AXES.names()) if axis.by_default}
    checked = {}
    for axis in axes_in_order(list(grid)):
        values = list(dict.fromkeys(axis.check(value) for value in grid[axis.name]))
        if not values:
            raise InvalidArgument(f"{axis.name}: the grid is empty")
        checked[axis.name] = tuple(values)
    if not checked:
        raise InvalidArgument(f"no axis to sweep; known are {', '.join(AXES.names())}")
    return checked


def axes_of(settings: Iterable[Setting]) -> set[str]:
    """The names of the axes on which ``settings`` have values."""
    return {name for setting in settings for values in setting.values() for name in values}


def by_axis(setting: Setting, example: Any = None) -> list[tuple[Axis, dict[str, Value]]]:
    """The axes of ``setting`` in the order in which they are applied, each with its values.

    Where one axis has replaced a layer, those after it are given the pattern of its parts.
    """
    names = sorted(axes_of([setting]))
    found: list[tuple[Axis, dict[str, Value]]] = []
    called = {layer: layer for layer in setting}
    for axis in axes_in_order(names, example):
        values = {called[layer]: v[axis.name] for layer, v in setting.items() if axis.name in v}
        found.append((axis, values))
        if axis.replaces:
            parts = {n: f"{n.removesuffix('weight')}*weight" for n in values}
            called = {layer: parts.get(name, name) for layer, name in called.items()}
    return found


def apply_setting(model: nn.Module, setting: Setting, example: Any = None) -> nn.Module:
    """Change ``model`` as ``setting`` says, axis by axis; returns it."""
    for axis, values in by_axis(setting, example):
        axis.apply(model, values)
    return model


def stages_of(setting: Setting) -> list[dict[str, Any]]:
    """The stages of a recipe that do to a network what ``setting`` says."""
    return [axis.stage(values) for axis, values in by_axis(setting)]


def sweepable(model: nn.Module, axes: Sequence[Axis]) -> dict[str, list[str]]:
    """The layers of ``model`` that have at least one of ``axes``, each with the names of those."""
    names = {axis.name: {target.name for target in axis.targets(model)} for axis in axes}
    having = {
        target.name: [axis for axis in names if target.name in names[axis]]
        for target in find_targets(model)
    }
    return {layer: axes for layer, axes in having.items() if axes}


def describe(setting: Setting) -> str:
    """``conv1.weight at density 0.3``, for messages."""
    if not setting:
        return "the network as it is"
    return "; ".join(
        f"{layer} at " + ", ".join(f"{name} {value:g}" for name, value in values.items())
        for layer, values in setting.items()
    )
