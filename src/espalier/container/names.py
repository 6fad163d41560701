"""The names of tensors and files in a directory, each in terms of those before it."""

from __future__ import annotations

from espalier.entropy.cursor import Cursor, varint
from espalier.errors import CorruptFile, InvalidArgument

MAX_NAME_BYTES = 1024


class Names:
    """Names one after the other, each in terms of those before it; the same to write and to read.

    A name is what it shares with the start of the one before it, and the rest. Rests come back all
    the time (``weight``, ``bn1.running_mean``), so each distinct one is written once:

        varint  shared   bytes in common with the start of the name before
        varint  which    0: a new rest follows; i: the i-th distinct rest in the order of coming up
        varint  length   if new
        bytes            if new, UTF-8 once joined
    """

    def __init__(self) -> None:
        self._previous = b""
        self._rests: dict[bytes, int] = {}
        self._by_index: list[bytes] = []

    def encode(self, name: str, what: str = "tensor") -> bytes:
        """The next name; ``what`` it names is for messages."""
        utf8 = check_name(name, what)
        # As numbers: where they first differ is the highest bit of what they do not share.
        most = min(len(utf8), len(self._previous))
        number = int.from_bytes(utf8[:most], "big")
        before = int.from_bytes(self._previous[:most], "big")
        shared = most - ((number ^ before).bit_length() + 7) // 8
        rest = utf8[shared:]
        self._previous = utf8
        if rest in self._rests:
            return varint(shared) + varint(self._rests[rest])
        self._add(rest)
        return varint(shared) + varint(0) + varint(len(rest)) + rest

    def decode(self, cursor: Cursor, what: str = "tensor") -> str:
        """Read the next name."""
        shared = cursor.varint("name: shared prefix", len(self._previous))
        which = cursor.varint("name: rest", len(self._by_index))
        if which:
            rest = self._by_index[which - 1]
        else:
            length = cursor.varint("name: length", MAX_NAME_BYTES)
            rest = bytes(cursor.take(length, "name"))
            self._add(rest)
        utf8 = self._previous[:shared] + rest
        if len(utf8) > MAX_NAME_BYTES:
            raise CorruptFile(
                f"the {what} name {utf8[:40]!r}... is {len(utf8)} bytes long, "
                f"over the limit of {MAX_NAME_BYTES}"
            )
        self._previous = utf8
        try:
            return utf8.decode("utf-8")
        except UnicodeDecodeError:
            raise CorruptFile(f"the {what} name {utf8[:40]!r} is not UTF-8") from None

    @classmethod
    def after(cls, previous: bytes, rests: list[bytes]) -> Names:
        """The names that follow ``previous``, of those that brought up ``rests`` in this order."""
        names = cls()
        names._previous = previous
        for rest in rests:
            names._add(rest)
        return names

    def _add(self, rest: bytes) -> None:
        self._by_index.append(rest)
        self._rests.setdefault(rest, len(self._by_index))


def check_name(name: str, what: str = "tensor") -> bytes:
    """The UTF-8 of a name; :class:`InvalidArgument` if it has none or is too long."""
    try:
        utf8 = name.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidArgument(f"the {what} name {name!r} is not Unicode text") from None
    if len(utf8) > MAX_NAME_BYTES:
        raise InvalidArgument(
            f"the {what} name {name[:40]!r}... is {len(utf8)} bytes long, "
            f"over the limit of {MAX_NAME_BYTES}"
        )
    return utf8
