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


def test_convert_by_codebook(espalier, fails, model, tmp_path):
    esp, small = tmp_path / "net.esp", tmp_path / "small.onnx"
    assert espalier("compress", model, "-o", esp, "--density", "0.2", "-q").status == 0
    done = espalier("convert", esp, "-o", small)
    assert done.status == 0, done
    assert "weights: 1 by gaps" in done.out
    assert small.stat().st_size < 0.4 * model.stat().st_size
    onnx.checker.check_model(small, full_check=True)
    whole = tmp_path / "whole.onnx"
    done = espalier("convert", esp, "-o", whole, "--weights", "float", "--json")
    assert json.loads(done.out)["weights"] == {}
    assert espalier("decompress", esp, "-o", tmp_path / "d.onnx", "-q").status == 0
    assert whole.read_bytes() == (tmp_path / "d.onnx").read_bytes()
    x = np.ones((2, 48), np.float32)
    outputs = [ReferenceEvaluator(str(path)).run(None, {"x": x})[0] for path in (small, whole)]
    assert np.array_equal(*outputs)
    assert "--force" in fails("convert", esp, "-o", small)
    line = fails("convert", esp, "-o", tmp_path / "x.onnx", "--weights", "int3")
    assert "weights must be one of" in line
    line = fails("convert", esp, "-o", tmp_path / "x.onnx", "--input-shape", "3", status=2)
    assert "go with --model" in line
    assert not (tmp_path / "x.onnx").exists()


def test_convert_with_the_network(espalier, fails, tmp_path, network_source):
    (tmp_path / "mine.py").write_text(network_source)
    here = {"cwd": tmp_path}
    code = "import torch, mine; torch.save(mine.model().state_dict(), 'net.pt')"
    subprocess.run([sys.executable, "-c", code], check=True, **here)
    assert espalier("compress", "net.pt", "-o", "net.esp", "--bits", "4", "-q", **here).status == 0
    line = fails("convert", "net.esp", "-o", "net.onnx", **here)
    assert "has no ONNX graph" in line
    assert "--model" in line
    network = ("--model", "mine:model", "--input-shape", "64")
    done = espalier("convert", "net.esp", "-o", "net.onnx", *network, **here)
    assert "2 by words" in done.out, done
    model, x = onnx.load(tmp_path / "net.onnx"), np.ones((3, 64), np.float32)
    assert ReferenceEvaluator(model).run(None, {"input": x})[0].shape == (3, 10)
    # A checkpoint of any other kind, too: its weights stay exact.
    done = espalier("convert", "net.pt", "-o", "exact.onnx", *network, **here)
    assert "weights: all plain" in done.out, done
    fails("convert", "net.esp", "-o", "x.onnx", "--model", "mine:model", status=2, **here)
    line = fails("convert", "net.esp", "-o", "x.onnx", *network[:3], "7", **here)
    assert "cannot be exported to ONNX" in line
    fails("convert", "net.esp", "-o", "x.pt", *network, status=2, **here)
    assert not (tmp_path / "x.onnx").exists()
    assert not (tmp_path / "x.pt").exists()


def test_convert_between_checkpoints(espalier, fails, checkpoint, tensors, tmp_path):
    esp = tmp_path / "net.esp"
    assert espalier("compress", checkpoint, "-o", esp, "--lossless", "-q").status == 0
    for source in (esp, checkpoint):
        done = espalier("convert", source, "-o", tmp_path / "net.npz", "-f")
        assert f"{len(tensors)} tensors" in done.out, done
        with np.load(tmp_path / "net.npz") as back:
            assert all(back[name].tobytes() == tensors[name].tobytes() for name in tensors)
    line = fails("convert", checkpoint, "-o", tmp_path / "other.esp")
    assert "espalier compress" in line
    assert "names no format" in fails("convert", esp, "-o", tmp_path / "net.xyz")
    assert "the graph is not in the file" in fails("convert", checkpoint, "-o", tmp_path / "n.onnx")
