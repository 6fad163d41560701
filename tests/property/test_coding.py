"""decode(encode(x)) = x and kernel = reference, for whatever hypothesis finds."""

import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.container import Reader, write
from espalier.entropy import CODERS, Histogram, entropy_bits
from espalier.entropy.cursor import Cursor, varint
from espalier.entropy.lengths import read_lengths, write_lengths
from espalier.entropy.positions import (
    best_width,
    decode_positions,
    encode_positions,
    fillers_at,
    gap_histogram,
)
from espalier.entropy.values import decode_values, encode_values
from espalier.fixed_point import FixedPoint, SparseFixedPoint, grid_shape
from espalier.kernels import bitpack, counting, gaps, huffman, prefix_code
from espalier.state import (
    STORAGE_DTYPES,
    Codebook,
    CompressedModel,
    Dense,
    Sparse,
    SparseCodebook,
    storage_dtype,
)

# No deadline: the first example of each test compiles kernels.
thorough = settings(deadline=None, max_examples=150)

COUNTS = st.lists(st.one_of(st.just(0), st.integers(1, 9), st.integers(1, 10**9)), max_size=70)
GAPS = st.lists(
    st.one_of(st.integers(0, 5), st.integers(0, 300), st.integers(0, 1 << 40)), max_size=60
)


def positions_of(gap_list):
    return np.cumsum(np.array(gap_list, np.int64) + 1) - 1


@thorough
@given(st.integers(0, (1 << 63) - 1))
def test_varint(value):
    cursor = Cursor(varint(value) + b"x")
    assert cursor.varint("value") == value
    assert cursor.left == 1


@thorough
@given(COUNTS, st.integers(7, 16))
def test_code_lengths(counts, limit):
    lengths = prefix_code.code_lengths(np.array(counts, np.int64), limit)
    assert lengths.tolist() == prefix_code.code_lengths_reference(counts, limit)
    used = np.flatnonzero(counts)
    if used.size > 1:
        assert (2.0 ** -lengths[used].astype(float)).sum() == 1
        assert lengths.max() <= limit
        between = lengths[used[0] : used[-1] + 1]
        written = prefix_code.written_lengths(bitpack.frozen(between)).tobytes()
        assert written == prefix_code.write_lengths_reference(between.tolist())
        found, lone = read_lengths(Cursor(write_lengths(lengths, -1)), len(counts))
        assert (found.tolist(), lone) == (lengths.tolist(), -1)


@thorough
@given(st.lists(st.integers(0, 40), min_size=2, max_size=400), st.booleans())
def test_huffman(symbols, wide):
    if len(set(symbols)) < 2:
        symbols = [*symbols, symbols[0] + 1]
    values = np.array(symbols, np.uint16 if wide else np.uint8)
    lengths = prefix_code.code_lengths(np.bincount(values, minlength=300 if wide else 42), 12)
    data, ends = huffman.encode(values, lengths, int(lengths[values].sum(dtype=np.int64)))
    assert (data.tobytes(), ends.tolist()) == huffman.encode_reference(symbols, lengths)
    found, status = huffman.decode(data, values.size, ends, lengths)
    assert status == bitpack.OK
    assert found.tolist() == symbols


@thorough
@given(st.lists(st.integers(0, (1 << 48) - 1), max_size=50), st.integers(0, 48))
def test_pack(symbols, width):
    values = np.array([s & ((1 << width) - 1) for s in symbols], np.uint64)
    packed = bitpack.pack(values, width)
    assert packed.tobytes() == bitpack.pack_reference(values, width)
    found, status = bitpack.unpack(packed, values.size, width, np.uint64)
    assert status == bitpack.OK
    assert found.tolist() == values.tolist()


@thorough
@given(st.lists(st.integers(0, 255), max_size=50), st.booleans())
def test_count(symbols, wide):
    found = counting.count(np.array(symbols, np.uint16 if wide else np.uint8))
    assert found.tolist() == counting.count_reference(symbols, 65536 if wide else 256)


@thorough
@given(st.integers(1, 40).flatmap(lambda n: st.lists(st.binary(min_size=n, max_size=n))))
def test_histograms(planes):
    n = len(planes[0]) if planes else 1
    rows = np.frombuffer(b"".join(planes), np.uint8).reshape(-1, n)
    counts, used = counting.histograms(rows, n - 1)
    found = [row.tolist() if n else None for row, n in zip(counts, used, strict=True)]
    assert found == counting.histograms_reference(planes, n - 1)


@thorough
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=60), st.integers(1, 32))
def test_gaps_with_fillers(gap_list, width):
    positions = positions_of(gap_list)
    entries = positions.size + fillers_at(gap_histogram(positions), width)
    packed = gaps.pack_gaps(positions, width, entries)
    assert packed.tobytes() == gaps.pack_gaps_reference(positions, width)
    size = int(positions[-1]) + 1
    found, status = gaps.unpack_gaps(packed, positions.size, width, size)
    assert status == bitpack.OK
    assert found.tolist() == positions.tolist()
    assert gaps.unpack_gaps_reference(packed.tobytes(), positions.size, width) == found.tolist()


@thorough
@given(GAPS, st.integers(0, 4), st.integers(0, 3))
def test_gaps_as_tokens(gap_list, direct, top):
    top = min(top, direct)
    positions = positions_of(gap_list)
    tokens, raw = gaps.split_gaps_reference(positions, direct, top)
    if max(tokens, default=0) > 255:
        return
    raw_bits = sum(g.bit_length() - 1 - top for g in gap_list if g >= 1 << direct)
    fast = gaps.split_gaps(positions, direct, top, raw_bits)
    assert (fast[0].tolist(), fast[1].tobytes()) == (tokens, raw)
    found, status = gaps.join_gaps(*fast, direct, top, int(positions.max(initial=0)) + 1)
    assert status == bitpack.OK
    assert found.tolist() == positions.tolist()
    assert gaps.join_gaps_reference(tokens, raw, direct, top) == positions.tolist()


@thorough
@given(GAPS, st.sampled_from(CODERS.names()), st.integers(0, 20))
def test_positions(gap_list, coder, beyond):
    positions = positions_of(gap_list)
    size = int(positions.max(initial=-1)) + 1 + beyond
    stream, histogram = encode_positions(positions, size, CODERS.make(coder))
    found, tables = decode_positions(stream.method, memoryview(stream.body), positions.size, size)
    assert found.tolist() == positions.tolist()
    assert tables == stream.table_bytes
    assert histogram.total == positions.size


@thorough
@given(st.lists(st.integers(0, 2000), min_size=1, max_size=50), st.integers(0, 32))
def test_the_best_width_is_the_best(gap_list, beside):
    histogram = Histogram.of(np.array(gap_list))

    def cost(b):
        return (b + beside) * (len(gap_list) + fillers_at(histogram, b))

    assert cost(best_width(histogram, beside)) == min(map(cost, range(1, 33)))


@thorough
@given(st.data(), st.sampled_from(sorted(STORAGE_DTYPES)), st.sampled_from(CODERS.names()))
def test_values(data, dtype, coder):
    storage = storage_dtype(dtype)
    n = data.draw(st.integers(0, 40))
    most = 1 if dtype == "bool" else data.draw(st.sampled_from([0, 1, 3, 255]))
    size = n * storage.itemsize
    raw = bytes(data.draw(st.lists(st.integers(0, most), min_size=size, max_size=size)))
    values = np.frombuffer(raw, storage)
    stream = encode_values(values, dtype, CODERS.make(coder))
    found, tables = decode_values(stream.method, memoryview(stream.body), n, dtype, storage)
    assert found.tobytes() == raw
    assert found.dtype == storage
    assert tables == stream.table_bytes
    assert len(stream.body) <= size


@thorough
@given(st.lists(st.integers(0, 9), max_size=80))
def test_the_entropy_is_a_bound(symbols):
    values = np.array(symbols, np.uint8)
    counts = np.bincount(values, minlength=10)
    bound = entropy_bits(values)
    for cls in CODERS:
        coder = cls()
        assert coder.bits(counts, coder.fit(counts)) >= bound - 1e-6
    assert bound >= 0


@st.composite
def tensors(draw):
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))
    size = int(np.prod(shape, dtype=int))
    dtype = draw(st.sampled_from(["float32", "bfloat16", "int64", "bool", "complex64"]))
    storage = storage_dtype(dtype)
    rng = np.random.default_rng(draw(st.integers(0, 99)))

    def values(n):
        return rng.integers(0, 2, n).astype(storage)

    kept = np.flatnonzero(rng.random(size) < draw(st.sampled_from([0.0, 0.1, 0.6, 1.0])))
    levels = draw(st.sampled_from([1, 2, 5, 256, 300]))
    code_dtype = np.uint8 if levels <= 256 else np.uint16
    kind = draw(st.sampled_from([Dense, Sparse, Codebook, SparseCodebook, FixedPoint]))
    if kind is FixedPoint:
        return fixed_point(draw, rng, shape, levels, kept)
    if kind is Dense:
        return Dense(shape, dtype, values(size))
    if kind is Sparse:
        return Sparse(shape, dtype, kept, values(kept.size))
    if kind is Codebook:
        codes = rng.integers(0, levels, size).astype(code_dtype)
        return Codebook(shape, dtype, codes, values(levels))
    codes = rng.integers(0, levels, kept.size).astype(code_dtype)
    return SparseCodebook(shape, dtype, kept, codes, values(levels))


def fixed_point(draw, rng, shape, levels, kept):
    """Blocks of any divisors; first numbers, strides and zero points as they may be."""
    dtype = draw(st.sampled_from(["float16", "bfloat16", "float32", "float64"]))
    block = tuple(
        draw(st.sampled_from([d for d in range(1, max(n, 1) + 1) if n % d == 0])) for n in shape
    )
    n = int(np.prod(grid_shape(shape, block), dtype=int))
    scales = (1 + rng.integers(0, 3, n)).astype("<f8" if dtype == "float64" else "<f4") / 7
    zeros = rng.integers(-3, 4, n).astype("<i2")
    first, stride = draw(st.integers(-300, 300)), draw(st.integers(1, 3))
    sparse = draw(st.booleans())
    stored = kept.size if sparse else int(np.prod(shape, dtype=int))
    codes = rng.integers(0, levels, stored).astype(np.uint8 if levels <= 256 else np.uint16)
    fields = shape, dtype, codes, scales, zeros, block, first, stride, levels
    return SparseFixedPoint(*fields, kept) if sparse else FixedPoint(*fields)


@thorough
@given(
    st.dictionaries(st.text(max_size=12), tensors(), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.sampled_from(CODERS.names()),
)
def test_a_file_holds_what_was_written(found, metadata, coder):
    file = io.BytesIO()
    ledger = write(CompressedModel(found, {}, metadata), file, coder=coder)
    assert ledger.file_bytes == len(file.getvalue())
    assert ledger.total("total_bytes") + ledger.overhead == ledger.file_bytes
    with Reader(file) as reader:
        assert reader.names() == list(found)
        assert dict(reader.metadata) == metadata
        assert reader.ledger() == ledger
        for name, tensor in found.items():
            back = reader.tensor(name)
            assert type(back) is type(tensor)
            assert (back.shape, back.dtype, back.stored) == (
                tensor.shape,
                tensor.dtype,
                tensor.stored,
            )
            assert back.dense().tobytes() == tensor.dense().tobytes()
            if isinstance(tensor, FixedPoint):
                assert np.array_equal(back.integers(), tensor.integers())
                assert (back.block, back.zeros.tolist()) == (tensor.block, tensor.zeros.tolist())
