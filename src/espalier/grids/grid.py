"""What a method promises that puts weights on a grid: numbers at a scale."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from espalier.errors import InvalidArgument
from espalier.fixed_point import Block
from espalier.registry import Registry

Groups = Any
"""An array of NumPy's or a tensor: one row for each block of the weight, (blocks, elements)."""

GRANULARITIES = ("tensor", "channel", "group")


class Grid(ABC):
    """Weights as (number - zero) * scale, whole numbers and a scale for each block of the weight.

    A method is a frozen dataclass in a file of its own under ``methods``, registered by name. Its
    formulas take arrays of NumPy's and tensors alike. Shapes: ``values`` and ``kept`` (True where
    the weight is not pruned) are (blocks, elements); scales and zeros (blocks, 1), where ``parts``
    is 2 scales are (blocks, 2).

    Attributes
    ----------
    keeps_ends : bool
        Whether the first and the last layer of a network are left alone unless asked for.
    live : bool
        Whether the scale follows from the weights (:meth:`rescale`) as they train.
    parts : int
        Scales of a block: 2 where numbers below zero have one of their own.
    one_block : bool
        Whether it knows weights of one block only, the whole tensor.
    """

    name: ClassVar[str]
    keeps_ends: ClassVar[bool] = False
    live: ClassVar[bool] = False
    parts: ClassVar[int] = 1
    one_block: ClassVar[bool] = False

    @property
    def trains_scale(self) -> bool:
        """Whether the scale is a parameter, which learns."""
        return False

    @property
    @abstractmethod
    def numbers(self) -> tuple[int, int, int]:
        """The least number, the distance from one to the next, and how many there are."""

    @abstractmethod
    def fit(self, values: Groups, kept: Groups) -> tuple[Groups, Groups]:
        """Scales and zero points (whole, as floats) of weights; arrays of NumPy's, float64."""

    @abstractmethod
    def round(self, values: Groups, kept: Groups, scales: Groups, zeros: Groups) -> Groups:
        """The number of each weight, as floats."""

    def rescale(self, values: Groups, kept: Groups) -> Groups:
        """Where ``live``: the scales of weights as they are."""
        raise NotImplementedError

    def values(self, numbers: Groups, scales: Groups, zeros: Groups) -> Groups:
        """The weights of these numbers."""
        return (numbers - zeros) * scales

    def slope(self, values: Groups, numbers: Groups, scales: Groups) -> Groups | float:
        """What the straight-through estimator takes for the derivative of the quantized weight."""
        return 1.0

    def bounds(self, scales: Groups, zeros: Groups) -> tuple[Groups, Groups] | None:
        """A weight beyond them learns nothing that leads it farther off; None: there are none."""
        return None

    def rest(self, values: Groups, scales: Groups, zeros: Groups) -> Groups | float:
        """What the derivative in a trained scale has beside the number itself."""
        return 0.0

    def bits_of(self) -> int:
        """Bits of a code at fixed width."""
        return (self.numbers[2] - 1).bit_length()

    def to_json(self) -> str:
        """The method and its options as text."""
        return json.dumps({"method": self.name} | dataclasses.asdict(self))  # type: ignore[call-overload]


GRIDS: Registry[Grid] = Registry("method", "espalier.grids.methods")
"""Methods that put weights on a grid, one file each."""


def blocks_of(
    shape: tuple[int, ...], granularity: str, group_size: int | None = None, axis: int = 0
) -> Block:
    """The block of a weight that has a scale of its own.

    Parameters
    ----------
    shape : tuple of int
    granularity : {"tensor", "channel", "group"}
        One scale for all; for each output channel; for each ``group_size`` inputs of a channel.
    group_size : int, optional
        With ``"group"``: of the dimension after the channels'; it has to divide it.
    axis : int
        The dimension of the output channels.

    Examples
    --------
    >>> blocks_of((20, 50, 5, 5), "channel"), blocks_of((10, 64), "group", 32)
    ((1, 50, 5, 5), (1, 32))
    """
    if granularity not in GRANULARITIES:
        raise InvalidArgument(
            f"granularity must be {', '.join(GRANULARITIES)}, not {granularity!r}"
        )
    if (granularity == "group") != (group_size is not None):
        raise InvalidArgument("group_size belongs to granularity 'group', and that needs one")
    # A vector has no channels: a scale for each of its elements would be the element itself.
    if granularity == "tensor" or (len(shape) < 2 and granularity == "channel") or not shape:
        return tuple(max(d, 1) for d in shape)
    block = [max(d, 1) for d in shape]
    block[axis] = 1
    if group_size is not None:
        inputs = 1 - axis if len(shape) > 1 else axis
        if group_size < 1 or shape[inputs] % group_size:
            raise InvalidArgument(
                f"{shape[inputs]} inputs cannot be divided into groups of {group_size}"
            )
        block[inputs] = group_size
    return tuple(block)


def check_method(value: object) -> str:
    """``value`` as the name of a method that finds scales by itself."""
    if not isinstance(value, str):
        raise InvalidArgument(f"a method is a name, not {value!r}")
    if value == "numbers":
        raise InvalidArgument("'numbers' is what a file holds; a method is needed to find them")
    return GRIDS.get(value).name


def check_precision(grid: Grid, dtype: str) -> None:
    """Refuse more bits than ``dtype`` tells apart: rounding to it would lose them."""
    most = {"bfloat16": 8, "float16": 11}.get(dtype, 16)
    if grid.bits_of() > most:
        raise InvalidArgument(f"{dtype} tells {most} bits apart, and bits are {grid.bits_of()}")


def grid_from_json(text: str) -> Grid:
    """The inverse of :meth:`Grid.to_json`."""
    fields = json.loads(text)
    return GRIDS.make(fields.pop("method"), **fields)


def largest(values: Groups) -> Groups:
    """The largest of each row: (blocks, 1)."""
    top = values.amax(-1) if hasattr(values, "amax") else values.max(-1)
    return top[..., None]


def mean(values: Groups, of: Groups) -> Groups:
    """The mean of each row over the elements that ``of`` says: (blocks, 1); 0 over none."""
    return ((values * of).sum(-1) / of.sum(-1).clip(min=1))[..., None]


def signs(values: Groups) -> Groups:
    """1 where 0 or more, else -1."""
    return 2.0 * (values >= 0) - 1.0
