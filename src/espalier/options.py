"""Options by layer: a global value, overridden by kind of layer, overridden by name pattern.

The look-up is the one of Core ML Tools. It knows neither torch nor files: a *target* is whatever
the caller wants to set an option for, given as the names it answers to and its kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Integral, Real
from typing import Generic, TypeVar

from espalier.errors import InvalidArgument

V = TypeVar("V")

KINDS = ("linear", "conv", "embedding", "other")
"""The kinds of layer that a key of an option can name; every other key is a name pattern."""

GLOBAL = "*"
"""The key of the value for every target that neither its kind nor its name overrides."""

Target = tuple[tuple[str, ...], str]
"""The names that one layer or tensor answers to, best one first, and its kind."""

_SHOWN = 12


def check_share(value: object, what: str) -> float:
    """``value`` as a share of the option ``what``: a number in (0, 1]."""
    share = math.nan
    if not isinstance(value, bool) and isinstance(value, Real):
        share = float(value)
    if 0.0 < share <= 1.0:
        return share
    raise InvalidArgument(f"{what} must be a number in (0, 1], not {value!r}")


def check_density(value: object) -> float:
    """``value`` as a density, the fraction of weights kept: a number in (0, 1]."""
    return check_share(value, "density")


def check_bits(value: object) -> int:
    """``value`` as the bits of a code: an integer from 1 to 16."""
    bits = 0
    if not isinstance(value, bool) and isinstance(value, Integral):
        bits = int(value)
    if 1 <= bits <= 16:
        return bits
    raise InvalidArgument(f"bits must be an integer from 1 to 16, not {value!r}")


def check_fixed_bits(value: object, what: str = "bits of fixed point") -> int:
    """``value`` as bits of fixed point: an integer from 2 to 16."""
    if not isinstance(value, bool) and isinstance(value, Integral) and 2 <= int(value) <= 16:
        return int(value)
    raise InvalidArgument(f"{what} must be an integer from 2 to 16, not {value!r}")


def check_lambda(value: object) -> float:
    """``value`` as a Lagrange multiplier: a finite number above 0."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise InvalidArgument(f"lambda must be a finite number above 0, not {value!r}")


def kept_count(density: float, n: int) -> int:
    """How many of ``n`` weights a density keeps: the nearest integer, halves up, at least 1.

    Examples
    --------
    >>> kept_count(0.5, 5), kept_count(0.001, 5)
    (3, 1)
    """
    return min(n, max(1, math.floor(density * n + 0.5)))


class Lookup(Generic[V]):
    """An option whose value depends on the layer.

    Parameters
    ----------
    value : V or mapping of str to (V or None)
        One value for all, or values by key. A key is ``"*"`` (all), one of :data:`KINDS`, or an
        ``fnmatch`` pattern on the names, case-sensitive. Patterns go before kinds, kinds before
        ``"*"``; of two patterns that match, the later one in the mapping counts. A value of None
        leaves what the key matches alone.
    what : str, default "density"
        Name of the option, for messages.
    check : callable, optional
        Takes a value and returns it in its own type, or raises :class:`InvalidArgument`:
        :func:`check_density`, :func:`check_bits`. Called at once, for every value.

    Examples
    --------
    >>> bits = Lookup({"conv": 8, "linear": 5, "fc3*": 6}, "bits", check_bits)
    >>> bits.resolve([(("conv1",), "conv"), (("fc1",), "linear"), (("fc3",), "linear")])
    [8, 5, 6]
    """

    def __init__(
        self,
        value: V | Mapping[str, V | None],
        what: str = "density",
        check: Callable[[object], V] | None = None,
    ) -> None:
        self.what = what
        entries: dict[str, V | None]
        if isinstance(value, Mapping):
            if not value:
                raise InvalidArgument(f"{what} is an empty mapping; give a value or leave it out")
            entries = dict(value)
        else:
            entries = {GLOBAL: value}
        self.entries: dict[str, V | None] = {}
        for key, entry in entries.items():
            if not isinstance(key, str) or not key:
                raise InvalidArgument(f"{what} has the key {key!r}; a key is a non-empty string")
            self.entries[key] = self._checked(key, entry, check)

    def _checked(self, key: str, entry: V | None, check: Callable[[object], V] | None) -> V | None:
        if entry is None or check is None:
            return entry
        try:
            return check(entry)
        except InvalidArgument as error:
            if key == GLOBAL:
                raise
            raise InvalidArgument(f"{key!r}: {error}") from None

    def resolve(self, targets: Sequence[Target]) -> list[V | None]:
        """The value of every target, in order; None where no key covers it.

        Raises
        ------
        InvalidArgument
            If a key matches no target. The message lists the names that there are.
        """
        values: list[V | None] = [self.entries.get(GLOBAL)] * len(targets)
        kinds = [key for key in self.entries if key in KINDS]
        patterns = [key for key in self.entries if key not in KINDS and key != GLOBAL]
        for key in kinds:
            self._set(key, [i for i, (_, kind) in enumerate(targets) if kind == key], values)
            if not any(kind == key for _, kind in targets):
                self._nothing_matches(key, targets)
        for key in patterns:
            hits = [
                i
                for i, (names, _) in enumerate(targets)
                if any(fnmatchcase(name, key) for name in names)
            ]
            self._set(key, hits, values)
            if not hits:
                self._nothing_matches(key, targets)
        return values

    def _set(self, key: str, hits: Iterable[int], values: list[V | None]) -> None:
        for i in hits:
            values[i] = self.entries[key]

    def _nothing_matches(self, key: str, targets: Sequence[Target]) -> None:
        names = [f"{names[0]} ({kind})" for names, kind in targets]
        shown = ", ".join(names[:_SHOWN]) or "none"
        if len(names) > _SHOWN:
            shown += f" and {len(names) - _SHOWN} more"
        kind = "kind" if key in KINDS else "pattern"
        raise InvalidArgument(f"{self.what}: the {kind} {key!r} matches nothing; there are {shown}")


def named(entries: Mapping[str, object]) -> Callable[[Iterable[str]], bool]:
    """A question: does a name pattern, and not a kind or ``"*"``, ask for what has these names?

    Examples
    --------
    >>> asked = named({"*": 1, "conv": 2, "fc*": 3, "fc2": None})
    >>> asked(["conv1"]), asked(["fc1", "fc1.weight"])
    (False, True)
    """
    patterns = [k for k, v in entries.items() if k not in KINDS and k != GLOBAL and v is not None]
    return lambda names: any(fnmatchcase(name, key) for name in names for key in patterns)


def parse(text: str, kind: Callable[[str], V], what: str = "option") -> V | dict[str, V | None]:
    """An option as it is written on the command line: ``8`` or ``conv=8,linear=5,fc3*=6``.

    Parameters
    ----------
    text : str
        One value, or comma-separated entries ``key=value``; an entry without a key is for all, and
        of two entries with one key the later one counts. ``none`` leaves what matches alone.
    kind : callable
        Makes a value from its text: ``int``, ``float``.
    what : str
        Name of the option, for messages.

    Examples
    --------
    >>> parse("8", int)
    8
    >>> parse("8,conv=none,fc3*=6", int)
    {'*': 8, 'conv': None, 'fc3*': 6}
    """
    entries: dict[str, V | None] = {}
    parts = text.split(",")
    for part in parts:
        key, equals, written = (piece.strip() for piece in part.rpartition("="))
        if not written or (equals and not key):
            raise InvalidArgument(f"{what}: {part.strip()!r} in {text!r} is not KEY=VALUE or VALUE")
        value = _value(written, kind, what)
        if len(parts) == 1 and not equals and value is not None:
            return value
        key = key or GLOBAL
        entries.pop(key, None)  # an entry that comes again counts where it stands last
        entries[key] = value
    return entries


def _value(written: str, kind: Callable[[str], V], what: str) -> V | None:
    if written.lower() == "none":
        return None
    try:
        value = kind(written)
    except ValueError:
        wanted = "a number" if kind is float else "a whole number" if kind is int else "understood"
        raise InvalidArgument(f"{what}: {written!r} is not {wanted}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidArgument(f"{what}: {written!r} is not a finite number")
    return value
