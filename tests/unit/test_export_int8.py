"""Networks in 8-bit integers: ONNX Runtime computes what the quantized model does."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from espalier.container import Reader
from espalier.errors import InvalidArgument
from espalier.export.onnx import convert_graph
from espalier.quantized_inputs import input_grids, set_input_grids
from espalier.torch_io import read_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from onnx import numpy_helper  # noqa: E402


class Small(nn.Module):
    """Convolutions with a shortcut, a concatenation, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 4, 1)
        self.right = nn.Conv2d(8, 4, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        x = torch.relu(x + self.conv2(x))
        x = torch.cat([self.left(x), self.right(x)], 1).relu()
        return self.fc(torch.max_pool2d(x, 8).flatten(1))


def data(n=64, seed=0):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def quantized(**options):
    torch.manual_seed(0)
    model = Small().eval()
    espalier.quantize(model, batches=[data()], **{"bits": 8, "activations": 8} | options)
    return model


def session(path, optimised=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def outputs(path, x):
    return session(path).run(None, {"input": x.numpy()})[0]


SYMMETRIC = {"activation_options": {"symmetric": True}}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"granularity": "tensor"},
        {"symmetric": False},
        {"bits": 4},
        {"activations": 5},
        SYMMETRIC,
    ],
    ids=str,
)
def test_the_same_grids_give_the_same_outputs(tmp_path, options):
    model, x = quantized(**options), data(32, seed=1)
    found = espalier.export_onnx(model, x[:2], tmp_path / "x.onnx", weights="int8")
    onnx.checker.check_model(tmp_path / "x.onnx", full_check=True)
    assert found.counts() == {"int8": 5}
    with torch.no_grad():
        want = model(x).numpy()
    got = outputs(tmp_path / "x.onnx", x)
    # A number that lies between two steps may go either way, and is one step then.
    assert np.mean(np.abs(got - want)) < 0.004 * np.abs(want).max()
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()


def test_the_numbers_in_the_file_are_those_of_the_model(tmp_path):
    model = quantized()
    espalier.export_onnx(model, data(2), tmp_path / "x.onnx", weights="int8")
    held = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "x.onnx").graph.initializer
    }
    for name, tensor in read_model(model).tensors.items():
        if name.endswith(".weight"):
            assert np.array_equal(held[f"{name}.int8.numbers"], tensor.integers())
            assert held[f"{name}.int8.numbers"].dtype == np.int8
            assert np.array_equal(held[f"{name}.int8.scale"], tensor.scales)
            assert name not in held
    scales = {float(v) for k, v in held.items() if k.endswith(".on.scale")}
    assert scales == {grid.scale for grid in input_grids(model).values()}


def test_with_batches_everything_but_the_ends_is_in_integers(tmp_path):
    model, x = quantized(), data(32, seed=1)
    espalier.export_onnx(model, x[:2], tmp_path / "a.onnx", weights="int8")
    espalier.export_onnx(model, x[:2], tmp_path / "b.onnx", weights="int8", batches=[data()])
    onnx.checker.check_model(tmp_path / "b.onnx", full_check=True)
    kinds = []
    for name in "ab":
        session(tmp_path / f"{name}.onnx", tmp_path / f"{name}.opt.onnx")
        graph = onnx.load(tmp_path / f"{name}.opt.onnx").graph
        kinds.append(Counter(node.op_type for node in graph.node))
    assert kinds[0]["QLinearConv"] == 0  # each output is added or concatenated as a float
    assert kinds[1]["QLinearConv"] == 4
    assert kinds[1]["QLinearAdd"] == 1
    assert not {"Conv", "FusedConv", "Add", "Concat"} & set(kinds[1])
    with torch.no_grad():
        want = model(x).numpy()
    got = outputs(tmp_path / "b.onnx", x)
    assert np.mean(np.abs(got - want)) < 0.02 * np.abs(want).max()


def test_biases_of_the_model_are_whole_numbers_already():
    model = quantized()
    grids = input_grids(model)
    for name, tensor in read_model(model).tensors.items():
        layer = name.removesuffix(".weight")
        if layer in grids:
            steps = np.float32(grids[layer].scale) * tensor.scales
            numbers = model.get_submodule(layer).bias.detach().numpy() / steps
            np.testing.assert_allclose(numbers, np.rint(numbers), atol=1e-2)
            assert np.abs(numbers).max() > 100


def test_a_bias_is_rounded_where_the_layer_is_in_integers(tmp_path):
    model = quantized()
    biases = []
    for batches in (None, [data()]):
        espalier.export_onnx(model, data(2), tmp_path / "x.onnx", weights="int8", batches=batches)
        held = onnx.load(tmp_path / "x.onnx").graph.initializer
        biases.append(sum(t.data_type == onnx.TensorProto.INT32 and len(t.dims) for t in held))
    # The linear layer's alone, and then all: each with its zero point.
    assert biases == [2, 10]


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 8)

    def forward(self, x):
        return self.fc(x)


def test_a_linear_layer_of_three_dimensions(tmp_path):
    torch.manual_seed(0)
    model, x = Wide(), torch.randn(4, 7, 16)
    espalier.quantize(model, bits=8, activations=8, batches=[x])
    espalier.export_onnx(model, x, tmp_path / "x.onnx", weights="int8")
    onnx.checker.check_model(tmp_path / "x.onnx", full_check=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(outputs(tmp_path / "x.onnx", x)), model(x))
    held = [tensor.name for tensor in onnx.load(tmp_path / "x.onnx").graph.initializer]
    assert "fc.weight" not in held


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(3 * torch.relu(self.a(x)))


def test_tied_weights_with_inputs_in_two_ways_are_refused(tmp_path):
    model, x = Tied(), torch.randn(4, 16)
    espalier.quantize(model, bits=8, activations=8, batches=[x])
    grids = input_grids(model)
    with pytest.raises(InvalidArgument, match=r"a\.weight and b\.weight are one weight"):
        espalier.export_onnx(model, x, tmp_path / "x.onnx", weights="int8")
    set_input_grids(model, {"a": grids["a"], "b": grids["a"]})
    found = espalier.export_onnx(model, x, tmp_path / "x.onnx", weights="int8")
    assert found.forms == {"a.weight": "int8"}


def test_weights_that_are_not_quantized_keep_their_codebooks(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    espalier.quantize(model, {"0": 8}, activations=8, batches=[torch.randn(64, 64)])
    espalier.share(model, bits={"2": 3})
    found = espalier.export_onnx(model, torch.randn(1, 64), tmp_path / "x.onnx", weights="int8")
    assert found.forms == {"0.weight": "int8", "2.weight": "words"}


@pytest.mark.parametrize(
    "options", [{}, {"symmetric": False}, {"granularity": "group", "group_size": 16}]
)
@pytest.mark.parametrize("density", [None, 0.3])
def test_by_codebook_numbers_on_a_grid_are_small_and_exact(tmp_path, options, density):
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    if density is not None:
        espalier.prune(model, density=density)
    espalier.quantize(model, bits=4, **options)
    x = torch.randn(3, 64)
    small = espalier.export_onnx(model, x, tmp_path / "small.onnx")
    espalier.export_onnx(model, x, tmp_path / "float.onnx", weights="float")
    pruned_affine = density is not None and options == {"symmetric": False}
    assert len(small.forms) == 1 - pruned_affine
    assert pruned_affine or small.file_bytes < 64 * 64 + 2000
    want = outputs(tmp_path / "float.onnx", x)
    assert np.array_equal(outputs(tmp_path / "small.onnx", x), want)


@pytest.mark.parametrize(
    ("prepare", "options", "says"),
    [
        (
            lambda m: None,
            {},
            "no layer has weights and inputs of at most 8 bits.*espalier.quantize",
        ),
        (lambda m: espalier.quantize(m, bits=8), {}, "no layer has weights and inputs"),
        (
            lambda m: espalier.quantize(m, bits=8, activations=10, batches=[data()]),
            {},
            r"conv1\.weight: its inputs are quantized to 10 bits; int8 takes at most 8",
        ),
        (
            lambda m: None,
            {"weights": "float", "batches": [data()]},
            "batches are for weights='int8'",
        ),
        (
            lambda m: espalier.quantize(m, bits=8, activations=8, batches=[data()]),
            {"batches": [torch.randn(2, 1, 8, 8)]},
            "the graph fails on a batch of shape",
        ),
        (
            lambda m: espalier.quantize(m, bits=8, activations=8, batches=[data()]),
            {"batches": []},
            "there are none",
        ),
    ],
)
def test_what_cannot_be_int8_writes_nothing(tmp_path, prepare, options, says):
    model = Small()
    prepare(model)
    with pytest.raises(InvalidArgument, match=says) as error:
        espalier.export_onnx(model, data(2), tmp_path / "x.onnx", **{"weights": "int8"} | options)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_came_as_onnx(tmp_path):
    from espalier.compress import compress_checkpoint
    from espalier.interop import open_checkpoint

    torch.manual_seed(0)
    model, x = Small().eval(), data(32, seed=1)
    espalier.export_onnx(model, x[:2], tmp_path / "float.onnx", weights="float")
    compress_checkpoint(open_checkpoint(tmp_path / "float.onnx"), tmp_path / "x.esp", bits=None)
    with Reader(tmp_path / "x.esp") as reader:
        with pytest.raises(InvalidArgument, match="give --data"):
            convert_graph(reader, tmp_path / "x.onnx", weights="int8")
        found = convert_graph(reader, tmp_path / "x.onnx", weights="int8", batches=[data()])
    assert found.counts() == {"int8": 5}
    onnx.checker.check_model(tmp_path / "x.onnx", full_check=True)
    want, got = outputs(tmp_path / "float.onnx", x), outputs(tmp_path / "x.onnx", x)
    assert 0 < np.abs(want - got).mean() < 0.03 * np.abs(want).max()


def test_in_a_graph_a_weight_of_several_layers_stays_as_it_is(tmp_path):
    from espalier.export.onnx_int8 import quantize_layers

    espalier.export_onnx(Tied(), torch.randn(4, 16), tmp_path / "x.onnx", weights="float")
    graph, tensors = onnx.load(tmp_path / "x.onnx"), read_model(Tied()).tensors
    same, grids = quantize_layers(graph, tensors, [torch.randn(8, 16)])
    assert (dict(tensors), grids) == (same, {})


def test_a_graph_of_an_old_opset_is_refused(tmp_path):
    from espalier.export.onnx_int8 import to_int8

    espalier.export_onnx(Small(), data(2), tmp_path / "x.onnx", weights="float")
    graph = onnx.load(tmp_path / "x.onnx")
    graph.opset_import[0].version = 12
    with pytest.raises(InvalidArgument, match=r"opset 12, and int8 .* needs 13"):
        to_int8(graph, {}, {}, None)


def test_a_name_that_is_taken_is_refused(tmp_path):
    from espalier.export.onnx_int8 import quantize_layers, to_int8

    espalier.export_onnx(Small(), data(2), tmp_path / "x.onnx", weights="float")
    graph = onnx.load(tmp_path / "x.onnx")
    graph.graph.initializer.append(numpy_helper.from_array(np.zeros(3), "input.on.scale"))
    tensors = read_model(Small()).tensors
    weights, grids = quantize_layers(graph, tensors, [data()])
    with pytest.raises(InvalidArgument, match=r"'input\.on\.scale' already"):
        to_int8(graph, weights, grids, None)
