"""Hostile Deep Compression files and descriptions: FormatError at once, and little memory."""

import time
import tracemalloc

import numpy as np
import pytest

from espalier.errors import FormatError
from espalier.interop.deep_compression import read_deep_compression
from espalier.interop.prototxt import MAX_BYTES, convolutions

PROTOTXT = """input: "data" input_dim: 1 input_dim: 2 input_dim: 5 input_dim: 5
layer { name: "a" type: "Convolution" bottom: "data" top: "a"
  convolution_param { num_output: 3 kernel_size: 3 } }
layer { name: "b" type: "Convolution" bottom: "a" top: "b"
  convolution_param { num_output: 2 kernel_size: 1 } }
"""
DESCRIPTION = PROTOTXT.encode()
MEMORY = 16 * MAX_BYTES  # bytes that an attempt may take beside the file
SECONDS = 4  # of the processor; a busy one counts more for the same work


def sound():
    counts = np.array([5, 2], "<u4").tobytes()
    rng = np.random.default_rng(0)

    def layer(n, filters):
        book = rng.normal(size=256).astype("<f4")
        book[0] = 0
        biases = rng.normal(size=filters).astype("<f4")
        codes = rng.integers(0, 256, n, np.uint8)
        gaps = rng.integers(0, 2, (n + 1) // 2, np.uint8)
        return b"".join(part.tobytes() for part in (book, biases, codes, gaps))

    return counts + layer(5, 3) + layer(2, 2)


@pytest.fixture
def read(tmp_path):
    """Read a file and a description given as bytes, within bounds of time and memory."""

    def attempt(data, prototxt=DESCRIPTION):
        (tmp_path / "x.net").write_bytes(data)
        (tmp_path / "x.prototxt").write_bytes(prototxt)
        tracemalloc.start()
        began = time.process_time()
        try:
            return read_deep_compression(tmp_path / "x.net", tmp_path / "x.prototxt")
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < MEMORY
            assert time.process_time() - began < SECONDS

    return attempt


def test_the_sound_file_is_read(read):
    assert len(read(sound()).model.tensors) == 4


def places(size):
    """All of a file's ends, and every 16th of the codebooks and biases between them."""
    return sorted({*range(40), *range(40, size - 40, 16), *range(size - 40, size)})


def test_prefixes(read):
    data = sound()
    for length in places(len(data)):
        with pytest.raises(FormatError) as caught:
            read(data[:length])
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_flipped_bits_are_refused_or_change_values_only(read):
    data = sound()
    for at in places(len(data)):
        for bit in (1, 128):
            broken = bytearray(data)
            broken[at] ^= bit
            try:
                model = read(bytes(broken)).model
            except FormatError:
                continue
            assert model["a.weight"].dense().shape == (3, 2, 3, 3)


def test_every_prefix_of_the_description(read):
    text = PROTOTXT.rstrip().encode()
    for length in range(len(text)):
        with pytest.raises(FormatError):
            read(sound(), text[:length])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("num_output: 3", "num_output: 2147483647"),
        ("kernel_size: 3", "kernel_size: 2147483647"),
        ("num_output: 3", f"num_output: {'9' * 5000}"),
    ],
)
def test_absurd_shapes(read, old, new):
    with pytest.raises(FormatError):
        read(sound(), PROTOTXT.replace(old, new, 1).encode())


def test_a_huge_layer_of_few_entries_takes_no_memory(read):
    many = PROTOTXT.replace("input_dim: 2", "input_dim: 2147483647").encode()
    assert read(sound(), many).model["a.weight"].shape == (3, (1 << 31) - 1, 3, 3)


@pytest.mark.parametrize("data", [b"", b"\x7fELF" + bytes(5000), bytes(20000), b"\xff" * 20000])
def test_foreign_files(read, data):
    with pytest.raises(FormatError):
        read(data)


@pytest.mark.parametrize(
    "prototxt",
    [b"", b"\xff\xfe", b"\x00" * 1000, b"# nothing", sound(), b"a{" * 9999, bytes(MAX_BYTES + 1)],
)
def test_foreign_descriptions(read, prototxt):
    with pytest.raises(FormatError):
        read(sound(), prototxt)


@pytest.mark.parametrize("text", ["a{}", "a:1 ", "layer{}", "#\n", "'", "a", "{"])
def test_the_longest_descriptions_take_little_time(text):
    began = time.process_time()
    with pytest.raises(FormatError):
        convolutions(text * (MAX_BYTES // len(text)) + "}")
    assert time.process_time() - began < SECONDS
