"""The original Deep Compression file: tiny ones made by hand, and descriptions of networks."""

import struct

import numpy as np
import pytest

from espalier.errors import CorruptFile, FormatError, InvalidArgument, TruncatedFile
from espalier.interop.deep_compression import read_deep_compression
from espalier.interop.prototxt import convolutions, parse
from espalier.state import SparseCodebook

PROTOTXT = """
name: "two"  # a comment
input: "data"
input_dim: 1
input_dim: 2
input_dim: 5
input_dim: 5
layer {
  name: "a" type: "Convolution" bottom: "data" top: "a"
  convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: "xavier" } }
}
layer { name: "r" type: "ReLU" bottom: "a" top: "a" }
layer {
  name: "b/c" type: "Convolution" bottom: "a" top: "b"
  convolution_param { num_output: 40 kernel_size: 1 }
}
"""
BOOK_A = [0.0] + [i / 8 for i in range(1, 256)]
BOOK_B = [0.0] + [-float(i) for i in range(1, 256)]
# Of a's 54 weights: codes 1, 2, 3, 7 at places 0, 4, 23, 24, and a filler at 20. An odd number.
ENTRIES_A = [(1, 0), (2, 3), (0, 15), (3, 2), (7, 0)]
# Of b's 120 weights: codes 255 and 1 at places 15 and 119, and six fillers between them.
ENTRIES_B = [(255, 15), *[(0, 15)] * 6, (1, 7)]


def net(*layers):
    """A ``.net`` file of (codebook, biases, entries) for each layer."""
    parts = [struct.pack("<I", len(entries)) for _, _, entries in layers]
    for book, biases, entries in layers:
        gaps = [gap for _, gap in entries] + [9] * (len(entries) % 2)  # the last half is unused
        parts.append(struct.pack("<256f", *book))
        parts.append(struct.pack(f"<{len(biases)}f", *biases))
        parts.append(bytes(code for code, _ in entries))
        parts.append(bytes(gaps[i] | gaps[i + 1] << 4 for i in range(0, len(gaps), 2)))
    return b"".join(parts)


def two(entries_a=ENTRIES_A, book_a=BOOK_A):
    return net((book_a, [1, 2, 3], entries_a), (BOOK_B, list(range(40)), ENTRIES_B))


def put(folder, data, prototxt=PROTOTXT):
    (folder / "x.net").write_bytes(data)
    (folder / "x.prototxt").write_text(prototxt)
    return folder / "x.net", folder / "x.prototxt"


def test_a_file_made_by_hand(tmp_path):
    found = read_deep_compression(*put(tmp_path, two()))
    assert found.model.names() == ["a.weight", "a.bias", "b/c.weight", "b/c.bias"]
    assert (found.entries, found.fillers) == (13, 7)
    a, b = found.model["a.weight"], found.model["b/c.weight"]
    assert isinstance(a, SparseCodebook)
    assert a.codes.tolist() == [1, 2, 3, 7]
    assert a.codebook.tolist() == BOOK_A
    dense = np.zeros(54, np.float32)
    dense[[0, 4, 23, 24]] = [0.125, 0.25, 0.375, 0.875]
    assert np.array_equal(a.dense(), dense.reshape(3, 2, 3, 3))
    dense = np.zeros(120, np.float32)
    dense[[15, 119]] = [-255, -1]
    assert np.array_equal(b.dense(), dense.reshape(40, 3, 1, 1))
    assert found.model["a.bias"].dense().tolist() == [1, 2, 3]
    assert found.model["b/c.bias"].dense().tolist() == list(range(40))


def test_a_layer_without_entries(tmp_path):
    found = read_deep_compression(*put(tmp_path, two(entries_a=[])))
    assert not found.model["a.weight"].dense().any()
    assert found.model["a.weight"].shape == (3, 2, 3, 3)


def test_a_code_0_with_a_short_gap_is_a_zero_like_any_other(tmp_path):
    found = read_deep_compression(*put(tmp_path, two(entries_a=[(0, 2), (1, 0)])))
    assert np.flatnonzero(found.model["a.weight"].dense()).tolist() == [3]


def test_an_entry_behind_the_last_weight(tmp_path):
    assert len(read_deep_compression(*put(tmp_path, two([(1, 15)] * 3 + [(1, 5)]))).model.tensors)
    with pytest.raises(CorruptFile, match=r"x\.net: layer 'a': its last entry lies at 54, and"):
        read_deep_compression(*put(tmp_path, two([(1, 15)] * 3 + [(1, 6)])))


@pytest.mark.parametrize("zero", [1.0, -0.0, float("nan")])
def test_entry_0_of_the_codebook_must_be_zero(tmp_path, zero):
    with pytest.raises(CorruptFile, match=r"entry 0 of the codebook is .*, not 0"):
        read_deep_compression(*put(tmp_path, two(book_a=[zero, *BOOK_A[1:]])))


def test_lengths_that_are_wrong(tmp_path):
    data = two()
    with pytest.raises(TruncatedFile, match=rf"{len(data) - 1} bytes, and {len(data)} are needed"):
        read_deep_compression(*put(tmp_path, data[:-1]))
    with pytest.raises(CorruptFile, match=f"{len(data)} are needed"):
        read_deep_compression(*put(tmp_path, data + b"x"))
    with pytest.raises(TruncatedFile, match="7 bytes are too few for 2 convolutions"):
        read_deep_compression(*put(tmp_path, data[:7]))
    with pytest.raises(CorruptFile, match="layer 'a': 4294967295 entries for 54 weights"):
        read_deep_compression(*put(tmp_path, b"\xff" * len(data)))


def test_files_that_are_missing(tmp_path):
    path, prototxt = put(tmp_path, two())
    with pytest.raises(InvalidArgument, match="no such file"):
        read_deep_compression(tmp_path / "y.net", prototxt)
    with pytest.raises(InvalidArgument, match="no such file"):
        read_deep_compression(path, tmp_path)


# ---------------------------------------------------------------- descriptions

INPUT = 'input: "x" input_shape { dim: 1 dim: 8 dim: 7 dim: 7 }\n'


def layer(param, bottom="x", name="c", kind="Convolution"):
    return (
        f"layer {{ name: '{name}' type: '{kind}' bottom: '{bottom}' top: '{name}'\n"
        f"convolution_param {{ {param} }} }}\n"
    )


@pytest.mark.parametrize(
    ("param", "shape"),
    [
        ("num_output: 4 kernel_size: 3", (4, 8, 3, 3)),
        ("num_output: 4 kernel_size: 3 group: 2", (4, 4, 3, 3)),
        ("num_output: 8, group: 8, kernel_size: 5;", (8, 1, 5, 5)),
        ("num_output: 4 kernel_size: 3 kernel_size: 5", (4, 8, 3, 5)),
        ("num_output: 4 kernel_h: 1 kernel_w: 7", (4, 8, 1, 7)),
        ("num_output: 4 kernel_size: 1 bias_term: true pad: 0 stride: 2", (4, 8, 1, 1)),
    ],
)
def test_shapes_of_convolutions(param, shape):
    (found,) = convolutions(INPUT + layer(param))
    assert (found.name, found.shape) == ("c", shape)


def test_channels_are_followed_through_joins_and_layers_without_weights():
    text = (
        "layer { name: 'd' type: 'Input' top: 'x' input_param { shape: { dim: 1 dim: 3 "
        "dim: 9 dim: 9 } } }"
        + layer("num_output: 4 kernel_size: 1", name="left")
        + layer("num_output: 6 kernel_size: 1", name="right")
        + "layer { name: 'j' type: 'Concat' bottom: 'left' bottom: 'right' bottom: 'x' top: 'j' }"
        + "layer { name: 'p' type: 'Pooling' bottom: 'j' top: 'p' pooling_param { pool: MAX } }"
        + layer("num_output: 2 kernel_size: 1", bottom="p")
    )
    assert [(c.name, c.shape[:2]) for c in convolutions(text)] == [
        ("left", (4, 3)),
        ("right", (6, 3)),
        ("c", (2, 13)),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (INPUT + layer("num_output: 4"), "kernel_h is missing"),
        (INPUT + layer("kernel_size: 4"), "num_output is missing"),
        (
            INPUT + layer("num_output: 4 num_output: 4 kernel_size: 1"),
            "num_output is there 2 times",
        ),
        (INPUT + layer("num_output: 0 kernel_size: 1"), "is '0', not a number from 1"),
        (INPUT + layer("num_output: -4 kernel_size: 1"), "is '-4', not a number from 1"),
        (INPUT + layer("num_output: 4294967296 kernel_size: 1"), "not a number from 1"),
        (INPUT + layer("num_output: ٤ kernel_size: 1"), "not a number from 1"),
        (INPUT + layer("num_output: 4 kernel_size { }"), "kernel_size is a block, not a value"),
        (INPUT + layer("num_output: 4 kernel_size: 1 group: 3"), "3 groups divide neither"),
        (INPUT + layer("num_output: 4 kernel_size: 1 bias_term: false"), "without biases"),
        (INPUT + layer("num_output: 4 kernel_size: 1 kernel_h: 1"), "more than one size"),
        (INPUT + layer("num_output: 4 kernel_size: 1", bottom="y"), "makes its bottom 'y'"),
        (INPUT + 2 * layer("num_output: 4 kernel_size: 1"), "two convolutions are called 'c'"),
        (INPUT + layer("", kind="InnerProduct"), "type 'InnerProduct' is not understood"),
        (INPUT + "layers { name: 'old' type: CONVOLUTION }", "old format"),
        (INPUT + "layer { name: 'c' type: 'ReLU' }", "has no bottom"),
        (INPUT + "layer { type: 'ReLU' }", "name is missing"),
        (INPUT + "layer: 3", "layer is a value, not a block"),
        ("input: 'x'", "1 inputs, and 0 shapes"),
        ("input: 'x' input_dim: 1 input_dim: 3", "has 2 dimensions, not 4"),
    ],
)
def test_descriptions_that_are_refused(text, says):
    with pytest.raises(FormatError, match=says):
        convolutions(text)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("a: 1\nb {", TruncatedFile, "line 2: ends inside b of line 2"),
        ("a", TruncatedFile, "line 1: 'a' has no value"),
        ("a:", TruncatedFile, "'a' has no value"),
        ("a: }", CorruptFile, "'a' has no value"),
        ("}", CorruptFile, "'}' stands where a name should"),
        ("'a': 1", CorruptFile, "stands where a name should"),
        ("a: 'open\n", CorruptFile, "is not understood"),
        ("\n\na: [1, 2]", CorruptFile, "line 3: .* is not understood"),
        ("\x89PNG\x00", CorruptFile, "is not understood"),
        ("a {" * 100, CorruptFile, "over 32 blocks inside each other"),
    ],
)
def test_text_that_is_no_description(text, error, says):
    with pytest.raises(error, match=says):
        parse(text)
