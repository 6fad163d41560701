"""Structural edits: plain data that says what was changed, and can do it again."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Self

from torch import nn

from espalier.errors import EspalierError, FormatError, InvalidArgument
from espalier.registry import Registry
from espalier.targets import unwrap

_RECORD = "espalier_edits"


class StructuralEdit(ABC):
    """One change of architecture. A frozen dataclass of JSON values, registered by name."""

    name: ClassVar[str]

    @abstractmethod
    def check(self, model: nn.Module) -> None:
        """InvalidArgument, naming the layer, unless :meth:`apply` can be done to ``model``."""

    @abstractmethod
    def apply(self, model: nn.Module) -> None:
        """Make the change on ``model``, in place; its weights are carried over."""

    @abstractmethod
    def describe(self) -> list[str]:
        """What is changed, a line for each layer."""

    @property
    def new_layers(self) -> list[str]:
        """Layers whose weights do not follow from those before; they want training."""
        return []

    def for_file(self, model: nn.Module) -> Self:
        """What a file has to tell of it that has every weight of ``model``: the shapes."""
        return self

    def makes_shapes_of(self, other: StructuralEdit) -> bool:
        """Whether it leaves layers of the same shapes as ``other``."""
        return self == other

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"edit": self.name} | dataclasses.asdict(self)  # type: ignore[call-overload]


EDITS: Registry[StructuralEdit] = Registry("edit", "espalier.structure.edits")
"""Structural edits, one file each."""


def edits_of(model: nn.Module) -> tuple[StructuralEdit, ...]:
    """The edits that were made to ``model``, in order.

    Examples
    --------
    >>> import torch
    >>> edits_of(torch.nn.Linear(2, 2))
    ()
    """
    return tuple(getattr(unwrap(model), _RECORD, ()))


def perform(model: nn.Module, edits: Iterable[StructuralEdit]) -> None:
    """Make ``edits`` on ``model`` one after the other, and record them on it."""
    model = unwrap(model)
    for edit in edits:
        edit.check(model)
        edit.apply(model)
        # An ordinary attribute: it goes along with deepcopy, and a state_dict does not know it.
        setattr(model, _RECORD, (*edits_of(model), edit))


def edit_from_json(plain: Any) -> StructuralEdit:
    """The inverse of :meth:`StructuralEdit.to_json`; FormatError where it is none."""
    try:
        fields = dict(plain)
        return EDITS.make(fields.pop("edit"), **fields)
    except (EspalierError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"a structural edit of the file cannot be read: {error}") from None


def check_steps(layers: object, functions: object) -> None:
    """InvalidArgument unless ``layers`` is a list of names and ``functions`` a count of calls."""
    if not isinstance(layers, list) or not all(isinstance(name, str) for name in layers):
        raise InvalidArgument(f"{layers!r} is no list of layers")
    if not isinstance(functions, int) or functions < 0:
        raise InvalidArgument(f"functions {functions!r} is no count")


def named_module(model: nn.Module, name: str) -> nn.Module:
    """The module called ``name``; InvalidArgument if there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise InvalidArgument(
            f"{name}: the model has no such layer; the edits are of another architecture"
        ) from None
