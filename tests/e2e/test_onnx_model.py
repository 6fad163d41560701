"""``.onnx`` through the command line."""

import json

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
