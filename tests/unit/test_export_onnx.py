"""PyTorch networks as ONNX files: outputs and sizes."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from espalier.errors import InvalidArgument, MissingDependency
from espalier.export.onnx import convert_graph
from espalier.zoo import lenet5, resnet20

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def run(path, *inputs, optimised=True):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    if not optimised:
        off = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = off
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})[0]


@pytest.fixture(scope="module")
def lenet():
    torch.manual_seed(0)
    model = lenet5()
    espalier.prune(model, density={"conv*": 0.6, "fc*": 0.08})
    espalier.share(model, bits={"conv*": 8, "fc*": 5})
    return model


def test_a_codebook_file_is_small_and_computes_the_same(lenet, tmp_path):
    x = torch.randn(3, 1, 28, 28)
    small = espalier.export_onnx(lenet, x, tmp_path / "small.onnx")
    whole = espalier.export_onnx(lenet, x, tmp_path / "whole.onnx", weights="float")
    onnx.checker.check_model(tmp_path / "small.onnx", full_check=True)
    assert small.file_bytes == (tmp_path / "small.onnx").stat().st_size < 0.07 * whole.file_bytes
    assert set(small.forms) == {f"{n}.weight" for n in ("conv1", "conv2", "fc1", "fc2")}
    assert whole.forms == {}
    more = torch.randn(7, 1, 28, 28)
    want = run(tmp_path / "whole.onnx", more)  # another batch size
    assert np.array_equal(run(tmp_path / "small.onnx", more), want)  # bit for bit
    # Where nothing is folded the weight is no constant, and another kernel multiplies by it.
    slow = run(tmp_path / "small.onnx", more, optimised=False)
    np.testing.assert_allclose(slow, want, atol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(want), lenet.eval()(more))


def test_the_model_stays_as_it_was(lenet, tmp_path):
    lenet.train()
    before = {name: value.clone() for name, value in lenet.state_dict().items()}
    espalier.export_onnx(lenet, torch.randn(1, 1, 28, 28), tmp_path / "x.onnx")
    assert lenet.training
    assert all(torch.equal(value, before[name]) for name, value in lenet.state_dict().items())


def test_batch_norms_leave_the_codebooks_alone(tmp_path):
    torch.manual_seed(0)
    model = resnet20().eval()
    for name, value in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    espalier.share(model, bits=4)
    x = torch.randn(2, 3, 32, 32)
    small = espalier.export_onnx(model, x, tmp_path / "x.onnx")
    assert small.counts() == {"words": 20}
    assert small.file_bytes < 0.27 * 4 * sum(p.numel() for p in resnet20().parameters())
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(run(tmp_path / "x.onnx", x)), model(x))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 64)
        self.b = nn.Linear(64, 64)
        self.b.weight = self.a.weight

    def forward(self, x, y):
        return self.b(torch.relu(self.a(x))) + y


def test_tied_weights_and_two_inputs(tmp_path):
    model = Tied()
    espalier.share(model, bits=3)
    x, y = torch.randn(4, 7, 64), torch.randn(4, 7, 64)  # three dimensions: MatMul, transposed
    found = espalier.export_onnx(model, [x, y], tmp_path / "x.onnx", dynamic_batch=False)
    assert list(found.forms) == ["a.weight"]
    assert found.file_bytes < 64 * 64 + 4000
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(run(tmp_path / "x.onnx", x, y)), model(x, y))


def test_a_plain_model_is_exported_plain(tmp_path):
    found = espalier.export_onnx(nn.Linear(4, 4), torch.randn(1, 4), tmp_path / "x.onnx")
    assert found.forms == {}


class Odd(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x @ x.T).real


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (Odd(), {}, "cannot be exported to ONNX: Exporting the operator"),
        (nn.Linear(5, 5), {}, "cannot be exported to ONNX: mat1 and mat2"),
        (nn.Linear(4, 4), {"weights": "int3"}, "weights must be one of codebook, .*not 'int3'"),
    ],
)
def test_what_cannot_be_exported_writes_nothing(tmp_path, model, options, says):
    with pytest.raises(InvalidArgument, match=says) as error:
        espalier.export_onnx(model, torch.randn(4, 4), tmp_path / "x.onnx", **options)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependency, match=r"pip install 'espalier\[onnx\]'"):
        espalier.export_onnx(nn.Linear(4, 4), torch.randn(1, 4), tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_a_graph(tmp_path):
    espalier.save(nn.Linear(4, 4), tmp_path / "x.esp")
    with (
        espalier.container.Reader(tmp_path / "x.esp") as reader,
        pytest.raises(InvalidArgument, match=r"has no ONNX graph.*--model"),
    ):
        convert_graph(reader, tmp_path / "x.onnx")
