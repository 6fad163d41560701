"""What kernels decode at once is what is decoded one by one."""

import io

import numpy as np
import pytest

from espalier.container import Reader, Writer, directory, small, write
from espalier.container import reader as container_reader
from espalier.errors import CorruptFile, FormatError
from espalier.state import Codebook, CompressedModel, Dense, SparseCodebook

RNG = np.random.default_rng(0)


NARROW = (
    ("bfloat16", "<u2", RNG.normal(0, 0.1, 4100).astype("<f4").view("<u4") >> 16),
    ("float16", "<f2", RNG.normal(0, 0.1, 4100)),
    ("int16", "<i2", RNG.normal(0, 300, 4100)),
    ("uint16", "<u2", RNG.integers(0, 1 << 16, 4100)),  # two planes as they are
    ("int8", "i1", RNG.normal(0, 20, 4100)),
    ("float8_e4m3fn", "u1", RNG.binomial(255, 0.3, 4100)),
)


def network(levels=40, n=12):
    """Layers of sizes on either side of every threshold, and what lies between them."""
    tensors = {}
    book = (np.arange(-(levels // 2), levels - levels // 2) * 0.013).astype("<f4")
    for i in range(n):
        shape = (4 + i, 9 + 17 * i, 3, 3)
        codes = RNG.binomial(levels - 1, 0.5, np.prod(shape)).astype("u1")
        tensors[f"layer{i}.conv.weight"] = Codebook(shape, "float32", codes, book)
        scales = RNG.normal(size=4 + i).astype("<f4")
        tensors[f"layer{i}.norm.weight"] = Dense((4 + i,), "float32", scales)
        tensors[f"layer{i}.norm.mean"] = Dense((4 + i,), "float32", np.zeros(4 + i, "<f4"))
        tensors[f"layer{i}.norm.steps"] = Dense((), "int64", np.array([i // 3]))
    tensors["é"] = Dense((4100,), "float32", RNG.normal(size=4100).astype("<f4"))
    for dtype, storage, values in NARROW:
        tensors[dtype] = Dense(values.shape, dtype, values.astype(storage))
    pairs = np.array([-2.5, -0.0, 0.0, 0.75, 3.0], "<f2")
    codes = RNG.integers(0, 5, 4100).astype("u1")
    tensors["levels.float16"] = Codebook((41, 100), "float16", codes, pairs)
    tensors["levels.bfloat16"] = Codebook((41, 100), "bfloat16", codes, pairs.view("<u2"))
    tensors["levels.int16"] = Codebook((41, 100), "int16", codes, np.arange(5, dtype="<i2"))
    tensors[""] = Dense((2, 0), "uint8", np.zeros(0, "u1"))
    tensors["flags"] = Dense((4200,), "bool", RNG.random(4200) < 0.5)
    tensors["sparse"] = SparseCodebook(
        (50, 50), "float32", np.arange(0, 2500, 7), RNG.integers(0, 9, 358).astype("u1"), book
    )
    return CompressedModel(tensors, {"tied": "sparse", "again": "é"}, {"k": 1})


def read(file, monkeypatch, least):
    monkeypatch.setattr(directory, "FROM", least)
    monkeypatch.setattr(small, "FROM", least)
    with Reader(file) as reader:
        return reader, reader.arrays()


@pytest.mark.parametrize("coder", ["auto", "fixed", "huffman", "rans", "context"])
def test_arrays_are_those_of_single_tensors(coder, monkeypatch, tmp_path):
    model = network()
    path = tmp_path / "model.esp"
    write(model, path, coder=coder)
    one, expected = read(path, monkeypatch, 1 << 30)
    many, found = read(path, monkeypatch, 1)
    _, in_memory = read(io.BytesIO(path.read_bytes()), monkeypatch, 1)
    assert one._directory.table is None
    assert many._directory.table is not None
    assert tuple(many._directory.entries) == one._directory.entries
    assert dict(many._directory.packed) == one._directory.packed
    assert dict(many._directory.tensors) == one._directory.tensors
    assert many.names() == one.names()
    assert list(found) == list(in_memory) == list(expected) == model.names()
    for name, array in expected.items():
        for other in (found[name], in_memory[name]):
            assert (other.dtype, other.shape) == (array.dtype, array.shape)
            assert other.tobytes() == array.tobytes() == model[name].dense().tobytes()
            assert other.flags.writeable
    names = list(model.tensors)
    assert not any(np.shares_memory(found[a], found[b]) for a in names for b in names if a != b)


@pytest.mark.parametrize("coder", ["huffman", "rans", "context"])
def test_what_is_common_is_decoded_by_the_kernel(coder, monkeypatch):
    file = io.BytesIO()
    write(network(), file, coder=coder)
    monkeypatch.setattr(directory, "FROM", 1)
    monkeypatch.setattr(small, "FROM", 1)
    with Reader(file) as reader:
        found = small.small_arrays(reader._directory.table, reader._stretch)
        left = {name for name in reader.names() if name not in found} - set(reader.aliases)
    long = {f"layer{i}.conv.weight" for i in (9, 10, 11)}  # of eight runs
    copies = {f"layer{i}.norm.{what}" for i in range(12) for what in ("mean", "steps")}
    assert left - copies == {"", "flags", "sparse"} | (long if coder == "huffman" else set())


def test_a_buffer_is_not_for_ever_and_not_for_long_chunks(monkeypatch):
    file = io.BytesIO()
    model = network()
    write(model, file)
    monkeypatch.setattr(small, "ROOM", 20_000)
    monkeypatch.setattr(small, "MOST", 30_000)
    _, found = read(file, monkeypatch, 1)
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: model[name].dense().tobytes() for name in model.names()
    }
    assert len({id(array.base) for array in found.values()}) > 3


def test_names_that_share_their_beginnings(monkeypatch):
    names = ["a" * 1000 + str(i) for i in range(300)]  # more text than bytes pay for
    names += [f"block.{i}.é\u20ac" for i in range(60)] + ["zero\0byte", "zero", ""]
    file = io.BytesIO()
    with Writer(file) as writer:
        for name in names:
            writer.add(name, Dense((2,), "int8", np.array([1, 2], "i1")))
        writer.alias("block.0.tied", "zero")
    for least in (1, 1 << 30):
        reader, found = read(file, monkeypatch, least)
        assert list(found) == [*names, "block.0.tied"]
        assert reader._directory.table is None
    plain = io.BytesIO()
    write(
        CompressedModel({n: Dense((), "int8", np.array([1], "i1")) for n in names[300:360]}), plain
    )
    reader, found = read(plain, monkeypatch, 1)
    assert reader._directory.table is not None
    assert list(found) == names[300:360]
    assert reader._directory.entries[-1].name == names[359]
    assert [e.name for e in reader._directory.entries[:2]] == names[300:302]


class Right:
    """A checksum that is always right."""

    __hash__ = None

    def __init__(self, chunk):
        pass

    def __eq__(self, other):
        return True


def outcome(data, monkeypatch, least):
    """What a file decodes to, or what is wrong with it, whatever its checksums say."""
    monkeypatch.setattr(small, "crc32", Right)
    monkeypatch.setattr(container_reader, "crc32", Right)
    try:
        _, found = read(io.BytesIO(data), monkeypatch, least)
    except FormatError as error:
        return str(error)
    return {name: (array.shape, array.tobytes()) for name, array in found.items()}


@pytest.mark.parametrize("coder", ["huffman", "rans", "context"])
def test_damage_is_told_alike_by_the_kernel_and_one_by_one(coder, monkeypatch):
    file = io.BytesIO()
    write(network(n=4), file, coder=coder)
    data = file.getvalue()
    with Reader(file) as reader:
        entries = list(reader._directory.entries)
    first = min(entry.offset for entry in entries if entry.length)
    last = max(entry.offset + entry.length for entry in entries)
    wrong = 0
    for _ in range(200):
        damaged = bytearray(data)
        damaged[int(RNG.integers(first, last))] ^= 1 << int(RNG.integers(8))
        alone = outcome(bytes(damaged), monkeypatch, 1 << 30)
        assert outcome(bytes(damaged), monkeypatch, 1) == alone
        wrong += isinstance(alone, str)
    assert 0 < wrong < 200


def test_a_flipped_byte_is_found(monkeypatch):
    file = io.BytesIO()
    write(network(), file)
    with Reader(file) as reader:
        entry = reader.entry("layer3.conv.weight")
    data = bytearray(file.getvalue())
    data[entry.offset + 20] ^= 1
    with pytest.raises(CorruptFile, match=r"tensor 'layer3.conv.weight': the checksum"):
        read(io.BytesIO(bytes(data)), monkeypatch, 1)
