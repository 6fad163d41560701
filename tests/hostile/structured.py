"""Files changed where it hurts, with every checksum made right again.

A byte flipped at random stops at a checksum, and the decoders behind it are never reached. Here a
file is taken apart into its entries and streams, one of them is changed, and the file is put
together anew. The fuzzer and the property tests share this.
"""

import io
import random
import time
import zlib
from dataclasses import dataclass, replace

import numpy as np

from espalier.container import Reader, Writer, directory, layout, small, write
from espalier.entropy.cursor import varint
from espalier.errors import FormatError
from espalier.fixed_point import FixedPoint, SparseFixedPoint
from espalier.state import Codebook, CompressedModel, Dense, Sparse, SparseCodebook

DENSE_BYTES = 1 << 22
"""Tensors up to this size are made dense, too."""

MAX_STREAM = 4096


@dataclass(frozen=True)
class Part:
    """An entry and its chunk; nothing in it need be true."""

    name: bytes
    kind: int
    dtype: int
    shape: tuple[int, ...]
    kept: int
    levels: int
    streams: tuple[tuple[int, bytes], ...]
    original: int = -1
    numbers: tuple[int, ...] = ()
    """Of kinds 9 and 10: the first number as written, the stride, and the block."""

    def entry(self):
        if self.original >= 0:  # a copy of another entry
            name = varint(0) + varint(0) + varint(len(self.name)) + self.name
            return name + bytes([self.kind]) + varint(self.original), b""
        chunk = b"".join(body for _, body in self.streams)
        kind = layout.KIND_NAMES.get(self.kind, "")
        fields = [
            varint(0) + varint(0) + varint(len(self.name)) + self.name,
            bytes([self.kind & 15 | len(self.shape) << 4, self.dtype]),
            *map(varint, self.shape),
            varint(self.kept) if kind in layout.SPARSE else b"",
            varint(self.levels) if kind in layout.SHARED else b"",
            *(map(varint, self.numbers) if kind in layout.ON_GRID else ()),
            *(bytes([method]) + varint(len(body)) for method, body in self.streams),
            zlib.crc32(chunk).to_bytes(4, "little") if kind != layout.PACKED else b"",
        ]
        return b"".join(fields), chunk


def assemble(parts, sections=b""):
    """A file of these entries, whose checksums are right."""
    entries, chunks = zip(*(part.entry() for part in parts), strict=True) if parts else ((), ())
    needs = any(part.kind in (9, 10) for part in parts)
    features = b"\x01\x0bfixed-point" if needs else b"\x00"
    directory = features + varint(len(parts)) + b"".join(entries) + sections
    return layout.header() + b"".join(chunks) + directory + layout.footer(directory)


def take_apart(data):
    """The parts of a file; none where its directory cannot be read."""
    try:
        entries = Reader(io.BytesIO(data))._directory.entries
    except FormatError:
        return []
    parts = []
    for entry in entries:
        at, streams = entry.offset, []
        for stream in entry.streams:
            streams.append((stream.method, data[at : at + stream.length]))
            at += stream.length
        parts.append(
            Part(
                entry.name.encode(),
                layout.KINDS[entry.kind],
                layout.DTYPE_IDS[entry.dtype],
                entry.shape,
                entry.stored,
                entry.levels,
                tuple(streams),
                entry.original,
                _written(entry.numbers),
            )
        )
    return parts


def _written(numbers):
    if numbers is None:
        return ()
    first, stride, block = numbers
    return (2 * first if first >= 0 else -2 * first - 1, stride, *block)


# ---------------------------------------------------------------- changes


def _number(rng, old):
    """Another number for a count or a dimension: near, round, or absurd."""
    power = 1 << rng.randrange(48)
    near = old + rng.choice([-1, 1, 8, -8])
    return max(0, rng.choice([near, near, power, power - 1, old * 2, old // 2, 0, 1, 256, 65536]))


def _method(rng):
    return rng.randrange(7) << 4 | rng.randrange(5) if rng.random() < 0.9 else rng.randrange(256)


def _change_stream(part, rng, change):
    i = rng.randrange(len(part.streams))
    method, body = part.streams[i]
    streams = list(part.streams)
    streams[i] = method, change(body, MAX_STREAM)
    return replace(part, streams=tuple(streams))


def _change_method(part, rng, change):
    i = rng.randrange(len(part.streams))
    streams = list(part.streams)
    streams[i] = _method(rng), streams[i][1]
    return replace(part, streams=tuple(streams))


def _change_count(part, rng, change):
    if rng.random() < 0.5:
        return replace(part, kept=_number(rng, part.kept))
    return replace(part, levels=_number(rng, part.levels))


def _change_shape(part, rng, change):
    shape = list(part.shape)
    what = rng.randrange(4)
    if what == 0 and shape:
        i = rng.randrange(len(shape))
        shape[i] = _number(rng, shape[i])
    elif what == 1 and len(shape) < 15:
        shape.insert(rng.randrange(len(shape) + 1), rng.choice([1, 1, 2, 3, 0]))
    elif what == 2 and len(shape) > 1:
        i = rng.randrange(len(shape) - 1)  # the same elements, one dimension less
        shape[i : i + 2] = [min(shape[i] * shape[i + 1], (1 << 63) - 1)]
    elif shape:
        rng.shuffle(shape)
    return replace(part, shape=tuple(shape))


def _change_original(part, rng, change):
    return replace(part, kind=5, original=rng.randrange(4), streams=())


def _change_type(part, rng, change):
    if rng.random() < 0.7:
        return replace(part, dtype=rng.randrange(1, 18) if rng.random() < 0.95 else 0)
    kind = rng.randrange(1, 11) if rng.random() < 0.95 else rng.randrange(16)
    streams = list(part.streams) or [(0, b"")]
    need = len(layout.STREAMS.get(layout.KIND_NAMES.get(kind, "dense"), ()))
    while len(streams) < need:
        streams.insert(rng.randrange(len(streams) + 1), rng.choice(streams))
    numbers = part.numbers or (5, 1, *(rng.choice([1, d]) for d in part.shape))
    return replace(part, kind=kind, streams=tuple(streams[:need]), numbers=numbers)


def _change_numbers(part, rng, change):
    numbers = list(part.numbers)
    if numbers:
        i = rng.randrange(len(numbers))
        numbers[i] = _number(rng, numbers[i])
    return replace(part, numbers=tuple(numbers))


CHANGES = [_change_stream] * 6
CHANGES += [_change_method, _change_count, _change_shape, _change_type, _change_numbers]


def _splice(part, other, rng):
    """A stream of one tensor in the place of another's, with its counts or without."""
    streams = list(part.streams)
    streams[rng.randrange(len(streams))] = rng.choice(other.streams)
    part = replace(part, streams=tuple(streams))
    if rng.random() < 0.5:
        part = replace(part, kept=other.kept, levels=other.levels, shape=other.shape)
    return part


def mutate(data, rng: random.Random, change, other=b""):
    """A file like ``data``, changed in one or a few places; ``change(body, most)`` alters bytes.

    ``other`` is a further file, streams of which may be put in.
    """
    parts = take_apart(data)
    if not parts or rng.random() < 0.02:
        return change(data, len(data) + 64)
    if rng.random() < 0.15:
        length = int.from_bytes(data[-12:-8], "little")
        directory = change(data[-12 - length : -12], length + 64)
        return data[: -12 - length] + directory + layout.footer(directory)
    others = take_apart(other)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        i = rng.randrange(len(parts))
        if parts[i].original >= 0:
            parts[i] = replace(parts[i], original=_number(rng, parts[i].original))
        elif not parts[i].streams:
            change_packed = _change_shape if rng.random() < 0.9 else _change_type
            parts[i] = change_packed(parts[i], rng, change)
        elif rng.random() < 0.02:
            parts[i] = _change_original(parts[i], rng, change)
        elif rng.random() < 0.1:
            full = [part for part in others or parts if part.streams]
            parts[i] = _splice(parts[i], rng.choice(full or [parts[i]]), rng)
        elif rng.random() < 0.03 and len(parts) > 1:
            del parts[i]
        else:
            parts[i] = rng.choice(CHANGES)(parts[i], rng, change)
    sections = b"\x01\x06\x01\x00\x00\x01?\x00" if rng.random() < 0.02 else b""
    return assemble(parts, sections)


def change_bytes(rng: random.Random):
    """A ``change`` for :func:`mutate` without a fuzzer."""

    def change(body, most):
        out = bytearray(body)
        for _ in range(rng.choice([1, 1, 2, 5])):
            at = rng.randrange(len(out) + 1)
            what = rng.randrange(4)
            if what == 0:
                out[at:at] = rng.randbytes(rng.choice([1, 2, 4]))
            elif what == 1:
                del out[at : at + rng.choice([1, 1, 2, 4, 4, 64])]
            elif at < len(out):
                out[at] = out[at] ^ 1 << rng.randrange(8) if what == 2 else rng.randrange(256)
        return bytes(out[:most])

    return change


# ---------------------------------------------------------------- what a reader does


def exercise(data, dense_bytes=DENSE_BYTES):
    """Everything that a reader can do with a file: whether it is one. Only FormatError is caught.

    A tensor that cannot be decoded does not keep the others from it.
    """
    try:
        reader = Reader(io.BytesIO(data))
    except FormatError:
        both_ways(data)
        return False
    both_ways(data, dense_bytes)
    sound = True
    for name in reader.files:
        try:
            if sum(map(len, reader.file(name))) != reader.files[name]:
                raise AssertionError(f"file {name!r} has another length")
        except FormatError:
            sound = False
    for name in reader.names():
        try:
            reader.row(name)
            tensor = reader.tensor(name)
        except FormatError:
            sound = False
            continue
        entry = reader.entry(name)
        if tensor.shape != entry.shape or tensor.dtype != entry.dtype:
            raise AssertionError(f"{name!r}: {tensor.shape} {tensor.dtype}, not {entry}")
        if tensor.nbytes <= dense_bytes and tensor.dense().shape != entry.shape:
            raise AssertionError(f"{name!r}: the dense tensor has another shape")
    return sound


def both_ways(data, dense_bytes=DENSE_BYTES):
    """An error unless kernels read a directory and small tensors as it is done one by one.

    That is: the same entries and arrays, or the same error.
    """
    one_by_one, by_kernels = (_outcome(data, least, dense_bytes) for least in (1 << 60, 0))
    if one_by_one != by_kernels:
        raise AssertionError(f"one by one {one_by_one}, by kernels {by_kernels}")


def _outcome(data, least, dense_bytes):
    before = directory.FROM, small.FROM
    directory.FROM = small.FROM = least
    try:
        with Reader(io.BytesIO(data)) as reader:
            entries = [tuple(entry) for entry in reader._directory.entries]
            packed = {name: reader._directory.packed[name] for name in reader._directory.packed}
            found = entries, packed, dict(reader.aliases), dict(reader.metadata), {**reader.files}
            sizes = [max(1, *e.shape, e.elements) for e in reader._directory.entries]
            if 16 * sum(sizes) > dense_bytes:
                return found
            arrays = reader.arrays()
        return found, [(n, a.dtype.str, a.shape, a.tobytes()) for n, a in arrays.items()]
    except FormatError as error:
        return type(error), str(error)
    finally:
        directory.FROM, small.FROM = before


def exercise_within(data, seconds):
    """:func:`exercise`, and an error if it took more seconds of the processor, twice in a row.

    The first time, kernels may have been compiled for a dtype that had not come up before.
    """
    for _ in range(2):
        start = time.process_time()
        exercise(data)
        taken = time.process_time() - start
        if taken <= seconds:
            return
    raise AssertionError(f"{len(data)} bytes took {taken:.1f} s, over {seconds:g} s")


# ---------------------------------------------------------------- where to begin


def seeds():
    """Small files, a tensor or two each, with every kind, layout and coder."""
    rng = np.random.default_rng(0)
    book = np.sort(rng.normal(0, 0.1, 16)).astype("<f4")

    def sparse(shape, density, k=16):
        n = int(np.prod(shape))
        kept = np.flatnonzero(rng.random(n) < density)
        codes = np.clip(rng.normal(k / 2, k / 6, kept.size), 0, k - 1).astype("u1")
        return SparseCodebook(shape, "float32", kept, codes, book[:k])

    def dense(dtype, values, shape=None):
        return Dense(shape or values.shape, dtype, values.reshape(-1))

    def scales(n, dtype):
        return np.abs(rng.normal(0.1, 0.01, n)).astype(dtype), np.zeros(n, "<i2")

    codes = np.clip(rng.normal(8, 2, 400), 0, 15).astype("u1")
    wide = (rng.integers(0, 300, 350)).astype("<u2")
    near = rng.normal(0, 1, 60).astype("<f4")
    tensors = {
        "sparse": sparse((20, 30), 0.1),
        "conv": sparse((6, 4, 3, 3), 0.5, 8),
        "half": sparse((400,), 0.6),
        "far": Sparse((1 << 20,), "int8", np.array([5, 9000, 700_000]), np.array([1, 2, 3], "i1")),
        "exact": Sparse((300,), "float16", np.arange(0, 300, 3), near.repeat(2)[:100].astype("f2")),
        "codes": Codebook((20, 20), "float32", codes, book),
        "kernel": Codebook((5, 8, 10), "bfloat16", codes, book.view("<u2")[1::2].copy()),
        "wide": Codebook((350,), "float32", wide, np.sort(rng.normal(0, 1, 300)).astype("<f4")),
        "floats": dense("float32", near),
        "doubles": dense("float64", near[:20].astype("<f8")),
        "zeros": dense("float32", np.zeros(900, "<f4"), (30, 30)),
        "steps": dense("int64", np.arange(40), (40,)),
        "flags": dense("bool", rng.random(200) < 0.1),
        "complex": dense("complex64", near.view("<c8")),
        "scalar": Dense((), "int64", np.array([7])),
        "empty": Dense((0, 3), "uint8", np.zeros(0, "u1")),
        "numbers": FixedPoint((8, 50), "float16", codes, *scales(8, "<f4"), (1, 50), -8, 1, 16),
        "groups": SparseFixedPoint(
            *((10, 40), "float64", codes[::4], *scales(100, "<f8"), (1, 4), -8, 1, 16),
            positions=np.arange(0, 400, 4),
        ),
        "signs": FixedPoint((400,), "float32", codes % 2, *scales(1, "<f4"), (400,), -1, 2, 2),
        "brain": dense("bfloat16", (near.repeat(7).view("<u4") >> 16).astype("<u2")),
        "bytes": dense("int8", np.clip(near.repeat(7) * 30, -99, 99).astype("i1")),
        "none": SparseCodebook((7,), "float32", np.zeros(0, np.int64), np.zeros(0, "u1"), book),
    }
    for coder in ["fixed", "huffman", "rans", "context"]:
        for name, tensor in tensors.items():
            file = io.BytesIO()
            write(CompressedModel({name: tensor}), file, coder=coder)
            yield f"{name}-{coder}", file.getvalue()
    runs = np.repeat(near, rng.integers(1, 90, near.size))
    text = b"one line and another\n" * 40
    for coder in ["huffman", "rans"]:
        file = io.BytesIO()
        with Writer(file, coder=coder) as writer:
            writer.add("runs", dense("float32", runs))
            writer.add("copy", dense("float32", runs))
            writer.file("a/b.txt", [text])
        yield f"runs-{coder}", file.getvalue()
    grid = ((np.flatnonzero(np.arange(40) % 5) - 16) * 0.011).astype("<f4")
    long = Codebook((4200,), "float32", rng.binomial(20, 0.3, 4200).astype("u1"), grid)
    even = (np.arange(-9, 10) * 0.01).astype("<f4")
    spread = rng.normal(0, np.tile([0.3, 4.0], 12)[:, None], (24, 72)).round()
    sizes = Codebook((24, 8, 9), "float32", (spread.clip(-9, 9) + 9).astype("u1").ravel(), even)
    for name, tensor in {"long": long, "sizes": sizes}.items():
        for coder in ["rans", "context"]:
            file = io.BytesIO()
            write(CompressedModel({name: tensor}), file, coder=coder)
            yield f"{name}-{coder}", file.getvalue()
    file = io.BytesIO()
    names = ("scalar", "floats", "sparse", "empty", "doubles")
    small = {name: tensors[name] for name in names}
    small |= {"more": dense("float32", -near, (5, 12)), "again": small["floats"]}
    write(CompressedModel(small, {"tied": "sparse"}, {"k": [1, "é"]}), file)
    yield "several", file.getvalue()
