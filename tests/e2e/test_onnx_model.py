"""``.onnx`` through the command line."""

import json
import subprocess
import sys

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402


@pytest.fixture
def model(tmp_path):
    """A linear layer that can be computed."""
    weight = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "fc.weight", "fc.bias"], ["y"], transB=1)],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 48])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [
            numpy_helper.from_array(weight, "fc.weight"),
            numpy_helper.from_array(np.arange(64, dtype=np.float32), "fc.bias"),
        ],
    )
    onnx.save(helper.make_model(graph), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_exact_and_lossy(espalier, fails, model, tmp_path):
    esp, back = tmp_path / "net.esp", tmp_path / "back.onnx"
    done = espalier("compress", model, "-o", esp, "--bits", "none")
    assert done.status == 0, done
    assert espalier("decompress", esp, "-o", back, "-q").status == 0
    assert onnx.load(back) == onnx.load(model)
    assert "2 tensors equal, 0 not" in espalier("verify", esp, "--against", model).out
    metadata = json.loads(espalier("inspect", esp, "--json").out)["metadata"]
    assert metadata["original"]["format"] == "onnx"

    done = espalier("compress", model, "-o", esp, "--bits", "4", "-fq")
    assert espalier("decompress", esp, "-o", back, "-fq").status == 0
    onnx.checker.check_model(back, full_check=True)
    x = np.ones((1, 48), np.float32)
    (want,), (got,) = (ReferenceEvaluator(str(path)).run(None, {"x": x}) for path in (model, back))
    assert 0 < np.linalg.norm(want - got) < 0.2 * np.linalg.norm(want)
    # Another network, or another graph.
    changed = onnx.load(model)
    changed.graph.node[0].attribute[0].i = 0
    onnx.save(changed, model)
    assert "file 'graph.onnx' differs" in fails("verify", esp, "--against", model)
    model.write_bytes(model.read_bytes()[:100])
    assert "net.onnx: not a whole ONNX model" in fails("compress", model, "-o", esp, "-f")


def test_convert_by_codebook(espalier, model, tmp_path):
    esp, small = tmp_path / "net.esp", tmp_path / "small.onnx"
    assert espalier("compress", model, "-o", esp, "--density", "0.2", "-q").status == 0
    done = espalier("convert", esp, "-o", small)
    assert done.status == 0, done
    assert "weights: 1 by gaps" in done.out
    assert small.stat().st_size < 0.4 * model.stat().st_size
    onnx.checker.check_model(small, full_check=True)
    whole = tmp_path / "whole.onnx"
    assert espalier("decompress", esp, "-o", whole, "-q").status == 0
    x = np.ones((2, 48), np.float32)
    outputs = [ReferenceEvaluator(str(path)).run(None, {"x": x})[0] for path in (small, whole)]
    assert np.array_equal(*outputs)


def test_convert_to_int8(espalier, tmp_path, network_source):
    (tmp_path / "mine.py").write_text(network_source)
    here = {"cwd": tmp_path}
    code = "import torch, mine; torch.save(mine.model().state_dict(), 'net.pt')"
    subprocess.run([sys.executable, "-c", code], check=True, **here)
    data = ("--model", "mine:model", "--weights", "int8", "--data", "mine:data", "--samples", "300")
    done = espalier("convert", "net.pt", "-o", "int8.onnx", *data, **here)
    assert "2 by int8" in done.out, done
    onnx.checker.check_model(tmp_path / "int8.onnx", full_check=True)
    shaped = espalier(
        "convert", "net.pt", "-o", "shaped.onnx", *data, "--input-shape", "64", **here
    )
    assert shaped.status == 0, shaped
    assert (tmp_path / "shaped.onnx").read_bytes() == (tmp_path / "int8.onnx").read_bytes()
