"""What every entropy coder promises; a new one in the registry is tested from here at once."""

import tracemalloc

import numpy as np
import pytest

from espalier.entropy import CODERS, EntropyCoder
from espalier.entropy.coder import coder_by_id
from espalier.errors import CorruptFile, FormatError, UnknownMethod

RNG = np.random.default_rng(0)

CASES = {
    "empty": (np.zeros(0, np.uint8), 4),
    "one symbol": (np.array([2], np.uint8), 4),
    "lone, many times": (np.full(1000, 3, np.uint8), 4),
    "an alphabet of one": (np.zeros(77, np.uint8), 1),
    "two": (np.array([0, 1] * 9, np.uint8), 2),
    "bowl": (np.clip(RNG.normal(16, 5, 3000), 0, 31).astype(np.uint8), 32),
    "uniform": (RNG.integers(0, 256, 5000).astype(np.uint8), 256),
    "skewed": (RNG.geometric(0.9, 5000).astype(np.uint8), 256),
    "split": (np.clip(RNG.normal(128, 30, 40_000), 0, 255).astype(np.uint8), 256),
    "wide": (np.clip(RNG.normal(2000, 500, 30_000), 0, 4095).astype(np.uint16), 4096),
    "widest": (RNG.integers(0, 65536, 70_000).astype(np.uint16), 65536),
}


@pytest.fixture(params=CODERS.names())
def coder(request):
    return CODERS.make(request.param)


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return CASES[request.param]


def coded(coder, symbols, alphabet):
    table = coder.fit(np.bincount(symbols, minlength=alphabet).astype(np.int64))
    return coder.write_table(table), coder.encode(symbols, table)


def test_is_a_coder_with_an_id_of_its_own(coder):
    assert isinstance(coder, EntropyCoder)
    assert 1 <= coder.id <= 15
    assert [cls.id for cls in CODERS].count(coder.id) == 1
    assert type(coder_by_id(coder.id)) is type(coder)


def test_decode_inverts_encode(coder, case):
    symbols, alphabet = case
    written, payload = coded(coder, symbols, alphabet)
    found, table_bytes = coder.decode(written + payload, symbols.size, alphabet)
    assert table_bytes == len(written)
    assert found.dtype == (np.uint8 if alphabet <= 256 else np.uint16)
    assert np.array_equal(found, symbols)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex128"])
def test_what_symbols_stand_for_can_be_had_at_once(coder, case, dtype):
    symbols, alphabet = case
    written, payload = coded(coder, symbols, alphabet)
    values = (np.arange(alphabet) % 2000).astype(dtype)[::-1]  # backwards in memory
    found = coder.lookup(written + payload, symbols.size, values)
    assert found.dtype == values.dtype
    assert np.array_equal(found, values[symbols])


def test_the_size_is_as_announced(coder, case):
    symbols, alphabet = case
    counts = np.bincount(symbols, minlength=alphabet).astype(np.int64)
    table = coder.fit(counts)
    size = len(coder.encode(symbols, table))
    announced = coder.bits(counts, table)
    assert abs(8 * size - 4 - announced) <= coder.slack(announced) + 4
    assert coder.slack(announced) <= 8 * 64 + announced / 1000


def test_bytes_are_the_same_each_time_and_for_any_memory(coder, case):
    symbols, alphabet = case
    strided = np.repeat(symbols, 2)[::2]
    frozen = symbols.copy()
    frozen.flags.writeable = False
    first = coded(coder, symbols, alphabet)
    assert coded(coder, strided, alphabet) == first
    assert coded(coder, frozen, alphabet) == first


def test_a_payload_cut_short_or_added_to_is_refused(coder, case):
    symbols, alphabet = case
    written, payload = coded(coder, symbols, alphabet)
    body = written + payload
    with pytest.raises(FormatError):
        coder.decode(body + b"\x00", symbols.size, alphabet)
    for cut in {1, 2, len(payload) // 2, len(payload)}:
        if 0 < cut <= len(payload):
            with pytest.raises(FormatError):
                coder.decode(body[:-cut], symbols.size, alphabet)


def test_a_table_cut_short_is_refused(coder, case):
    symbols, alphabet = case
    written, _ = coded(coder, symbols, alphabet)
    for cut in range(len(written) if len(written) < 300 else 10):
        with pytest.raises(FormatError):
            coder.decode(written[:cut], symbols.size, alphabet)


def test_noise_is_decoded_or_refused(coder):
    rng = np.random.default_rng(1)
    for _ in range(300):
        alphabet = int(rng.choice([1, 2, 31, 256, 300]))
        noise = rng.integers(0, 256, rng.integers(0, 60)).astype(np.uint8).tobytes()
        n = int(rng.integers(0, 400))
        try:
            found, _ = coder.decode(noise, n, alphabet)
        except FormatError:
            continue
        assert found.shape == (n,)
        assert n == 0 or int(found.max()) < alphabet


@pytest.mark.parametrize("n", [10**6, 10**9, 1 << 48])
def test_a_declared_count_takes_no_memory(coder, n):
    symbols, alphabet = CASES["bowl"]
    written, payload = coded(coder, symbols, alphabet)
    lone = b"".join(coded(coder, np.zeros(5, np.uint8), 1))
    tracemalloc.start()
    with pytest.raises(FormatError):
        coder.decode(written + payload, n, alphabet)
    found, _ = coder.decode(lone, n, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.shape == (n,)
    assert peak < 1_000_000


def test_unknown_coders_are_refused_by_name():
    with pytest.raises(
        UnknownMethod, match=r"no coder is called 'zip'; known are .*fixed.*huffman"
    ):
        CODERS.make("zip")
    with pytest.raises(CorruptFile, match="coder id 15 is not known; known are 1 fixed, 2 huffman"):
        coder_by_id(15)
