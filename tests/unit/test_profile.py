"""Profiles: what counts, whatever way it is written, and that nothing of the model changes."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import espalier
from espalier.analysis.operations import operation_name
from espalier.errors import InvalidArgument

IMAGE = torch.zeros(2, 3, 8, 8)


class Network(nn.Module):
    """Modules, functions and methods of the same kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, groups=1)
        self.norm = nn.BatchNorm2d(4)
        self.block = Block()
        self.scale = nn.Parameter(torch.ones(10, 4))

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        x = functional.max_pool2d(x, 2)
        x = self.block(x).relu()
        x = torch.cat([x, x], 1).mean((2, 3))
        return functional.linear(x[:, :4], self.scale)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.depthwise(x)) + x


class Branching(nn.Module):
    """Cannot be traced: what it does depends on its data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x = self.conv(x)
        return x.relu() if x.sum() > 1e9 else x * 2


def test_modules_functions_and_methods_count_alike():
    found = espalier.profile(Network(), IMAGE, repeats=2, warmup=0)
    assert (found.method, found.note, found.device) == ("traced", "", "cpu")
    rows = {row.layer: row for row in found.rows}
    assert [row.operation for row in found.rows] == [
        "conv2d",
        "batch_norm",
        "relu",
        "max_pool2d",
        "conv2d",
        "relu",
        "add",
        "relu",
        "concat",
        "mean",
        "getitem",
        "linear",
    ]
    assert "block/add" in rows
    assert rows["conv"].macs == 2 * 4 * 64 * 27
    assert rows["block.depthwise"].macs == 2 * 4 * 16 * 9
    assert (rows["linear"].macs, rows["linear"].parameters) == (2 * 4 * 10, 40)
    assert rows["conv"].parameters == 4 * 27 + 4
    assert rows["conv"].activation_bytes == 4 * 2 * 4 * 64
    assert rows["norm"].weight_bytes == 4 * (2 * 4 + 2 * 4) + 8  # statistics and their counter too
    kinds = {row.operation: row.kind for row in found.rows}
    assert [name for name, kind in kinds.items() if kind == "tensor"] == ["conv2d", "linear"]
    assert sum(row.parameters for row in found.rows) == sum(
        p.numel() for p in Network().parameters()
    )


def test_times_are_medians_between_their_quartiles_and_shares_are_of_their_sum():
    found = espalier.profile(Network(), IMAGE, repeats=5)
    assert all(0 < row.ms_low <= row.ms <= row.ms_high for row in found.rows)
    assert math.isclose(found.share("tensor") + found.share("non-tensor"), 1)
    assert math.isclose(sum(s.share for s in found.by_operation()), 1)
    assert math.isclose(found.total_ms, sum(row.ms for row in found.rows))
    plain = found.to_json()
    assert plain["macs"] == sum(row.macs for row in found.rows)
    assert plain["share_non_tensor"] == found.share("non-tensor")
    calls = {s.operation: s.calls for s in found.by_operation()}
    assert calls["relu"] == 3
    with pytest.raises(InvalidArgument, match="kind must be tensor or non-tensor"):
        found.share("other")


def test_the_model_stays_as_it_is():
    model = Network().train()
    model.block.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    espalier.profile(model, IMAGE, repeats=2)
    assert (model.training, model.norm.training, model.block.training) == (True, True, False)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_a_model_that_cannot_be_traced_is_timed_by_its_operators():
    found = espalier.profile(Branching(), IMAGE, repeats=2)
    assert found.method == "dispatched"
    assert found.note.startswith("the model cannot be traced: symbolically traced variables")
    rows = {row.layer: row for row in found.rows}
    assert (rows["conv/conv"].kind, rows["conv/conv"].macs) == ("tensor", 2 * 4 * 36 * 27)
    assert rows["conv/conv"].parameters == 4 * 27 + 4
    assert rows["mul"].kind == "non-tensor"


def test_pruned_and_shared_weights_are_profiled_as_they_compute():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    espalier.prune(model, density=0.5)
    espalier.share(model, bits=3)
    found = espalier.profile(model, torch.zeros(1, 64), repeats=2)
    assert [(row.operation, row.macs) for row in found.rows] == [
        ("linear", 4096),
        ("relu", 0),
        ("linear", 640),
    ]


def test_an_embedding_is_a_tensor_layer():
    model = nn.Sequential(nn.Embedding(5, 3), nn.ReLU())
    found = espalier.profile(model, torch.tensor([[0, 4]]), repeats=1)
    assert [row.kind for row in found.rows] == ["tensor", "non-tensor"]


def test_bad_input_is_said_in_one_line():
    with pytest.raises(
        InvalidArgument, match=r"fails on inputs of shape \(2, 4, 8, 8\): .*channels"
    ):
        espalier.profile(Network(), torch.zeros(2, 4, 8, 8))
    with pytest.raises(InvalidArgument, match="repeats 0 must be at least 1"):
        espalier.profile(Network(), IMAGE, repeats=0)
    with pytest.raises(InvalidArgument, match="takes the inputs of one forward pass"):
        espalier.profile(Network())
    with pytest.raises(InvalidArgument, match="several devices: cpu, meta"):
        espalier.profile(Network(), torch.zeros(2, 3, 8, 8, device="meta"))


@pytest.mark.parametrize(
    ("names", "common"),
    [
        (("Conv2d", "conv2d"), "conv2d"),
        (("convolution",), "conv"),
        (("MaxPool2d", "max_pool2d", "max_pool2d_with_indices"), "max_pool2d"),
        (("BatchNorm2d", "batch_norm", "native_batch_norm"), "batch_norm"),
        (("_native_batch_norm_legit_no_training",), "batch_norm"),
        (("LocalResponseNorm", "local_response_norm"), "local_response_norm"),
        (("ReLU", "relu", "relu_"), "relu"),
        (("cat", "concat"), "concat"),
        (("Linear", "linear", "addmm"), "linear"),
        (("AdaptiveAvgPool2d", "adaptive_avg_pool2d"), "adaptive_avg_pool2d"),
    ],
)
def test_one_kind_has_one_name(names, common):
    assert {operation_name(name) for name in names} == {common}
