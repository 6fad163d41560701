"""Adaptive binary coding and coding by neighbours: by hand, against plain Python, under attack."""

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.container import Reader, write
from espalier.container.layout import DTYPE_IDS
from espalier.entropy.coders.context import Context
from espalier.entropy.neighbours import (
    RANKS,
    SIZES,
    Around,
    _encode_as,
    _in_order,
    decode_kept,
    decode_ranks,
    encode_kept,
    encode_ranks,
    rows_and_places,
)
from espalier.errors import CorruptFile, FormatError, TruncatedFile
from espalier.kernels import range_coder
from espalier.kernels.neighbours import logistic
from espalier.state import STORAGE_DTYPES, CompressedModel, SparseCodebook, storage_dtype

_path = Path(__file__).parents[2] / "docs" / "reference_decoder.py"
_spec = importlib.util.spec_from_file_location("reference_decoder", _path)
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

thorough = settings(deadline=None, max_examples=60)


def sample(shape, levels, density, seed):
    """A tensor whose rows differ in density and in the size of their values."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    row = np.arange(size) // max(size // max(shape[0], 1), 1)
    kept = np.flatnonzero(rng.random(size) < density * (0.3 + rng.random(size)[row]))
    spread = levels / 12 * (0.3 + rng.random(size)[row[kept]])
    codes = np.clip(np.round(rng.normal(levels / 2, spread)), 0, levels - 1).astype("u1")
    codebook = np.sort(rng.normal(0, 1, levels)).astype("<f4")
    return kept, codes, codebook


# ---------------------------------------------------------------- the range coder


def test_a_payload_by_hand():
    # A one of 1/2 takes the lower half; with one digit the least number there is 0.
    assert range_coder.encode(np.array([1], np.uint8), 1) == bytes(4)
    # A zero takes the upper one, from (2**48 - 1) * 2**15 on, rounded up to a digit.
    assert range_coder.encode(np.array([0], np.uint8), 1).hex() == "80000000"


def test_a_counter_learns_as_krichevsky_and_trofimov_say():
    # (ones + 1/2) / (seen + 1) after 1, 1, 0, 1: 3/4, 5/6, 5/8, 7/10.
    q = range_coder.HALF
    for seen, (bit, share) in enumerate([(1, 3 / 4), (1, 5 / 6), (0, 5 / 8), (1, 7 / 10)]):
        q += ((bit << 16) - q) * int(range_coder.RATES[seen]) >> 16
        assert abs(q / 65536 - share) < 1e-4


def test_a_carry_runs_through_full_digits():
    digits = np.array([7, 0xFFFFFFFF, 0xFFFFFFFF, 5], np.uint32)
    range_coder.carry(digits, 3)
    assert digits.tolist() == [8, 0, 0, 5]


@pytest.mark.parametrize("width", [1, 3, 8, 12])
@pytest.mark.parametrize("n", [1, 2, 9, 1000, 20_000])
@pytest.mark.parametrize("spread", [0.01, 1, 100])
def test_fast_and_slow_agree(width, n, spread):
    values = np.random.default_rng(n).normal(1 << (width - 1), spread, n)
    dtype = np.uint8 if width <= 8 else np.uint16
    symbols = np.clip(np.round(values), 0, (1 << width) - 1).astype(dtype)
    payload = range_coder.encode(symbols, width)
    assert payload == range_coder.encode_reference(symbols.tolist(), width)
    found, whole = range_coder.decode(payload, n, width, dtype)
    assert whole
    assert np.array_equal(found, symbols)
    assert range_coder.decode_reference(payload, n, width) == symbols.tolist()


@thorough
@given(st.lists(st.integers(0, 255), min_size=1, max_size=300), st.sampled_from([0, 1, 255]))
def test_whatever_the_symbols(symbols, mask):
    values = np.array(symbols, np.uint8) & mask
    payload = range_coder.encode(values, 8)
    assert payload == range_coder.encode_reference(values.tolist(), 8)
    found, whole = range_coder.decode(payload, values.size, 8, np.uint8)
    assert whole
    assert found.tolist() == values.tolist()


def test_it_adapts():
    symbols = np.repeat(np.array([3, 200, 77], np.uint8), 5000)
    assert len(Context().encode(symbols, 256)) < 4000
    skewed = np.zeros(100_000, np.uint8)
    skewed[::5000] = 1
    assert len(Context().encode(skewed, 2)) < 60


def test_a_symbol_outside_the_alphabet_is_refused():
    payload = range_coder.encode(np.array([0, 3], np.uint8), 2)
    with pytest.raises(CorruptFile, match="symbol 3 is outside"):
        Context().decode(payload, 2, 3)
    with pytest.raises(TruncatedFile, match="cannot lie"):
        Context().decode(payload, 10**9, 4)


# ---------------------------------------------------------------- by neighbours


def test_logarithms_are_those_of_the_specification():
    squash, stretch = logistic()
    table = reference.LOGISTIC
    assert squash.tolist() == [min(max(t, 32), 65536 - 32) for t in table]
    least = [next((k for k, t in enumerate(table) if t >= 16 * i + 8), 4094) for i in range(4096)]
    assert stretch.tolist() == [k - 2047 for k in least]
    x = np.arange(-2047, 2048) / 256
    assert np.abs(squash - 65536 / (1 + np.exp(-x))).max() < 33
    assert np.all(np.diff(stretch) >= 0)


def reference_keys(codebook, dtype):
    number, size = DTYPE_IDS[dtype], codebook.dtype.itemsize
    words = [int.from_bytes(item.tobytes(), "little") for item in codebook]
    sign = reference.SIGN[number]
    assert sign in (0, 1 << (8 * size - 1))
    keys = [word ^ reference.FLIP[number][word >= sign] for word in words]
    return keys, sum(key < sign for key in keys)


SHAPES = [(40, 7, 3, 3), (30, 20), (500,), (6, 5, 40), (3, 1, 2, 2, 2), (300, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.05, 0.4, 1.5])
@pytest.mark.parametrize("levels", [2, 5, 40, 256])
def test_a_decoder_from_the_specification_agrees(shape, density, levels):
    kept, codes, codebook = sample(shape, levels, density, levels)
    stream = encode_kept(kept, shape)
    grid = rows_and_places(shape)
    slow = reference.Decisions(reference.Source(stream.body)).positions(*grid)
    assert slow == kept.tolist()
    assert decode_kept(memoryview(stream.body), kept.size, shape).tolist() == kept.tolist()
    if not kept.size:
        return
    around = Around(shape, kept, codebook, "float32")
    keys, zero = reference_keys(codebook, "float32")
    order = sorted(range(levels), key=keys.__getitem__)
    rest = kept.tolist(), levels, zero
    for layout in (RANKS, SIZES):
        stream = _encode_as(layout, codes, around)
        decisions = reference.Decisions(reference.Source(stream.body))
        by = decisions.ranks if layout == RANKS else decisions.sizes
        slow = by(*grid, *rest, 1)
        assert [order[rank] for rank in slow] == codes.tolist()
        fast = decode_ranks(layout, memoryview(stream.body), codes.size, around)
        assert fast.tolist() == codes.tolist()
    if kept.size == np.prod(shape):
        whole = Around(shape, None, codebook, "float32")
        stream = _encode_as(SIZES, codes, whole)
        decisions = reference.Decisions(reference.Source(stream.body))
        slow = decisions.sizes(*grid, *rest, 0)
        assert [order[rank] for rank in slow] == codes.tolist()
        fast = decode_ranks(SIZES, memoryview(stream.body), codes.size, whole)
        assert fast.tolist() == codes.tolist()


@pytest.mark.parametrize("dtype", sorted(STORAGE_DTYPES))
def test_ranks_are_in_the_order_of_values(dtype):
    storage = storage_dtype(dtype)
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 2 if dtype == "bool" else 256, 16 * storage.itemsize).astype("u1")
    codebook = raw.view(storage)
    order, middle = _in_order(codebook, dtype)
    if not dtype.startswith("complex"):
        keys, zero = reference_keys(codebook, dtype)
        assert (order.tolist(), middle) == (sorted(range(len(keys)), key=keys.__getitem__), zero)
    else:
        assert (order.tolist(), middle) == (list(range(codebook.size)), 0)
    if dtype in ("int8", "int32", "uint16", "float64"):
        values = codebook[order]
        finite = values[np.isfinite(values)]
        assert np.all(finite[:-1] <= finite[1:])


def test_neighbours_pay_where_there_is_structure():
    kept, codes, codebook = sample((64, 32, 3, 3), 32, 0.3, 1)
    tensor = SparseCodebook((64, 32, 3, 3), "float32", kept, codes, codebook)
    sizes = {}
    for effort in ["fast", "default", "max"]:
        file = io.BytesIO()
        ledger = write(CompressedModel({"w": tensor}), file, effort=effort)
        sizes[effort] = ledger.file_bytes
        with Reader(file) as reader:
            assert reader.tensor("w").dense().tobytes() == tensor.dense().tobytes()
            assert reader.ledger() == ledger
    assert sizes["max"] < 0.985 * sizes["default"] < sizes["fast"]
    assert ledger["w"].positions_coder == ledger["w"].codes_coder == "context"


def test_every_cut_and_many_flips_are_refused_or_decoded():
    shape = (12, 6, 3, 3)
    kept, codes, codebook = sample(shape, 16, 0.4, 2)
    around = Around(shape, kept, codebook, "float32")
    rng = np.random.default_rng(0)
    for body, decode in [
        (encode_kept(kept, shape).body, lambda b: decode_kept(memoryview(b), kept.size, shape)),
        *(
            (
                _encode_as(layout, codes, around).body,
                lambda b, layout=layout: decode_ranks(layout, memoryview(b), codes.size, around),
            )
            for layout in (RANKS, SIZES)
        ),
    ]:
        for cut in range(len(body)):
            with pytest.raises(FormatError):
                decode(body[:cut])
        with pytest.raises(FormatError):
            decode(body + bytes(4))
        for at in rng.integers(0, len(body), 60).tolist():
            flipped = bytearray(body)
            flipped[at] ^= 1 << rng.integers(0, 8)
            try:
                decode(bytes(flipped))
            except FormatError:
                continue


def test_huge_tensors_take_no_memory():
    body = memoryview(bytes(400))
    for shape in [(1 << 20, 1 << 20), (1 << 48,), (1, 1 << 40, 9)]:
        with pytest.raises(TruncatedFile):
            decode_kept(body, 100, shape)
        around = Around(shape, np.arange(100), np.arange(4, dtype="<f4"), "float32")
        for layout in (RANKS, SIZES):
            with pytest.raises(TruncatedFile):
                decode_ranks(layout, body, 100, around)
    assert encode_kept(np.array([5]), (1 << 30, 9)) is None
    wide = Around((9,), None, np.arange(300, dtype="<f4"), "float32")
    assert encode_ranks(np.zeros(9, np.uint16), wide) is None
    with pytest.raises(CorruptFile, match="300 levels"):
        decode_ranks(SIZES, body, 9, wide)
