"""A convolution and the steps behind it, as one convolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from espalier.errors import InvalidArgument
from espalier.structure.edit import EDITS, StructuralEdit
from espalier.structure.operations import RELU
from espalier.structure.rebuild import check_window, convolution, rebuilt
from espalier.structure.traced import Traced, set_module


@EDITS.register("streamline")
@dataclass(frozen=True)
class Streamline(StructuralEdit):
    """A convolution takes over the stride of what follows it, and the rest goes (Li et al. 2018).

    Parameters
    ----------
    layers : mapping of str to mapping
        For each convolution ``{"run": [step, ...], "kernel": [...], "stride": [...], "padding":
        [...], "relu": bool}``: the steps behind it, which go, and the convolution that stands for
        all. ``relu``: the last ReLU of the run stays.
    """

    layers: Mapping[str, Mapping[str, Any]]

    def __post_init__(self) -> None:
        for name, merged in self.layers.items():
            check_window(name, merged)
            run = merged.get("run")
            if not (isinstance(run, list) and run and all(isinstance(s, str) for s in run)):
                raise InvalidArgument(f"{name}: run {run!r} is no list of steps")
            if not isinstance(merged.get("relu"), bool):
                raise InvalidArgument(f"{name}: relu must be true or false")

    @property
    def new_layers(self) -> list[str]:
        return list(self.layers)

    def check(self, model: nn.Module) -> None:
        traced = Traced(model)
        for name in self.layers:
            self._run(traced, name)

    def apply(self, model: nn.Module) -> None:
        traced = Traced(model)
        for name, merged in self.layers.items():
            run = self._run(traced, name)
            old = convolution(traced, name)
            kept = [n for n in run if traced.step(n).kind == RELU][-1:] if merged["relu"] else []
            traced.remove(n for n in run if n not in kept)
            set_module(model, name, rebuilt(old, merged))
        traced.commit()

    def describe(self) -> list[str]:
        return [
            f"{name}: {', '.join(merged['run'])} {'is' if len(merged['run']) == 1 else 'are'} "
            f"merged into it, a convolution {_sizes(merged['kernel'])} with stride "
            f"{_sizes(merged['stride'])}"
            for name, merged in self.layers.items()
        ]

    def _run(self, traced: Traced, name: str) -> list[fx.Node]:
        """The nodes of the run behind ``name``; InvalidArgument if another one stands there."""
        module = convolution(traced, name)
        merged = self.layers[name]
        axes = len(module.kernel_size)
        if len(merged["kernel"]) != axes:
            raise InvalidArgument(f"{name}: has {axes} axes, the edit {len(merged['kernel'])}")
        wanted = merged["run"]
        run = traced.run_after(traced.only_call(name))[: len(wanted)]
        found = [str(traced.step(node)) for node in run]
        if found != wanted:
            raise InvalidArgument(
                f"{name}: is followed by {', '.join(found) or 'no such step'}, in the edit by "
                f"{', '.join(wanted)}; the edits are of another architecture"
            )
        return run


def _sizes(values: list[int]) -> str:
    return " x ".join(map(str, values))
