"""Files that lie: only FormatError escapes, soon, and without taking memory that nothing pays for.

A file is broken in two ways: as it would be on a disk (cut short, flipped), where a checksum tells;
and as an enemy would, with every checksum made right again, so that the decoders stand alone.
"""

import importlib.util
import io
import json
import random
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from espalier.container import Reader, Writer, layout, read
from espalier.container.chunks import decode_dense, decode_parts, decode_tensor
from espalier.container.layout import DTYPE_IDS
from espalier.entropy.cursor import varint
from espalier.errors import CorruptFile, FormatError, TruncatedFile, UnsupportedVersion
from espalier.state import Codebook, Dense, Sparse, SparseCodebook, storage_dtype

SECONDS = 1.0
RNG = np.random.default_rng(0)


def whole():
    """A small file with every kind, layout and coder in it."""
    levels = np.sort(RNG.normal(0, 0.1, 32)).astype("<f4")

    def sparse(n, density):
        kept = np.flatnonzero(RNG.random(n) < density)
        codes = np.clip(RNG.normal(16, 5, kept.size), 0, 31).astype("u1")
        return SparseCodebook((n,), "float32", kept, codes, levels)

    regular = np.arange(0, 900, 9)
    tensors = {
        "fc.weight": sparse(3000, 0.08),
        "half": sparse(1000, 0.6),
        "few": sparse(300, 0.02),
        "fc.bias": Dense((200,), "float32", RNG.normal(0, 1, 200).astype("<f4")),
        "zeros": Dense((50, 50), "float64", np.zeros(2500)),
        "steps": Dense((), "int64", np.array([7])),
        "flags": Dense((90,), "bool", RNG.random(90) < 0.1),
        "conv": Codebook((500,), "float32", RNG.integers(0, 32, 500).astype("u1"), levels),
        "wide": Codebook(
            (600,), "float32", RNG.integers(0, 300, 600).astype("<u2"), np.ones(300, "<f4")
        ),
        "exact": Sparse((900,), "float16", regular, RNG.normal(0, 1, 100).astype("<f2")),
        "empty": Dense((0,), "uint8", np.zeros(0, "u1")),
    }
    tensors["runs"] = Dense((400,), "int16", np.repeat(RNG.integers(0, 99, 40), 10).astype("<i2"))
    tensors["again"] = tensors["half"]
    file = io.BytesIO()
    with Writer(file) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.file("config.json", [b'{"hidden_size": 32, "heads": 4, "layers": 4}' * 3])
        writer.alias("tied", "fc.weight")
        writer.metadata = {"k": [1, "é"]}
    return file.getvalue()


WHOLE = whole()
_spec = importlib.util.spec_from_file_location(
    "structured", Path(__file__).with_name("structured.py")
)
structured = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(structured)


def decode(data):
    """Everything that a reader can do with a file."""
    with Reader(io.BytesIO(data)) as reader:
        reader.verify()
        reader.ledger()
        for name in reader.files:
            list(reader.file(name))


def refused(data, error=FormatError, match=None):
    structured.both_ways(data)
    start = time.perf_counter()
    with pytest.raises(error, match=match) as caught:
        decode(data)
    assert time.perf_counter() - start < SECONDS
    assert isinstance(caught.value, FormatError)
    return str(caught.value)


BIG = 1 << 45
ONE = b"\x02\x07" * 4  # four constant planes


def text(s):
    return varint(len(s)) + s


def entry(name=b"x", kind=1, dtype=1, dims=(4,), counts=(), streams=((0, 16),), crc=0):
    """A directory entry, field by field, each as wrong as wanted."""
    return b"".join(
        [
            b"\x00\x00" + text(name),
            bytes([kind | len(dims) << 4, dtype]),
            *map(varint, dims),
            *map(varint, counts),
            *(bytes([method]) + varint(length) for method, length in streams),
            crc.to_bytes(4, "little"),
        ]
    )


def assemble(entries, chunks=b"", number=None, features=b"\x00", sections=b""):
    """A file with right checksums of header and directory around ``entries``."""
    count = len(entries) if number is None else number
    directory = features + varint(count) + b"".join(entries) + sections
    return layout.header() + chunks + directory + layout.footer(directory)


def one(chunk, **fields):
    """A file of one tensor whose checksums are right; streams are (method, body) pairs."""
    body = b"".join(part for _, part in chunk)
    streams = [(method, len(part)) for method, part in chunk]
    return assemble([entry(streams=streams, crc=zlib.crc32(body), **fields)], body)


def chunks(reader):
    """The entries that have a chunk."""
    return [entry for entry in reader._directory.entries if entry.streams]


def packed(members, size):
    """A pack of four float32 in ``size`` bytes, with members of these dtypes and dimensions."""
    body = bytes(range(size))
    entries = [
        b"\x00\x00"
        + text(b"%d" % i)
        + bytes([8 | len(dims) << 4, dtype])
        + b"".join(map(varint, dims))
        for i, (dtype, dims) in enumerate(members)
    ]
    pack = entry(b"", 7, streams=[(0, size)], crc=zlib.crc32(body))
    return assemble([*entries, pack], body)


@pytest.fixture(scope="module", autouse=True)
def warm():
    decode(WHOLE)


# ---------------------------------------------------------------- damage


def test_every_prefix_is_truncated():
    for n in range(len(WHOLE)):
        with pytest.raises(TruncatedFile):
            decode(WHOLE[:n])
    refused(b"", TruncatedFile, "the file: the file is empty")
    refused(WHOLE[:5], TruncatedFile, "5 bytes are too few for a header")
    refused(WHOLE[:-1], TruncatedFile, "cut short, or added to")


def test_every_flipped_byte_is_found():
    rng = random.Random(0)
    sound = Reader(io.BytesIO(WHOLE))
    places = [place for place in chunks(sound) if place.kind != "file"]
    packed = {pack.offset: name for name, (pack, _) in sound._directory.packed.items()}
    owner = {
        at: packed.get(p.offset, p.name)
        for p in places
        for at in range(p.offset, p.offset + p.length)
    }
    (piece,) = sound._directory.files["config.json"]
    beside = range(piece.offset, piece.offset + piece.length)
    for at in range(len(WHOLE)):
        broken = bytearray(WHOLE)
        broken[at] ^= rng.choice([1 << rng.randrange(8), 0xFF])
        if at in beside:
            with pytest.raises(CorruptFile, match=r"file 'config\.json': the checksum"):
                list(Reader(io.BytesIO(bytes(broken))).file("config.json"))
            continue
        if at not in owner:
            with pytest.raises(FormatError):
                Reader(io.BytesIO(bytes(broken)))
            continue
        reader = Reader(io.BytesIO(bytes(broken)))
        with pytest.raises(CorruptFile, match=f"tensor '{owner[at]}': the checksum"):
            reader.tensor(owner[at])


def test_bytes_added_or_removed_inside():
    for at in range(0, len(WHOLE), 7):
        refused(WHOLE[:at] + b"\x00" + WHOLE[at:])
        refused(WHOLE[:at] + WHOLE[at + 1 :])
    refused(WHOLE + b"\x00", TruncatedFile, "added to")
    refused(WHOLE + WHOLE, CorruptFile)


@pytest.mark.parametrize(
    "data", [b"PK\x03\x04" + bytes(99), b"\x80\x02}q\x00.", bytes(100), b"\x93NUMPY" + bytes(99)]
)
def test_foreign_files_are_named_as_such(tmp_path, data):
    path = tmp_path / "foreign.esp"
    path.write_bytes(data)
    with pytest.raises(CorruptFile, match=r"foreign\.esp: not an \.esp file: it begins with"):
        read(path)


def test_text_mode_transfer_is_seen():
    refused(WHOLE.replace(b"\r\n", b"\n"), CorruptFile, "not an .esp file")


def test_a_message_names_file_tensor_and_field(tmp_path):
    path = tmp_path / "broken.esp"
    path.write_bytes(one([(0x00, bytes(15))]))
    with pytest.raises(TruncatedFile, match=r"broken\.esp: tensor 'x': values: 4 float32 values"):
        read(path)


def test_damage_in_one_tensor_leaves_the_others():
    with Reader(io.BytesIO(WHOLE)) as reader:
        place = reader.entry("conv")
    broken = bytearray(WHOLE)
    broken[place.offset + 3] ^= 1
    reader = Reader(io.BytesIO(bytes(broken)))
    assert reader.tensor("fc.bias").size == 200
    with pytest.raises(CorruptFile, match="tensor 'conv': the checksum does not match"):
        reader.tensor("conv")


# ---------------------------------------------------------------- lies, checksums made right


def test_mutated_chunks_are_decoded_or_refused():
    rng = random.Random(0)
    reader = Reader(io.BytesIO(WHOLE))
    for place in chunks(reader):
        chunk = WHOLE[place.offset : place.offset + place.length]
        for at in range(0, len(chunk), 1 + len(chunk) // 60):
            broken = bytearray(chunk)
            broken[at] = rng.randrange(256)
            if rng.random() < 0.2:
                broken[rng.randrange(len(chunk))] ^= 1 << rng.randrange(8)
            _decode_chunk(place, bytes(broken))
    reader.close()


def test_swapped_methods_are_decoded_or_refused():
    reader = Reader(io.BytesIO(WHOLE))
    for place in chunks(reader):
        chunk = WHOLE[place.offset : place.offset + place.length]
        for i, stream in enumerate(place.streams):
            for method in range(256):
                streams = list(place.streams)
                streams[i] = layout.StreamEntry(method, stream.length)
                _decode_chunk(place._replace(streams=tuple(streams)), chunk)


def _decode_chunk(place, chunk):
    if _seconds_to_decode(place, chunk) >= SECONDS:
        # A kernel that nothing before had used was compiled: that is not the file's doing.
        assert _seconds_to_decode(place, chunk) < SECONDS


def _seconds_to_decode(place, chunk):
    """Of this thread, whatever else the machine does."""
    start = time.thread_time()
    try:
        if place.kind in ("pack", "file"):
            parts, _ = decode_parts(place, chunk)
            assert parts["values"].shape == place.shape
        else:
            tensor, _ = decode_tensor(place, chunk)
            assert tensor.dense().shape == place.shape
            assert decode_dense(place, chunk).tobytes() == tensor.dense().tobytes()
    except FormatError:
        pass
    return time.thread_time() - start


def test_mutated_directories_are_read_or_refused():
    rng = random.Random(0)
    length = int.from_bytes(WHOLE[-12:-8], "little")
    body, directory = WHOLE[: -12 - length], WHOLE[-12 - length : -12]
    start = time.perf_counter()
    for at in range(len(directory)):
        for value in {0, 1, 127, 128, 255, rng.randrange(256)}:
            broken = bytearray(directory)
            broken[at] = value
            data = body + bytes(broken) + layout.footer(bytes(broken))
            try:
                decode(data)
            except FormatError:
                continue
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        (one([(0, bytes(16))], kind=11), CorruptFile, "tensor 'x': kind 11 is not known"),
        (one([(0, bytes(16))], kind=0), CorruptFile, "kind 0"),
        (one([(0, bytes(16))], dtype=0), CorruptFile, "dtype 0 is not known"),
        (one([(0, bytes(16))], dtype=18), CorruptFile, "dtype 18"),
        (one([(0, bytes(16))], dims=(5,)), TruncatedFile, "should be 20 bytes, not 16"),
        (one([(0, bytes(16))], dims=(3,)), CorruptFile, "should be 12 bytes, not 16"),
        (one([(0, bytes(16))], dims=(1 << 49,)), CorruptFile, "dimension: .* over the limit"),
        (one([(0, b"")], dims=(1 << 48, 1 << 48, 0, 1)), None, None),
        (one([(0, b"")], dims=(1 << 30, 1 << 30)), CorruptFile, "over the limit of 2\\*\\*48"),
        (one([(0, bytes(16))], dims=(1 << 48,)), TruncatedFile, "not 16"),
        (one([(0, bytes(16))], dims=(0,)), CorruptFile, "for no symbols at all"),
        (one([(0x30, bytes(16))]), CorruptFile, "layout 3 of values"),
        (one([(0x1F, bytes(16))]), CorruptFile, "coder id 15 is not known"),
        (one([(0x12, b"\x03" * 16)]), CorruptFile, "byte plane 3 has mode 3"),
        (one([(0x40, bytes(16))]), CorruptFile, "layout 4 of values with coder 0"),
        (one([(0x43, b"\x00")]), CorruptFile, "4 values in 0 runs"),
        (one([(0x43, b"\x05")]), CorruptFile, "runs: 5 is over"),
        (
            one([(0x43, b"\x01\x04\x01\x00\x01\x00" + ONE)]),
            CorruptFile,
            "first run begins at value 1",
        ),
        (one([(0x43, b"\x01\x04\x03\x00\x04\x00" + ONE)]), CorruptFile, "outside the tensor's 4"),
        (one([(0x43, b"\x01\x04\x01\x00\x00\x00" + ONE)]), None, None),
        (
            one([(0x43, b"\x01\x04\x01\x00\x00\x00" + ONE)], dims=(1 << 20,)),
            CorruptFile,
            "in 1 runs",
        ),
        (one([(0x50, bytes(16))]), CorruptFile, "not sound zlib data"),
        (one([(0x50, zlib.compress(bytes(16)))]), None, None),
        (one([(0x50, zlib.compress(bytes(16))[:-1])]), TruncatedFile, "last of 16 bytes"),
        (one([(0x50, zlib.compress(bytes(15)))]), CorruptFile, "not of 16 bytes"),
        (one([(0x50, zlib.compress(bytes(17)))]), CorruptFile, "not of 16 bytes"),
        (one([(0x50, zlib.compress(bytes(1 << 26)))]), CorruptFile, "not of 16 bytes"),
        (one([(0x50, zlib.compress(bytes(16)) + b"x")]), CorruptFile, "followed by others"),
        (
            one([(0x50, zlib.compress(bytes(16)))], dims=(BIG,)),
            CorruptFile,
            "zlib data is not of",
        ),
        (one([(0, b"\x02" * 4)], dtype=15), CorruptFile, "neither 0 nor 1"),
        (one([(0x20, b"\x02")], dtype=15), CorruptFile, "neither 0 nor 1"),
        (one([(0, bytes(16))], name=b"\xff"), CorruptFile, "not UTF-8"),
        (one([(0, bytes(16))], name=b"y" * 1025), CorruptFile, "over the limit of 1024"),
        (assemble([entry(), entry()], bytes(32)), CorruptFile, "two tensors are called 'x'"),
        (assemble([entry()], bytes(15)), CorruptFile, "chunks end at byte 25, and it begins at 24"),
        (assemble([entry()], bytes(17)), CorruptFile, "chunks end at byte 25"),
        (assemble([entry(streams=[(0, 1 << 62)])]), CorruptFile, "chunks end at byte"),
        (assemble([entry()], bytes(16), number=9), CorruptFile, "number of entries: 9 is over"),
        (assemble([entry()], bytes(16), number=1 << 40), CorruptFile, "number of entries"),
        (assemble([entry()], bytes(16), number=0), TruncatedFile, "section 1"),
        (assemble([], features=b"\x01\x06rANS-9"), UnsupportedVersion, "needs 'rANS-9'"),
        (assemble([], features=b"\x02\x01a\x01\xff"), UnsupportedVersion, "'a', '.*xff'"),
        (assemble([], features=b"\x05"), TruncatedFile, "feature name"),
        (assemble([entry(), b"\x00\x00\x01y\x05\x01"], bytes(16)), CorruptFile, "1 are before it"),
        (assemble([b"\x00\x00\x01y\x05\x00"]), CorruptFile, "copy of entry 0, and 0 are"),
        (assemble([b"\x00\x00\x01y\x05"]), TruncatedFile, "original"),
        (one([(0, bytes(16))], kind=7), CorruptFile, "a pack has no name"),
        (one([(0, bytes(16))], kind=7, name=b"", dims=(2, 2)), CorruptFile, "and is 1-D"),
        (one([(0, bytes(16))], kind=7, name=b"", dims=(65537,)), CorruptFile, "2\\*\\*16"),
        (packed((), 16), CorruptFile, "a pack of 4 float32 elements is not filled"),
        (packed([(1, (3,))], 16), CorruptFile, "not filled"),
        (packed([(1, (2, 2))], 16), None, None),
        (packed([(1, (2, 2)), (1, ())], 16), CorruptFile, "'1': it has no elements in a pack"),
        (packed([(1, (5,))], 16), CorruptFile, "'0': elements 0 on are not in a pack of 4"),
        (packed([(1, (3,)), (1, (2,))], 16), CorruptFile, "'1': elements 3 on are not in"),
        (packed([(1, (1 << 48,))], 16), CorruptFile, "not in a pack of 4"),
        (packed([(1, (0,)), (1, (4,))], 16), CorruptFile, "'0': it has no elements"),
        (packed([(4, (4,))], 16), CorruptFile, "no elements in a pack of float64"),
        (packed([(1, (4,))], 12), TruncatedFile, "pack of tensor '0': values: 4 float32"),
        (assemble([b"\x00\x00\x01y\x15\x00"]), CorruptFile, "copy and has 1 dimensions"),
        (
            assemble([entry(), b"\x00\x00\x01y\x05\x00", b"\x00\x00\x01z\x05\x01"], bytes(16)),
            CorruptFile,
            "copy of entry 1, which is a copy",
        ),
        (
            assemble([entry(kind=6, dtype=11), b"\x00\x00\x01y\x05\x00"], bytes(16)),
            CorruptFile,
            "copy of entry 0, which is a file",
        ),
        (
            assemble(
                [entry(kind=6, dtype=11)], bytes(16), sections=b"\x01\x06\x01\x00\x00\x01a\x00"
            ),
            CorruptFile,
            "alias 'a' is of entry 0, which is a file",
        ),
        (one([(0, bytes(16))], kind=6), CorruptFile, "a file is 1-D uint8, not 1-D float32"),
        (one([(0, bytes(4))], kind=6, dtype=11, dims=(2, 2)), CorruptFile, "not 2-D uint8"),
        (one([(0x20, b"a")], kind=6, dtype=11, dims=(1 << 25,)), CorruptFile, "limit of 2..24"),
        (
            assemble([entry(kind=6, dtype=11), entry(b"y"), entry(kind=6, dtype=11)], bytes(48)),
            CorruptFile,
            "the pieces of the file 'x' do not follow each other",
        ),
        (assemble([], sections=b"\x02\x02[]"), CorruptFile, "JSON list, not an object"),
        (assemble([], sections=b"\x02\x01{"), CorruptFile, "metadata is not JSON"),
        (assemble([], sections=b"\x02\x01\xff"), CorruptFile, "metadata is not JSON"),
        (assemble([], sections=b"\x02" + text(b"[" * 99999)), CorruptFile, "metadata is not JSON"),
        (assemble([], sections=b"\x02\x02{}" * 2), CorruptFile, "section 2 is there twice"),
        (assemble([], sections=b"\x02\x7f{}"), TruncatedFile, "section 2"),
        (assemble([], sections=b"\x63\x02ab"), None, None),  # unknown sections are passed over
        (assemble([], sections=b"\x01\x05\x01\x00\x00\x01a"), TruncatedFile, "alias 'a': tensor"),
        (assemble([], sections=b"\x01\x06\x01\x00\x00\x01a\x00"), CorruptFile, "there are 0"),
        (assemble([], sections=b"\x01\x80\x00"), CorruptFile, "shortest form"),
        (assemble([], sections=b"\x01" + b"\xff" * 12), CorruptFile, "more than 63 bits"),
    ],
)
def test_lies_in_the_directory(data, error, match):
    if error is None:
        structured.both_ways(data)
        decode(data)
    else:
        refused(data, error, match)


def test_an_alias_may_not_hide_a_tensor():
    section = b"\x01" + text(b"\x01\x00\x01\x00")  # the name "x" again, as rest 1
    refused(assemble([entry(crc=zlib.crc32(bytes(16)))], bytes(16), sections=section), CorruptFile)


def test_other_versions_are_refused_by_number():
    data = bytearray(WHOLE)
    data[8] = 1
    refused(bytes(data), UnsupportedVersion, "version 1, and this reader knows 2")


LONE = b"\x00\x00"  # a Huffman table of the symbol 0 only
FLOATS = np.zeros(4, "<f4").tobytes()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        # codes: no bits for them, a table that is none, a symbol outside, a codebook of nothing
        (one([(0x01, b""), (0, FLOATS)], kind=3, dims=(1 << 40,), counts=(4,)), "codes"),
        (one([(0x02, b"\x00"), (0, FLOATS)], kind=3, counts=(4,)), "codes"),
        (one([(0x02, b"\x09\x00"), (0, FLOATS)], kind=3, counts=(4,)), "codes: first symbol"),
        (one([(0x02, LONE + b"\x00"), (0, FLOATS)], kind=3, counts=(4,)), "codes"),
        (one([(0x12, LONE), (0, FLOATS)], kind=3, counts=(4,)), "layout 1 of codes"),
        (one([(0x01, b"\x00"), (0, b"")], kind=3, counts=(0,)), "codebook of no levels"),
        (one([(0x01, b"\xff"), (0, FLOATS[:12])], kind=3, counts=(3,)), "outside the alphabet"),
        (one([(0x01, b"\x00"), (0, FLOATS)], kind=3, counts=(65537,)), "levels: 65537"),
        # positions: more than elements, outside, unpaid for
        (one([(0x01, b"\x01\x00"), (0, FLOATS)], kind=2, counts=(5,)), "kept elements: 5 is over"),
        (one([(0x01, b"\x01\x07"), (0, FLOATS)], kind=2, counts=(4,)), "outside the tensor's 4"),
        (one([(0x01, b"\x00\x00"), (0, FLOATS)], kind=2, counts=(4,)), "gap width is 0"),
        (one([(0x01, b"\x21" + bytes(17)), (0, FLOATS)], kind=2, counts=(4,)), "gap width is 33"),
        (one([(0x12, b"\x08\x00" + LONE), (0, FLOATS)], kind=2, counts=(4,)), "gap split is 8"),
        (one([(0x12, b"\x21\x00" + LONE), (0, FLOATS)], kind=2, counts=(4,)), "gap split is 1, 2"),
        (one([(0x12, b"\x01\x7f" + LONE), (0, FLOATS)], kind=2, counts=(4,)), "raw bits"),
        (one([(0x22, b"\x07\x00"), (0, FLOATS)], kind=2, counts=(4,)), "holds 3 positions, not 4"),
        (
            one([(0x22, b"\xf0\x01\x00"), (0, FLOATS)], kind=2, counts=(4,)),
            "outside the tensor's 4",
        ),
        (one([(0x32, LONE), (0, FLOATS)], kind=2, counts=(4,)), "layout 3 of positions"),
    ],
)
def test_lies_in_the_streams(data, match):
    refused(data, FormatError, match)


@pytest.mark.parametrize(
    "data",
    [
        one([(0x20, bytes(4))], dims=(BIG,)),
        one([(0x12, b"\x02\x00" * 4)], dims=(BIG,)),
        one([(0x12, b"\x02\x00" * 3 + b"\x01\x02" + LONE)], dims=(BIG,)),
        one([(0x02, LONE), (0x20, FLOATS[:4])], kind=3, dims=(BIG,), counts=(65536,)),
        one([(0x01, b""), (0, FLOATS[:4])], kind=3, dims=(BIG,), counts=(1,)),
        one([(0x12, b"\x01\x00" + LONE), (0x20, bytes(4))], kind=2, dims=(BIG,), counts=(4000,)),
    ],
    ids=["constant", "planes", "coded planes", "codes", "no width", "positions"],
)
def test_what_a_few_bytes_may_declare_takes_no_memory_until_it_is_dense(data):
    tracemalloc.start()
    start = time.perf_counter()
    decode(data)
    assert time.perf_counter() - start < SECONDS
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


@pytest.mark.parametrize("dtype", sorted(DTYPE_IDS))
def test_one_value_of_any_type_may_be_declared_any_number_of_times(dtype):
    width = storage_dtype(dtype).itemsize
    planes = width // 2 if dtype.startswith("complex") else width
    for stream in ((0x20, b"\x01" * width), (0x12, b"\x02\x01" * planes)):
        decode(one([stream], dtype=DTYPE_IDS[dtype], dims=(4,)))  # compiles what it takes
        start = time.perf_counter()
        decode(one([stream], dtype=DTYPE_IDS[dtype], dims=(BIG,)))
        assert time.perf_counter() - start < SECONDS


@pytest.mark.parametrize(
    "data",
    [
        one([(0x12, b"\x01\x00" + LONE), (0x20, bytes(4))], kind=2, dims=(BIG,), counts=(1 << 40,)),
        one([(0x01, b"\x01"), (0x20, bytes(4))], kind=2, dims=(BIG,), counts=(4000,)),
        one([(0x22, LONE), (0x20, bytes(4))], kind=2, dims=(BIG,), counts=(1,)),
        one([(0x22, b"\xff\x01\x00"), (0x20, bytes(4))], kind=2, dims=(BIG,), counts=(4000,)),
        one([(0x02, b"\x00\x01\x00" + bytes(50)), (0, FLOATS)], kind=3, dims=(BIG,), counts=(4,)),
        one([(0x01, bytes(50)), (0, FLOATS)], kind=3, dims=(BIG,), counts=(4,)),
        one([(0x00, bytes(50))], dims=(BIG,)),
        one([(0x12, b"\x00" + bytes(50))], dims=(BIG,)),
        one([(0x12, (b"\x01\x05" + b"\x00\x01\x00" + bytes(2)) * 4)], dims=(BIG,)),
        assemble([entry(streams=[(0, 1 << 40)])]),
        assemble([], sections=b"\x02" + varint(1 << 40)),
    ],
)
def test_bombs_are_refused_without_memory(data):
    tracemalloc.start()
    message = refused(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "the file: " in message
    assert peak < 3_000_000


def test_a_footer_that_points_outside():
    directory = b"\x00\x00"
    for length in (3, 1 << 20, (1 << 32) - 1):
        footer = length.to_bytes(4, "little") + bytes(4) + layout.END_MAGIC
        refused(layout.header() + directory + footer, CorruptFile, "does not fit")
    refused(layout.header() + layout.header() + layout.footer(b""), TruncatedFile, "features")


def test_random_bytes_after_a_right_header():
    rng = np.random.default_rng(0)
    for n in range(0, 400, 3):
        noise = rng.integers(0, 256, n).astype("u1").tobytes()
        refused(layout.header() + noise)
        refused(layout.header() + noise + layout.footer(noise))


def test_metadata_with_an_absurd_number():
    data = json.dumps({"a": "b"}).replace('"b"', "9" * 10_000).encode()
    refused(assemble([], sections=b"\x02" + text(data)), CorruptFile, "metadata is not JSON")


def test_many_names_out_of_few_bytes_stay_within_their_limit():
    long = b"n" * 1000
    fields = bytes([1 | 1 << 4, 1, 0, 0, 0, 0, 0, 0, 0])
    first = b"\x00\x00" + text(long) + fields
    more = [varint(1000) + b"\x00" + text(b"%d" % i) + fields for i in range(2000)]
    tracemalloc.start()
    decode(assemble([first, *more]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000
