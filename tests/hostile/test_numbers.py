"""Fixed-point tensors whose fields contradict each other: one clear error, at once."""

import importlib.util
import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from espalier.container import Reader, layout, write
from espalier.errors import CorruptFile, FormatError, InvalidArgument, TruncatedFile
from espalier.fixed_point import FixedPoint, SparseFixedPoint, grid_shape
from espalier.state import CompressedModel

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("structured", HERE / "structured.py")
structured = importlib.util.module_from_spec(_spec)
sys.modules["structured"] = structured
_spec.loader.exec_module(structured)
assemble, take_apart = structured.assemble, structured.take_apart

ONE, ZERO = np.ones(2, "<f4"), np.zeros(2, "<i2")
CODES = np.arange(12, dtype="u1") % 7


def tensor(**changes):
    fields = {"codes": CODES, "scales": ONE, "zeros": ZERO, "block": (1, 6)}
    numbers = {"first": -3, "stride": 1, "levels": 7}
    return FixedPoint((2, 6), "float32", **(fields | numbers | changes))


def part():
    file = io.BytesIO()
    write(CompressedModel({"x": tensor()}), file, coder="fixed")
    return take_apart(file.getvalue())[0]


def decode(changed):
    with Reader(io.BytesIO(assemble([changed]))) as reader:
        return reader.tensor("x").dense()


def stream(changed, at, method, body):
    streams = list(changed.streams)
    streams[at] = method, body
    return replace(changed, streams=tuple(streams))


def test_it_is_sound_before_it_is_changed():
    assert decode(part()).tolist() == tensor().dense().tolist()


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ((5, 1, 1, 5), "blocks of \\(1, 5\\) do not divide a tensor of shape \\(2, 6\\)"),
        ((5, 1, 0, 6), "blocks of \\(0, 6\\) do not divide"),
        ((5, 1, 1, 12), "do not divide"),
        ((5, 0, 1, 6), "in steps of 0"),
        ((5, 1 << 16, 1, 6), "numbers from -3 to"),
        ((2 << 16, 1, 1, 6), "numbers from 65536 to 65542"),
        ((2 << 17, 1, 1, 6), "first number: .* over the limit"),
        ((5, 1, 1 << 50, 6), "block: .* over the limit"),
    ],
)
def test_numbers_that_cannot_be(numbers, match):
    with pytest.raises(CorruptFile, match=match):
        decode(replace(part(), numbers=numbers))


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        (lambda p: replace(p, levels=6), CorruptFile, "codes"),
        (lambda p: replace(p, levels=0), FormatError, "no levels"),
        (lambda p: replace(p, dtype=9), CorruptFile, "fixed-point tensors are float16, .* int32"),
        (lambda p: stream(p, 1, 0, bytes(8)), CorruptFile, "scale must be finite and above 0"),
        (
            lambda p: stream(p, 1, 0, np.array([1, np.inf], "<f4").tobytes()),
            CorruptFile,
            "scale must be finite",
        ),
        (lambda p: stream(p, 1, 0, bytes(4)), TruncatedFile, "scales: 2 float32 values"),
        (lambda p: stream(p, 2, 0, bytes(6)), CorruptFile, "zeros: 2 int16 values"),
    ],
)
def test_streams_that_do_not_fit(changed, error, match):
    with pytest.raises(error, match=match):
        decode(changed(part()))


def test_a_huge_constant_is_refused_or_cheap():
    huge = replace(part(), shape=(1 << 24, 1 << 24), numbers=(5, 1, 1, 1))
    huge = stream(huge, 0, 2 | 0, b"\x03\x00")  # Huffman: all codes are 3
    huge = stream(huge, 1, 0x20, b"\x00\x00\x80\x3f")  # all scales are 1
    huge = stream(huge, 2, 0x20, b"\x00\x00")
    with Reader(io.BytesIO(assemble([huge]))) as reader:
        found = reader.tensor("x")
    assert found.slice((5, slice(0, 3))).tolist() == [0.0, 0.0, 0.0]


def test_the_feature_is_named():
    data = assemble([part()])
    start = data.index(b"\x01\x0bfixed-point")
    directory = b"\x00" + data[start + 13 : -12]
    lying = data[:start] + directory + layout.footer(directory)
    with pytest.raises(CorruptFile, match="does not need 'fixed-point'"):
        Reader(io.BytesIO(lying))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"block": (1, 4)}, "do not divide"),
        ({"scales": ONE[:1]}, "scales must be 2 float32"),
        ({"scales": ONE.astype("<f8")}, "not float64"),
        ({"scales": -ONE}, "finite and above 0"),
        ({"zeros": ZERO.astype("<i4")}, "zeros must be 2 int16"),
        ({"codes": CODES[:5]}, "5 codes for 12 elements"),
        ({"codes": CODES.astype("<i4")}, "uint8 or uint16"),
        ({"levels": 6}, "code 6 is outside levels: 6"),
        ({"first": -70000}, "are not within -65536 and 65536"),
        ({"stride": 0}, "in steps of 0"),
    ],
)
def test_what_is_no_tensor(changes, match):
    with pytest.raises(InvalidArgument, match=match):
        tensor(**changes)


def test_positions_and_shapes():
    fields = CODES[:2], ONE, ZERO, (1, 6), -3, 1, 7, np.array([5, 4])
    with pytest.raises(InvalidArgument, match="rise strictly"):
        SparseFixedPoint((2, 6), "float32", *fields)
    with pytest.raises(InvalidArgument, match="float16, bfloat16, float32, float64, not int8"):
        FixedPoint((2, 6), "int8", CODES, ONE, ZERO, (1, 6), -3, 1, 7)
    assert grid_shape((0, 3), (1, 3)) == (0, 1)
