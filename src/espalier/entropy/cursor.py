"""Reading small fields off bytes that may be hostile, and writing them."""

from __future__ import annotations

from espalier.errors import CorruptFile, InvalidArgument, TruncatedFile

MAX_VARINT = (1 << 63) - 1
_SHORT = [bytes([value]) for value in range(128)]


def varint(value: int) -> bytes:
    """A non-negative integer, seven bits a byte, low bits first, high bit set on all but the last.

    Examples
    --------
    >>> varint(5), varint(300)
    (b'\\x05', b'\\xac\\x02')
    """
    if 0 <= value < 128:
        return _SHORT[value]
    if not 0 <= value <= MAX_VARINT:
        raise InvalidArgument(f"{value} does not fit in a variable-length integer of 63 bits")
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


class Cursor:
    """A place in a buffer. Every read names its field, so that an error can say what is wrong.

    Parameters
    ----------
    data : bytes-like
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = memoryview(data)
        self.at = 0
        self._size = len(self.data)

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return self._size - self.at

    def take(self, n: int, field: str) -> memoryview:
        """The next ``n`` bytes, without a copy."""
        if n > self.left:
            raise TruncatedFile(f"{field}: {n} bytes are declared and {self.left} are left")
        self.at += n
        return self.data[self.at - n : self.at]

    def rest(self) -> memoryview:
        """All bytes that are left."""
        return self.take(self.left, "rest")

    def u8(self, field: str) -> int:
        """One byte."""
        if self.at < self._size:
            self.at += 1
            return self.data[self.at - 1]
        raise TruncatedFile(f"{field}: a byte is declared and none is left")

    def u32(self, field: str) -> int:
        """Four bytes, little-endian."""
        return int.from_bytes(self.take(4, field), "little")

    def varint(self, field: str, most: int = MAX_VARINT) -> int:
        """A variable-length integer of at most ``most``, in its shortest form."""
        if self.at < self._size and (byte := self.data[self.at]) < 128 and byte <= most:
            self.at += 1
            return byte
        return self._long(field, most)

    def _long(self, field: str, most: int) -> int:
        value = shift = 0
        while True:
            byte = self.u8(field)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
            if shift >= 63:
                raise CorruptFile(f"{field}: the integer has more than 63 bits")
        if byte == 0 and shift > 7:
            raise CorruptFile(f"{field}: the integer is not in its shortest form")
        if value > most:
            raise CorruptFile(f"{field}: {value} is over the limit of {most}")
        return value

    def end(self, field: str) -> None:
        """Raise :class:`CorruptFile` unless everything has been read."""
        if self.left:
            raise CorruptFile(f"{field}: {self.left} bytes follow where none should")
