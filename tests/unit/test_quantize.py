"""``espalier.quantize``: grids worked by hand, training behind them, inputs, and bad input."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from espalier.errors import InvalidArgument, UnknownMethod
from espalier.fixed_point import FixedPoint, SparseFixedPoint
from espalier.parametrization.quantized_weight import QuantizedWeight
from espalier.quantized_inputs import InputGrid, input_grids
from espalier.torch_io import read_model


def layer(rows):
    """A linear layer with these weights."""
    weights = torch.tensor(rows, dtype=torch.float32)
    linear = nn.Linear(weights.shape[1], weights.shape[0], bias=False)
    with torch.no_grad():
        linear.weight.copy_(weights)
    return linear


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3)),
    )


def images(n=16, seed=0):
    return torch.randn(n, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def tensor_of(model, name="weight"):
    return read_model(model).tensors[name]


# ---------------------------------------------------------------- grids by hand


def test_symmetric_by_hand():
    model = layer([[0.3, -0.7, 0.1], [3.0, 2.0, 1.4]])
    espalier.quantize(model, bits=3, calibration="minmax")
    found = tensor_of(model)
    assert found.integers().tolist() == [[1, -3, 0], [3, 2, 1]]
    np.testing.assert_allclose(found.scales, [0.7 / 3, 1.0], rtol=1e-6)
    assert found.zeros.tolist() == [0, 0]
    assert (found.first, found.levels, found.axis, found.bits) == (-3, 7, 0, 3)


def test_affine_by_hand():
    model = layer([[0.0, 1.5, 3.0, -0.75]])
    espalier.quantize(model, bits=4, symmetric=False, calibration="minmax")
    found = tensor_of(model)
    assert found.scales.tolist() == [0.25]  # 3.75 in 15 steps
    assert found.zeros.tolist() == [-5]  # -8 stands for -0.75
    assert found.integers().tolist() == [[-5, 1, 7, -8]]
    assert model.weight.tolist() == [[0.0, 1.5, 3.0, -0.75]]


def test_powers_of_two_by_hand():
    model = layer([[0.3, -0.7, 0.1], [3.0, 2.0, 1.4]])
    options = {"power_of_two": True, "granularity": "tensor", "calibration": "minmax"}
    espalier.quantize(model, bits=4, **options)
    found = tensor_of(model)
    assert found.scales.tolist() == [0.5]  # 3 / 7 = 0.43, rounded up
    assert found.axis is None
    assert found.integers().tolist() == [[1, -1, 0], [6, 4, 3]]


def test_groups_by_hand():
    model = layer([[1.0, -0.5, 30.0, 20.0]])
    options = {"granularity": "group", "group_size": 2, "calibration": "minmax"}
    espalier.quantize(model, bits=2, **options)
    found = tensor_of(model)
    assert found.block == (1, 2)
    assert found.scales.tolist() == [1.0, 30.0]
    assert found.dense().tolist() == [[1.0, 0.0, 30.0, 30.0]]  # -0.5: to even


def test_the_percentile_leaves_out_the_outermost():
    values = [i / 100 for i in range(1, 100)] + [50.0]
    model = layer([values])
    espalier.quantize(model, bits=8, calibration="percentile", percentile=99)
    assert tensor_of(model).scales[0] < 1.6 / 127


def test_least_squares_beat_the_whole_range():
    torch.manual_seed(0)
    weights = torch.randn(4, 400).tolist()
    errors = {}
    for calibration in ("mse", "minmax"):
        model = layer(weights)
        report = espalier.quantize(model, bits=4, calibration=calibration)
        errors[calibration] = report.layers[0].relative_error
    assert errors["mse"] < 0.9 * errors["minmax"]


def test_binary_by_hand():
    model = nn.Sequential(layer([[0.2, -0.4, 0.6], [0.0, -3.0, 3.0]]))
    espalier.quantize(model, method="binary", keep_ends=False)
    weight = model[0].weight
    torch.testing.assert_close(weight, torch.tensor([[0.4, -0.4, 0.4], [2.0, -2.0, 2.0]]))


def test_ternary_by_hand():
    # The mean is 0.5, the threshold 0.35; 0.6 and 1.0 are above it.
    model = layer([[0.1, 0.6, -1.0, 0.3]])
    espalier.quantize(model, method="ternary", keep_ends=False)
    torch.testing.assert_close(model.weight, torch.tensor([[0.0, 0.8, -0.8, 0.0]]))


def test_trained_ternary_by_hand():
    model = layer([[0.01, 0.6, -1.0, 0.4]])  # the threshold is 0.05
    espalier.quantize(model, method="trained_ternary", keep_ends=False)
    torch.testing.assert_close(model.weight, torch.tensor([[0.0, 0.5, -1.0, 0.5]]))
    model(torch.ones(1, 4)).sum().backward()
    held = model.parametrizations.weight[0]
    assert held.scales.grad[0, 0] < 0 < held.scales.grad[0, 1]
    # Latent weights get the gradient times n, 1 or p.
    assert model.parametrizations.weight.original.grad.tolist() == [[1.0, 0.5, 1.0, 0.5]]


def test_binary_connect_by_hand():
    model = layer([[0.3, -0.2]])
    espalier.quantize(model, method="binary_connect", size="one", keep_ends=False)
    assert model.weight.tolist() == [[1.0, -1.0]]


def test_the_first_and_the_last_layer_are_kept_unless_named():
    report = espalier.quantize(network(), method="binary")
    assert [w.name for w in report.layers] == ["2.weight", "5.weight"]
    assert [s.name for s in report.skipped] == ["0.weight", "7.weight"]
    named = espalier.quantize(network(), 8, method={"*": "binary", "0": "fixed"})
    assert (named.layers[0].name, named.layers[0].method) == ("0.weight", "fixed")
    everything = espalier.quantize(network(), method="binary", keep_ends=False)
    assert len(everything.layers) == 4
    assert len(espalier.quantize(network(), bits=8).layers) == 4


def test_an_empty_channel_and_constants():
    model = layer([[0.0, 0.0], [1.0, 1.0]])
    for method in ("fixed", "binary", "ternary"):
        twin = copy.deepcopy(model)
        espalier.quantize(twin, method=method, keep_ends=False)
        assert twin.weight[1].tolist() == [1.0, 1.0]
        assert torch.isfinite(twin.weight).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", ["fixed", "ternary"])
def test_other_dtypes_go_through_a_file(dtype, method):
    model = network().to(dtype)
    espalier.quantize(model, method=method)
    stored = io.BytesIO()
    espalier.save(model, stored)
    for trainable in (False, True):
        loaded = espalier.load(stored, into=network().to(dtype), trainable=trainable)
        assert torch.equal(loaded[2].weight, model[2].weight)


# ---------------------------------------------------------------- pruned weights


def test_pruned_weights_stay_zero_and_have_no_part_in_scales():
    model = layer([[0.1, 4.0, -0.2, 3.0]])
    espalier.prune(model, density=0.5)
    report = espalier.quantize(model, method="binary", keep_ends=False)
    assert model.weight.tolist() == [[0.0, 3.5, 0.0, 3.5]]
    assert report.layers[0].kept == 2
    assert isinstance(tensor_of(model), SparseFixedPoint)
    train(model, torch.ones(2, 4))
    assert model.weight[0, 0] == model.weight[0, 2] == 0
    espalier.prune(model, density=0.25)
    assert int((model.weight != 0).sum()) == 1


def train(model, x, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - 1).square().sum().backward()
        optimizer.step()


def test_the_gradient_goes_straight_through_within_the_range():
    model = layer([[0.5, -0.5, 1.0]])
    espalier.quantize(model, bits=4, calibration="minmax")
    latent = model.parametrizations.weight.original
    with torch.no_grad():
        latent[0, 2] = 2.0  # outside: 1.0 is the largest
    model(torch.tensor([[1.0, 2.0, -3.0]])).sum().backward()
    assert latent.grad.tolist() == [[1.0, 2.0, 0.0]]  # -3 would lead it farther off
    latent.grad = None
    model(torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    assert latent.grad.tolist() == [[1.0, 2.0, 3.0]]


def test_a_scale_that_learns_has_the_gradient_of_lsq():
    model = layer([[0.55, -0.2, 1.0]])
    espalier.quantize(model, bits=3, calibration="minmax", train_scale=True)
    held = model.parametrizations.weight[0]
    scale = held.scales.item()
    model(torch.ones(1, 3)).sum().backward()
    numbers = torch.tensor([2.0, -1.0, 3.0])
    expected = float((numbers - torch.tensor([0.55, -0.2, 1.0]) / scale).sum()) / (3 * 3) ** 0.5
    assert float(held.scales.grad) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("density", [None, 0.5])
@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4},
        {"bits": 4, "train_scale": True},
        {"method": "binary"},
        {"method": "ternary"},
        {"method": "trained_ternary"},
        {"method": "binary_connect"},
    ],
    ids=lambda options: str(next(iter(options.values()))) + "+" * (len(options) - 1),
)
def test_it_trains_and_all_copies_compute_the_same(options, density):
    model, x = network(), images()
    if density:
        espalier.prune(model, density=density)
    espalier.quantize(model, **options)
    before = [p.detach().clone() for p in model.parameters()]
    train(model, x)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)  # with gradients, too
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(espalier.attach(network(), model.state_dict())(x), expected)
    stored = io.BytesIO()
    espalier.save(model, stored)
    for trainable in (False, True):
        assert torch.equal(espalier.load(stored, network(), trainable=trainable)(x), expected)
    again = espalier.load(stored, network(), trainable=True)
    train(again, x)
    assert not torch.equal(again(x), expected)
    plain = espalier.finalize(copy.deepcopy(model))
    assert set(plain.state_dict()) == set(network().state_dict())
    assert torch.equal(plain(x), expected)


def test_mixed_precision():
    model, x = network(), images()
    espalier.quantize(model, bits=4)
    with torch.autocast("cpu", torch.bfloat16):
        model(x).square().sum().backward()
    assert model[0].parametrizations.weight.original.grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"bits": 4, "activations": 8}, {"method": "binary"}, {"bits": 3, "train_scale": 1}]
)
def test_compiled_it_computes_the_same_in_one_graph(options):
    model, x = network(), images()
    espalier.prune(model, density=0.5)
    espalier.quantize(model, batches=[x], **options)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    gradients = []
    for network_ in (model, compiled):
        model.zero_grad()
        network_(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert torch.equal(compiled(x), model(x))
    torch.testing.assert_close(*gradients)


def test_it_comes_before_distributed_training(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network())
        with pytest.raises(InvalidArgument, match="before wrapping the model"):
            espalier.quantize(wrapped, bits=8)
        model = network()
        espalier.quantize(model, bits=8)
        nn.parallel.DistributedDataParallel(model)(images()).sum().backward()
        assert model[2].parametrizations.weight.original.grad is not None
    finally:
        torch.distributed.destroy_process_group()


def test_what_was_shared_and_what_was_quantized_can_be_quantized():
    model = network()
    espalier.share(model, bits=3)
    espalier.quantize(model, bits=8)
    assert isinstance(model[2].parametrizations.weight[0], QuantizedWeight)
    assert isinstance(tensor_of(espalier_again(model), "2.weight"), FixedPoint)


def espalier_again(model):
    espalier.quantize(model, bits=4)
    espalier.share(model, bits=2)
    espalier.quantize(model, bits=4)
    return model


def test_tied_weights_are_one():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    report = espalier.quantize(model, bits=4)
    assert len(report.layers) == 1
    assert model[0].parametrizations.weight[0] is model[1].parametrizations.weight[0]


def test_a_vector_asked_for_by_name_has_one_scale():
    model = nn.Linear(3, 8)
    report = espalier.quantize(model, bits={"bias": 8})
    assert [(w.name, w.scales) for w in report.layers] == [("bias", 1)]


def test_channels_of_a_transposed_convolution_are_in_dimension_one():
    model = nn.ConvTranspose2d(3, 5, 2)
    assert espalier.quantize(model, bits=4).layers[0].scales == 5


def test_means_are_taken_out_of_biases():
    torch.manual_seed(0)
    model, x = network(), images(64).abs()
    shift = {}
    for correct in (False, True):
        twin = copy.deepcopy(model)
        espalier.quantize(twin, bits=2, batches=[x], correct_bias=correct)
        with torch.no_grad():
            shift[correct] = float((twin(x) - model(x)).mean(0).abs().sum())
    assert shift[True] < 1e-4 < shift[False]


# ---------------------------------------------------------------- inputs


def test_inputs_are_rounded_as_onnx_rounds_them():
    model = layer([[1.0]])
    espalier.quantize(model, bits=8, batches=[torch.tensor([[0.0], [2.0]])], activations=2)
    assert input_grids(model) == {"": InputGrid(float(np.float32(2 / 3)), 0, 0, 3)}
    with torch.no_grad():
        found = model(torch.tensor([[-1.0], [0.3], [0.5], [9.0]])) / model.weight
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 0.0, 2 / 3, 2.0]))


def test_inputs_that_are_given_by_name():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(1, 1, bias=False)

        def forward(self, x):
            return self.fc(input=x)

    model = Network()
    espalier.quantize(model, bits=8, batches=[torch.tensor([[0.0], [3.0]])], activations=2)
    found = model(torch.tensor([[1.4], [7.0]])) / model.fc.weight
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 3.0]))


def test_inputs_go_along_with_copies_checkpoints_and_files():
    model, x = network(), images()
    report = espalier.quantize(model, bits=8, batches=[x], activations={"*": 8, "7": None})
    assert list(report.inputs) == ["0", "2", "5"]
    assert (report.inputs["2"].zero, report.inputs["2"].low, report.inputs["2"].high) == (0, 0, 255)
    assert report.inputs["0"].zero > 0
    with torch.no_grad():
        expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(espalier.attach(network(), model.state_dict())(x), expected)
    stored = io.BytesIO()
    espalier.save(model, stored)
    loaded = espalier.load(stored, network())
    assert torch.equal(loaded(x), expected)
    assert input_grids(loaded) == report.inputs
    assert set(espalier.load(stored)) == set(network().state_dict())
    espalier.finalize(model)
    assert input_grids(model) == {}
    assert not model[0]._forward_pre_hooks
    train(loaded, x)


def test_the_gradient_of_inputs_goes_straight_through_within_the_range():
    model = layer([[1.0]])
    espalier.quantize(model, bits=8, batches=[torch.tensor([[0.0], [2.0]])], activations=8)
    x = torch.tensor([[1.0], [5.0]], requires_grad=True)
    model(x).sum().backward()
    assert x.grad[0] != 0
    assert x.grad[1] == 0


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bits": 1}, "bits of fixed point must be an integer from 2 to 16, not 1"),
        ({"bits": 17}, "from 2 to 16, not 17"),
        ({"bits": True}, "not True"),
        ({"bits": {"fc*": 8}}, "the pattern 'fc\\*' matches nothing"),
        ({"bits": 8, "granularity": "row"}, "granularity must be tensor, channel, group"),
        ({"bits": 8, "granularity": "group"}, "group_size belongs to"),
        ({"bits": 8, "group_size": 8}, "group_size belongs to"),
        (
            {"bits": {"linear": 4}, "granularity": "group", "group_size": 5},
            "5.weight: 32 inputs cannot be divided into groups of 5",
        ),
        ({"bits": 8, "calibration": "best"}, "calibration must be mse, minmax, percentile"),
        ({"bits": 8, "percentile": 20, "calibration": "percentile"}, "percentile must be within"),
        ({"bits": 8, "threshold": 0.5}, "not 'threshold'"),
        ({"bits": 8, "train_scale": True, "power_of_two": True}, "powers of two do not learn"),
        ({"bits": 8, "method": "binary"}, "bits are of fixed point, and the method is binary"),
        ({"method": "ternary", "threshold": -1}, "threshold must be 0 or more"),
        ({"method": "binary_connect", "size": 0}, "size must be rms or one, or a number above"),
        ({"method": "numbers"}, "'numbers' is what a file holds"),
        ({"activations": 8}, "batches are needed"),
        ({"activations": 1, "batches": [images()]}, "activations must be an integer from 2 to 16"),
        (
            {"activations": 8, "batches": [images()], "activation_options": {"size": 1}},
            "activation_options: takes calibration",
        ),
    ],
)
def test_bad_options_leave_the_model_as_it_was(options, match):
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidArgument, match=match):
        espalier.quantize(model, **options)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_unknown_methods_and_sick_weights():
    with pytest.raises(UnknownMethod, match="no method is called 'fixt'; known are binary"):
        espalier.quantize(network(), method="fixt")
    model = network()
    with torch.no_grad():
        model[2].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(InvalidArgument, match=r"2.weight holds 1 values that are NaN"):
        espalier.quantize(model, bits=8)
    with pytest.raises(InvalidArgument, match=r"bfloat16 tells 8 bits apart, and bits are 12"):
        espalier.quantize(network().bfloat16(), bits=12)


def test_checkpoints_that_do_not_fit():
    model = network()
    espalier.quantize(model, bits=8, batches=[images()], activations=8)
    state = model.state_dict()
    with pytest.raises(InvalidArgument, match="shape"):
        espalier.attach(nn.Sequential(nn.Conv2d(2, 5, 3)), state)
    broken = dict(state)
    broken["2.parametrizations.weight.0.method"] = torch.tensor([1, 2], dtype=torch.uint8)
    with pytest.raises(InvalidArgument, match=r"2.weight: its grid cannot be read"):
        espalier.attach(network(), broken)
