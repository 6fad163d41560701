"""``espalier convert`` as a process, and on the published file."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from espalier.container import Reader

REAL = Path(os.environ.get("ESPALIER_DATA", "")) / "squeezenet_deep_compression"
NET, PROTOTXT = REAL / "compressed_SqueezeNet.net", REAL / "SqueezeNet_deploy.prototxt"
needs_real = pytest.mark.skipif(not NET.is_file(), reason="needs the published SqueezeNet")

TINY = """input: "data" input_dim: 1 input_dim: 1 input_dim: 9 input_dim: 9
layer { name: "c" type: "Convolution" bottom: "data" top: "c"
  convolution_param { num_output: 1 kernel_size: 9 } }
"""


@pytest.fixture
def tiny(tmp_path):
    """One filter of 81 weights: 0.5 at place 40, after two fillers; a bias of 7."""
    head = struct.pack("<I257f", 3, 0.0, *[i / 2 for i in range(1, 256)], 7.0)
    (tmp_path / "tiny.net").write_bytes(head + bytes([0, 0, 1]) + bytes([0xFF, 8]))
    (tmp_path / "tiny.prototxt").write_text(TINY)
    return tmp_path / "tiny.net", tmp_path / "tiny.prototxt"


def test_convert_says_what_it_did(espalier, tiny, tmp_path):
    net, prototxt = tiny
    esp, back = tmp_path / "tiny.esp", tmp_path / "tiny.safetensors"
    done = espalier("convert", net, "--prototxt", prototxt, "-o", esp)
    assert done.status == 0, done
    assert "of 3 entries 2 were fillers, which disappear" in done.out
    assert f"{esp}: {esp.stat().st_size:,} bytes" in done.out
    assert espalier("decompress", esp, "-o", back, "-q").status == 0
    got = load_file(back)
    weight = np.zeros(81, np.float32)
    weight[40] = 0.5
    assert np.array_equal(got["c.weight"], weight.reshape(1, 1, 9, 9))
    assert got["c.bias"].tolist() == [7.0]
    done = espalier("convert", net, "--prototxt", prototxt, "-o", esp, "--force", "--json")
    assert json.loads(done.out) | {"ratio": 0} == {
        "input": str(net),
        "output": str(esp),
        "input_bytes": net.stat().st_size,
        "output_bytes": esp.stat().st_size,
        "ratio": 0,
        "original_bytes": 4 * 82,
        "tensors": 2,
        "entries": 3,
        "fillers": 2,
    }
    assert espalier("convert", net, "--prototxt", prototxt, "-o", esp, "-fq").out == ""


def test_what_is_refused_leaves_nothing(fails, tiny, tmp_path):
    net, prototxt = tiny
    esp = tmp_path / "out.esp"
    assert "needs --prototxt" in fails("convert", net, "-o", esp, status=2)
    assert "no such file" in fails("convert", "no.net", "--prototxt", prototxt, "-o", esp)
    line = fails("convert", prototxt, "--prototxt", prototxt, "-o", esp)
    assert "is this a Deep Compression file" in line
    assert "not a network's description" in fails("convert", net, "--prototxt", net, "-o", esp)
    line = fails("convert", net, "--prototxt", prototxt, "-o", esp, "--coder", "zip")
    assert "no coder is called 'zip'" in line
    assert not esp.exists()
    esp.write_bytes(b"precious")
    assert "--force" in fails("convert", net, "--prototxt", prototxt, "-o", esp)
    assert esp.read_bytes() == b"precious"


SHAPES = {
    "conv1": (96, 3, 7),
    **{
        f"fire{i}/{name}": shape
        for i, (into, squeeze, expand) in enumerate(
            [(96, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128)]
            + [(256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256)],
            2,
        )
        for name, shape in [
            ("conv1x1_1", (squeeze, into, 1)),
            ("conv1x1_2", (expand, squeeze, 1)),
            ("conv3x3_2", (expand, squeeze, 3)),
        ]
    },
    "conv_final": (1000, 512, 1),
}


def plain_decoder(data):
    """The published layout, one entry at a time: name, weights and biases of each layer."""
    counts = struct.unpack_from(f"<{len(SHAPES)}I", data)
    at = 4 * len(counts)
    for (name, (filters, into, kernel)), n in zip(SHAPES.items(), counts, strict=True):
        book = struct.unpack_from("<256f", data, at)
        biases = struct.unpack_from(f"<{filters}f", data, at + 1024)
        codes = at + 1024 + 4 * filters
        weights = [0.0] * (filters * into * kernel * kernel)
        place = -1
        for j in range(n):
            place += 1 + (data[codes + n + j // 2] >> 4 * (j % 2) & 15)
            weights[place] = book[data[codes + j]]
        yield name, np.array(weights, "<f4").reshape(filters, into, kernel, kernel), biases
        at = codes + n + (n + 1) // 2
    assert at == len(data)


@needs_real
def test_the_published_squeezenet_keeps_every_weight(espalier, tmp_path):
    esp = tmp_path / "squeezenet.esp"
    done = espalier("convert", NET, "--prototxt", PROTOTXT, "-o", esp, "--coder", "huffman")
    assert done.status == 0, done
    assert "of 422,083 entries 6,162 were fillers" in done.out
    assert esp.stat().st_size <= 545_000
    data = NET.read_bytes()
    with Reader(esp) as reader:
        assert reader.names() == [f"{n}.{part}" for n in SHAPES for part in ("weight", "bias")]
        at = 4 * len(SHAPES)
        for name, weights, biases in plain_decoder(data):
            tensor = reader.tensor(f"{name}.weight")
            dense = tensor.dense()
            assert dense.shape == weights.shape
            assert dense.tobytes() == weights.tobytes()  # bit for bit
            assert np.array_equal(reader.tensor(f"{name}.bias").dense(), np.float32(biases))
            assert tensor.codebook.tobytes() == data[at : at + 1024]
            entries = struct.unpack_from("<I", data, 4 * list(SHAPES).index(name))[0]
            codes = data[at + 1024 + 4 * len(biases) :][:entries]
            assert bytes(tensor.codes) == codes.replace(b"\0", b"")
            at += 1024 + 4 * len(biases) + entries + (entries + 1) // 2
