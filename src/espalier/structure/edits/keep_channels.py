"""Filters removed, and with them the channels of every layer that sees their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from espalier.errors import InvalidArgument
from espalier.structure.channels import cut, from_ranges, widths
from espalier.structure.edit import EDITS, StructuralEdit, named_module


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
