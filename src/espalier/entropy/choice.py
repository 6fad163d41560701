"""Which coders are tried for a stream: one by name, or ``"auto"`` and an effort."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from espalier.entropy.coder import CODERS, EntropyCoder
from espalier.errors import InvalidArgument

AUTO = "auto"
"""Instead of a coder's name: the smallest by measured size, for each stream."""

EFFORTS: dict[str, tuple[str, ...]] = {
    "fast": ("huffman",),
    "default": ("huffman", "rans"),
    "max": ("huffman", "rans", "context"),
}
"""What ``"auto"`` tries beside fixed width, by effort."""

Coders = EntropyCoder[Any] | Sequence[EntropyCoder[Any]]
"""A coder, or several of which the smallest stream is taken."""


def coders_for(coder: str | EntropyCoder[Any] = AUTO, effort: str = "default") -> Coders:
    """The coders that a name and an effort stand for.

    Parameters
    ----------
    coder : str or EntropyCoder, default "auto"
        A name is that coder alone, whatever the effort.
    effort : str, default "default"
        A key of :data:`EFFORTS`.

    Raises
    ------
    UnknownMethod
        No coder has that name.
    InvalidArgument
        No effort has that name.

    Examples
    --------
    >>> [coder.name for coder in coders_for("auto", "default")]
    ['huffman', 'rans']
    >>> coders_for("fixed").name
    'fixed'
    """
    if effort not in EFFORTS:
        raise InvalidArgument(f"no effort is called {effort!r}; known are {', '.join(EFFORTS)}")
    if coder == AUTO:
        return tuple(CODERS.make(name) for name in EFFORTS[effort])
    return CODERS.make(coder)


def as_coders(coders: Coders, *others: EntropyCoder[Any]) -> list[EntropyCoder[Any]]:
    """``coders`` as a list, each once, and after them those of ``others`` that are not there."""
    found = [coders] if isinstance(coders, EntropyCoder) else list(coders)
    known = {coder.id for coder in found}
    return found + [coder for coder in others if coder.id not in known]
