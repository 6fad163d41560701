"""What became of each layer of a network that runs from its compressed weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from espalier.targets import Skipped
from espalier.timing import Spread


@dataclass(frozen=True)
class Choice:
    """What was measured at one batch size, and the form that was chosen.

    Attributes
    ----------
    batch : int
    form : str
        ``"packed"`` (from the codes), ``"skipping"`` (the same by inputs, those that are zero
        skipped), ``"expanded"`` (``torch.sparse_csr``) or ``"dense"``.
    dense_ms : Spread
        Milliseconds of the layer as it was: median and quartiles.
    ms : dict of str to Spread
        The same for each form that was tried.
    ratio : float
        Dense by chosen, measured in turn: 2 means twice as fast. The median of the rounds, or the
        ratio of the lower quartiles, if that is less.
    """

    batch: int
    form: str
    dense_ms: Spread
    ms: dict[str, Spread]
    ratio: float


@dataclass(frozen=True)
class PackedRow:
    """One layer.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Of its weight.
    density : float
        Share of nonzeros.
    levels : int or None
        Distinct values, where there is a codebook of them.
    dense_bytes, weight_bytes : int
        Of the weight in memory: as it was, and in the form or forms that are held now.
    choices : tuple of Choice
    """

    name: str
    shape: tuple[int, ...]
    density: float
    levels: int | None
    dense_bytes: int
    weight_bytes: int
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class PrepackedRow:
    """A dense convolution whose weight lies in the order in which oneDNN reads it.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Of its weight.
    after : str
        The activation that is computed along with it, by oneDNN's name; empty if none is.
    weight_bytes : int
        Of the weight in memory, in the form or forms that are held now.
    """

    name: str
    shape: tuple[int, ...]
    after: str
    weight_bytes: int


@dataclass(frozen=True)
class BatchForm:
    """The form of all these at one batch size, and how many times as fast the network was by it.

    ``form`` is ``"prepacked"``, or ``"dense"``: as they were.
    """

    batch: int
    form: str
    gain: float


@dataclass(frozen=True)
class ModelTime:
    """The whole network at one batch size: as it was, as it is now, and the ratio of the two.

    ``ratio`` is taken round by round; ``gain`` is its median, or the ratio of the lower quartiles,
    if that is less, and decides.
    """

    batch: int
    dense_ms: Spread
    result_ms: Spread
    ratio: Spread
    gain: float


@dataclass(frozen=True)
class RuntimeReport:
    """The result of :func:`espalier.accelerate`.

    Attributes
    ----------
    layers : tuple of PackedRow
        Those that compute from another form than the dense one at some batch size.
    skipped : tuple of Skipped
        The others, each with the reason.
    prepacked : tuple of PrepackedRow
        Dense convolutions that were laid out once.
    forms : tuple of BatchForm
        How these compute, at each batch size; empty if there are none.
    model : tuple of ModelTime
        Empty where nothing was changed.
    dense_bytes, weight_bytes : int
        Of all parameters and buffers of the network in memory, before and now.
    threads : int
    """

    layers: tuple[PackedRow, ...]
    skipped: tuple[Skipped, ...]
    prepacked: tuple[PrepackedRow, ...]
    forms: tuple[BatchForm, ...]
    model: tuple[ModelTime, ...]
    dense_bytes: int
    weight_bytes: int
    threads: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)
