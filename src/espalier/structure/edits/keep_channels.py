"""Filters removed, and with them the channels of every layer that sees their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from torch import nn

from espalier.errors import InvalidArgument
from espalier.structure.channels import cut, from_ranges, to_ranges, widths
from espalier.structure.edit import EDITS, StructuralEdit, named_module
from espalier.targets import unwrap

_UNGROUPED = (nn.Linear, nn.modules.batchnorm._NormBase)


@EDITS.register("keep_channels")
@dataclass(frozen=True)
class KeepChannels(StructuralEdit):
    """Each layer keeps some of its inputs and outputs, and loses the rest (Li et al. 2017).

    Parameters
    ----------
    layers : mapping of str to mapping
        For each layer ``{"of": [inputs, outputs], "in": ranges, "out": ranges}``; ``of`` is what it
        had, and a side that keeps everything is left out. Ranges are written ``"0-2,5"``.
    """

    layers: Mapping[str, Mapping[str, object]]

    def __post_init__(self) -> None:
        for name in self.layers:
            of = self.layers[name]["of"]
            if not (isinstance(of, list) and all(isinstance(n, int) and n > 0 for n in of)):
                raise InvalidArgument(f"{name}: {of!r} are no two widths")
            self._sides(name)

    def check(self, model: nn.Module) -> None:
        for name, kept in self.layers.items():
            found = list(widths(named_module(model, name)))
            if found != kept["of"]:
                raise InvalidArgument(
                    f"{name}: has {found[0]} inputs and {found[1]} outputs, the edit is of a layer "
                    f"with {kept['of']}"
                )

    def apply(self, model: nn.Module) -> None:
        for name in self.layers:
            cut(named_module(model, name), *self._sides(name))

    def for_file(self, model: nn.Module) -> Self:
        """As many channels, the first: a hundred scattered ones would be a long list.

        But for layers with groups, each of which keeps its own, and for those that a later edit
        replaced, of which that is not known.
        """
        modules = dict(unwrap(model).named_modules())
        layers: dict[str, dict[str, object]] = {}
        for name, kept in self.layers.items():
            layers[name] = dict(kept)
            module = modules.get(name)
            if isinstance(module, _UNGROUPED) or getattr(module, "groups", 0) == 1:
                for side, channels in zip(("in", "out"), self._sides(name), strict=True):
                    if channels is not None:
                        layers[name][side] = to_ranges(list(range(len(channels))))
        return replace(self, layers=layers)

    def makes_shapes_of(self, other: StructuralEdit) -> bool:
        return isinstance(other, KeepChannels) and self.describe() == other.describe()

    def describe(self) -> list[str]:
        lines = []
        for name, kept in self.layers.items():
            counts = zip(("inputs", "outputs"), self._sides(name), kept["of"], strict=True)  # type: ignore[call-overload]
            parts = [f"{len(k)} of {n} {side}" for side, k, n in counts if k is not None]
            lines.append(f"{name}: keeps {', '.join(parts)}")
        return lines

    def _sides(self, name: str) -> tuple[list[int] | None, list[int] | None]:
        kept = self.layers[name]
        inputs, outputs = kept["of"]  # type: ignore[misc]
        return (
            from_ranges(str(kept["in"]), inputs) if "in" in kept else None,  # type: ignore[has-type]
            from_ranges(str(kept["out"]), outputs) if "out" in kept else None,  # type: ignore[has-type]
        )
