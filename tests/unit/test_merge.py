"""Layers merged: what is exact stays as it was, what is not keeps its shape and is fitted."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import espalier
from espalier import zoo
from espalier.errors import FormatError, InvalidArgument
from espalier.recipe import run_recipe
from espalier.recipe.schema import parse_recipe
from espalier.samples import Samples
from espalier.structure.edit import edit_from_json
from espalier.structure.geometry import merged_window
from espalier.structure.least_squares import NormalEquations, patches, sample_positions
from espalier.structure.merge import PARTS
from espalier.structure.operations import Window
from espalier.structure.traced import trace

IMAGES = [(torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)), None)]
IMAGE = IMAGES[0][0][:1]


class Functional(nn.Module):
    """Everything by functions, dropout by the mode that the module is in."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 12, 3, padding=1)
        self.fc = nn.Linear(12 * 16, 5)

    def forward(self, x):
        x = functional.max_pool2d(functional.local_response_norm(torch.relu(self.a(x)), 3), 2)
        x = functional.avg_pool2d(self.b(x).relu(), 2)
        return self.fc(functional.dropout(x.flatten(1), 0.5, self.training))

    def hello(self) -> str:
        return "hello"


class Inception(nn.Module):
    """A stem, and a block of four branches with a pooling behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 4, 1)
        self.before3 = nn.Conv2d(8, 6, 1)
        self.three = nn.Conv2d(6, 8, 3, padding=1)
        self.before5 = nn.Conv2d(8, 4, 1)
        self.five = nn.Conv2d(4, 4, 5, padding=2)
        self.pooled = nn.Conv2d(8, 3, 1)
        self.norm = nn.BatchNorm2d(19)
        self.head = nn.Conv2d(19, 5, 3)

    # Annotated with text, as `from __future__ import annotations` makes all annotations.
    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        x = torch.relu(self.stem(x))
        x = torch.cat(
            [
                torch.relu(self.one(x)),
                torch.relu(self.three(torch.relu(self.before3(x)))),
                torch.relu(self.five(torch.relu(self.before5(x)))),
                torch.relu(self.pooled(functional.max_pool2d(x, 3, 1, 1))),
            ],
            1,
        )
        return self.head(functional.max_pool2d(x, 2))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    after = model.state_dict()
    return list(after) == list(before) and all(torch.equal(after[n], v) for n, v in before.items())


# ---------------------------------------------------------------- exact


@pytest.mark.parametrize(
    ("build", "size", "gone"),
    [
        (zoo.resnet20, (3, 32, 32), nn.BatchNorm2d),
        (zoo.vgg16_cifar, (3, 32, 32), nn.Dropout),
        (zoo.lenet300, (1, 28, 28), nn.Dropout),
        (
            lambda: nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4), nn.Linear(4, 5)),
            (6,),
            nn.Dropout,
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(3, 8, 1), nn.Identity(), nn.Conv2d(8, 4, 3, stride=2, dilation=2)
            ),
            (3, 12, 12),
            nn.Identity,
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1, 2)
            ),
            (3, 12, 12),
            nn.BatchNorm2d,
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 8, 1, 2, padding=1), nn.Conv2d(8, 4, 1, 2)),
            (3, 12, 12),
            nn.Dropout,
        ),
        (
            lambda: nn.Sequential(
                nn.Conv1d(3, 8, 1, bias=False), nn.Conv1d(8, 4, 3, padding=1, bias=False)
            ),
            (3, 12),
            nn.Dropout,
        ),
        pytest.param(zoo.resnet50, (3, 64, 64), nn.BatchNorm2d, marks=pytest.mark.slow),
        pytest.param(zoo.mobilenet_v2, (3, 64, 64), nn.BatchNorm2d, marks=pytest.mark.slow),
        pytest.param(zoo.squeezenet, (3, 64, 64), nn.Dropout, marks=pytest.mark.slow),
        pytest.param(zoo.googlenet, (3, 64, 64), nn.Dropout, marks=pytest.mark.slow),
    ],
)
def test_exact_merges_change_nothing(build, size, gone, tmp_path):
    torch.manual_seed(0)
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    x = torch.randn(4, *size)
    with torch.no_grad():
        before = model(x)
        report = espalier.merge(model, x[:1], parts="exact")
        after = model(x)
    assert report.merged
    assert all(merged.part == "exact" for merged in report.merged)
    assert not any(isinstance(m, gone) for m in model.modules())
    assert float((after - before).norm() / before.norm()) < 1e-5
    espalier.save(model, tmp_path / "m.esp")
    fresh = espalier.load(tmp_path / "m.esp", into=build().eval())
    assert torch.equal(fresh(x), model(x))
    assert espalier.edits_of(fresh) == espalier.edits_of(model)


def test_linear_maps_that_should_stay_are_listed():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 8, 3, padding=1),  # pads with zeros, not with the bias of the first
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 4, 1, groups=2),
        nn.Conv2d(4, 2, 1),  # 4 * 8 weights before, 2 * 4 here: 4 * 4 together would be more
    )
    wide = nn.Sequential(nn.Linear(100, 2), nn.Linear(2, 100))
    with pytest.raises(InvalidArgument, match=r"10,000 weights, and not 400"):
        espalier.merge(wide, torch.zeros(1, 100), parts="exact")
    with pytest.raises(InvalidArgument, match="1: cannot be merged into 0: the second pads"):
        espalier.merge(model, IMAGE, parts="exact")


def test_linear_by_hand():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        model[0].bias.copy_(torch.tensor([1.0, -1.0]))
        model[1].weight.copy_(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    espalier.merge(model, torch.zeros(1, 2))
    assert model.state_dict().keys() == {"0.weight", "0.bias"}
    assert model[0].weight.tolist() == [[3.0, 4.0], [2.0, 4.0]]
    assert model[0].bias.tolist() == [-1.0, 2.0]
    assert espalier.edits_of(model)[0].describe() == ["0: 1 is merged into it"]


# ---------------------------------------------------------------- geometry


@given(
    size=st.integers(5, 60),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    pool=st.integers(1, 4),
    pool_stride=st.integers(1, 3),
    ceil=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_the_shape_is_kept(size, kernel, stride, padding, dilation, pool, pool_stride, ceil):
    if size + 2 * padding < dilation * (kernel - 1) + 1:
        return
    conv = nn.Conv1d(1, 1, kernel, stride, padding, dilation)
    middle = conv(torch.zeros(1, 1, size)).shape[2]
    if middle < pool:
        return
    pool_padding = pool // 2 if padding else 0
    layers = nn.MaxPool1d(pool, pool_stride, pool_padding, ceil_mode=ceil)
    outputs = layers(conv(torch.zeros(1, 1, size))).shape[2]
    window = merged_window(
        Window((kernel,), (stride,), (padding,), (dilation,)),
        [Window((pool,), (pool_stride,), (pool_padding,), (1,))],
        (size,),
        (outputs,),
    )
    if window is None:
        assert dilation == 2
        assert stride * pool_stride == 1
        return
    merged = nn.Conv1d(1, 1, window.kernel, window.stride, window.padding, dilation)
    assert merged(torch.zeros(1, 1, size)).shape[2] == outputs
    assert window.stride == (stride * pool_stride,)
    assert window.kernel[0] >= kernel


def test_the_papers_example():
    """3x3 of stride 1, normalisation, 3x3 pooling of stride 2: one 3x3 of stride 2."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.LocalResponseNorm(5),
        nn.MaxPool2d(3, 2, ceil_mode=True),
    )
    shape = model(IMAGE).shape
    espalier.merge(model, IMAGE, start="random")
    assert type(model) is nn.Sequential  # only modules changed
    assert (model[0].kernel_size, model[0].stride) == ((3, 3), (2, 2))
    assert isinstance(model[1], nn.ReLU)
    assert isinstance(model[2], nn.Identity)
    assert isinstance(model[3], nn.Identity)
    assert model(IMAGE).shape == shape


# ---------------------------------------------------------------- the fit


def test_normal_equations_by_hand():
    equations = NormalEquations(2, 1)
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    for row in rows:  # batch after batch
        equations.add(row[None], (2 * row[:1] - row[1:] + 3)[None])
    weight, bias = equations.solve()
    torch.testing.assert_close(weight, torch.tensor([[2.0, -1.0]]).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(bias, torch.tensor([3.0]).double(), atol=1e-5, rtol=0)


def test_the_residual_of_the_fit_sees_no_input():
    torch.manual_seed(0)
    rows, wanted = torch.randn(50, 4).double(), torch.randn(50, 3).double()
    equations = NormalEquations(4, 3)
    equations.add(rows, wanted)
    weight, bias = equations.solve(ridge=0)
    residual = rows @ weight.T + bias - wanted
    torch.testing.assert_close(rows.T @ residual, torch.zeros(4, 3).double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(residual.sum(0), torch.zeros(3).double(), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv2d(4, 6, 3, 2, 1, groups=2), (9, 9)),
        (nn.Conv2d(4, 6, (3, 2), (1, 2), (2, 0), dilation=(2, 1)), (8, 9)),
        (nn.Conv1d(4, 6, 3, padding="same"), (9,)),
        (nn.Conv3d(4, 6, 2), (3, 4, 5)),
    ],
)
def test_patches_are_what_a_convolution_sees(layer, size):
    torch.manual_seed(0)
    x = torch.randn(2, 4, *size)
    wanted = layer(x)
    positions = sample_positions(wanted.shape[2:], 0)
    seen = patches(x, layer, positions)
    weight = layer.weight.flatten(1).unflatten(0, (layer.groups, -1))
    found = seen @ weight.transpose(1, 2) + layer.bias.view(layer.groups, 1, -1)
    index = (slice(None), slice(None), *positions.unbind(1))
    expected = wanted[index].unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_where_the_run_is_linear_the_fit_is_exact(groups):
    """Average pooling behind a convolution of 1x1 with the pooling's own stride."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 2, 2, groups=groups), nn.BatchNorm2d(6), nn.AvgPool2d(1))
    model.eval()
    x = torch.randn(32, 4, 8, 8)
    before = model(x).detach()
    report = espalier.merge(model, x[:1], parts="streamline", batches=[(x, None)])
    assert report.merged[0].error["0"] < 1e-9
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_a_1x1_branch_goes_into_a_3x3_of_the_same_input_exactly():
    """As in SqueezeNet's fire: both see the squeezed input, and a 1x1 kernel is a 3x3 one."""

    class Fire(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.three = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, x):
            return torch.cat([torch.relu(self.one(x)), torch.relu(self.three(x))], 1)

    torch.manual_seed(0)
    model = Fire().eval()
    x = torch.randn(64, 3, 8, 8)
    before = model(x).detach()
    report = espalier.merge(model, x[:1], parts="branch", batches=[(x, None)], relu=False)
    assert report.merged[0].layers == ("three",)
    assert model.three.out_channels == 9
    model = Fire().eval()
    with torch.no_grad():  # outputs above zero, so that the ReLU does nothing
        model.one.bias.fill_(20)
        model.three.bias.fill_(20)
    before = model(x).detach()
    espalier.merge(model, x[:1], parts="branch", batches=[(x, None)])
    assert set(model.state_dict()) == {"three.weight", "three.bias"}
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)


def test_a_fit_is_nearer_than_a_random_start():
    torch.manual_seed(0)
    model = Functional().eval().requires_grad_(False)
    x = torch.randn(64, 3, 16, 16)
    before = model(x)
    distances = {}
    for start in ("fit", "random"):
        merged = copy.deepcopy(model)
        report = espalier.merge(merged, x[:1], batches=[(x, None)], start=start)
        distances[start] = float((merged(x) - before).norm() / (before - before.mean(0)).norm())
    assert distances["fit"] < 0.7 * distances["random"]
    assert [m.error for m in report.merged if m.part == "streamline"] == [{}, {}]


# ---------------------------------------------------------------- graphs and files


@pytest.mark.parametrize("parts", [PARTS, "streamline", "branch"])
@pytest.mark.parametrize("build", [Functional, Inception])
def test_merged_networks_are_ordinary_modules(build, parts, tmp_path):
    torch.manual_seed(0)
    model = build().eval()
    shape = model(IMAGE).shape
    if (build, parts) in ((Functional, "branch"), (Inception, "streamline")):
        with pytest.raises(InvalidArgument, match="nothing in the model can be merged"):
            espalier.merge(model, IMAGE, parts=parts, batches=IMAGES)
        return
    report = espalier.merge(model, IMAGE, parts=parts, batches=IMAGES)
    assert report.after.macs < report.before.macs or parts == "branch"
    assert isinstance(model, build)
    assert model(IMAGE).shape == shape
    espalier.save(model, tmp_path / "m.esp")
    fresh = espalier.load(tmp_path / "m.esp", into=build().eval())
    copies = [fresh, copy.deepcopy(model), espalier.load(tmp_path / "m.esp", into=fresh)]
    if build is Functional:
        assert model.hello() == "hello"
    for other in copies:
        assert torch.equal(other(IMAGE), model(IMAGE))
        assert list(other.state_dict()) == list(model.state_dict())
        assert espalier.edits_of(other) == espalier.edits_of(model)
    with torch.no_grad():
        next(copies[1].parameters()).zero_()
    assert torch.equal(fresh(IMAGE), model(IMAGE))


def test_a_merged_network_can_be_pickled_and_compiled():
    model = Inception().eval()
    espalier.merge(model, IMAGE, batches=IMAGES)
    again = pickle.loads(pickle.dumps(model))
    assert isinstance(again, Inception)
    assert torch.equal(again(IMAGE), model(IMAGE))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    assert espalier.edits_of(again) == espalier.edits_of(model)


def test_the_branches_go_and_the_next_layer_fits():
    torch.manual_seed(0)
    model = Inception().eval()
    report = espalier.merge(model, IMAGE, parts="branch", batches=IMAGES)
    (merged,) = report.merged
    assert merged.layers == ("three", "five")
    assert (model.three.out_channels, model.five.out_channels) == (4 + 8, 4 + 3)
    assert model.three.stride == model.five.stride == (2, 2)  # the pooling behind the block
    assert not hasattr(model, "one")
    assert not hasattr(model, "pooled")
    assert model.norm.num_features == 19  # unused, and still there
    assert all(0 < error < 1 for error in merged.error.values())


def test_with_a_width_the_layers_behind_take_fewer(tmp_path):
    torch.manual_seed(0)
    model = Inception().eval()
    one, pooled = model.one.weight.clone(), model.pooled.weight.clone()
    report = espalier.merge(model, IMAGE, parts="branch", batches=IMAGES, width=0.5)
    assert (model.three.out_channels, model.five.out_channels) == (2 + 8, 4 + 2)
    assert model.head.in_channels == 16
    assert [m.part for m in report.merged] == ["branch"] * 4
    cut = espalier.edits_of(model)[0].layers
    largest = one.abs().sum((1, 2, 3)).topk(2).indices.sort().values.tolist()
    assert cut["one"]["out"].replace("-", ",") == ",".join(map(str, largest))
    assert len(pooled) == 3
    assert model(IMAGE).shape == Inception()(IMAGE).shape
    espalier.save(model, tmp_path / "m.esp")
    fresh = espalier.load(tmp_path / "m.esp", into=Inception().eval())
    assert torch.equal(fresh(IMAGE), model(IMAGE))


def test_relus_work_in_place_where_nothing_else_reads_what_they_do():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
            self.relu, self.other, self.nothing = nn.ReLU(), nn.ReLU(), nn.Identity()

        def forward(self, x):
            y = self.nothing(self.a(x))
            y = self.other(y) + y  # read twice
            x = torch.relu(x)  # the network's own input
            y = functional.relu(self.b(self.relu(self.c(y))))
            return y + self.b(x).relu()

    torch.manual_seed(0)
    model = Mixed()
    before = model(IMAGE)
    x = IMAGE.clone()
    espalier.merge(model, x, parts="exact")
    assert torch.equal(model(x), before)
    assert torch.equal(x, IMAGE)
    _, edit = espalier.edits_of(model)
    assert (edit.layers, edit.functions) == (["relu"], 2)
    assert (model.relu.inplace, model.other.inplace) == (True, False)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("criterion", ["taylor", "apoz", "entropy"])
def test_filters_of_a_merged_network_are_seen_behind_the_relu(criterion):
    torch.manual_seed(0)
    model = Inception().eval()
    batches = [(x, torch.randint(0, 5, (len(x), 6, 6))) for x, _ in IMAGES]
    espalier.merge(model, IMAGE, batches=IMAGES)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    other = Inception().eval()
    espalier.merge(other, IMAGE, parts=("streamline", "branch"), start="random")
    other.load_state_dict(model.state_dict())
    for network in (model, other):
        espalier.prune_filters(
            network, {"stem": 0.5}, example=IMAGE, criterion=criterion, batches=batches
        )
    assert espalier.edits_of(model)[-1] == espalier.edits_of(other)[-1]


def test_dropout_goes_by_the_mode_of_the_rewritten_network():
    model = Functional()
    espalier.merge(model, IMAGE, parts="streamline", start="random")
    model.eval()
    assert torch.equal(model(IMAGE), model(IMAGE))
    model.train()
    assert not torch.equal(model(IMAGE), model(IMAGE))
    model.eval()
    espalier.merge(model, IMAGE, parts="exact")
    model.train()
    assert torch.equal(model(IMAGE), model(IMAGE))


def test_two_blocks_of_one_container_have_names_of_their_own():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.ModuleDict()
            for i, width in (("a", 3), ("b", 5)):
                self.net[f"{i}1"] = nn.Conv2d(width, 2, 1)
                self.net[f"{i}3"] = nn.Conv2d(width, 3, 3, padding=1)

        def forward(self, x):
            for i in "ab":
                x = torch.cat([self.net[f"{i}1"](x), self.net[f"{i}3"](x)], 1)
            return x

    model = Twice().eval()
    report = espalier.merge(model, IMAGE, batches=IMAGES)
    assert [m.name for m in report.merged] == ["net", "net.b3"]
    assert set(model.state_dict()) == {f"net.{i}3.{p}" for i in "ab" for p in ("weight", "bias")}


def test_block_by_block_is_all_at_once_without_training():
    torch.manual_seed(0)
    model = Inception().eval()
    model.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 1))
    other = copy.deepcopy(model)
    espalier.merge(model, IMAGE, batches=IMAGES)
    names = [m.name for m in espalier.merge_layerwise(other, IMAGE, batches=IMAGES)]
    assert names == ["stem.1", "relu", "stem.0", "three"]
    torch.testing.assert_close(other(IMAGE), model(IMAGE))


def test_ten_times_the_learning_rate():
    model = Inception()
    espalier.merge(model, IMAGE, start="random")
    groups = espalier.parameter_groups(model, 0.01)
    assert [g["lr"] for g in groups] == [0.01, 0.1]
    merged = {id(p) for layer in (model.three, model.five) for p in layer.parameters()}
    assert {id(p) for p in groups[1]["params"]} == merged
    assert len(groups[0]["params"]) + len(groups[1]["params"]) == len(list(model.parameters()))
    assert len(espalier.parameter_groups(Inception(), 0.01)) == 1
    with pytest.raises(InvalidArgument, match="factor must be positive"):
        espalier.parameter_groups(model, 0.01, factor=0)


# ---------------------------------------------------------------- stacking


@pytest.mark.parametrize("first", ["filters", "merge"])
def test_edits_stack_in_any_order(first, tmp_path):
    torch.manual_seed(0)

    def filters(model):
        espalier.prune_filters(model, {"stem": 0.5, "three": 0.75}, example=IMAGE)

    def merge(model):
        espalier.merge(model, IMAGE, batches=IMAGES)

    model = Inception().eval()
    for change in (filters, merge) if first == "filters" else (merge, filters):
        change(model)
    espalier.prune(model, 0.5)
    espalier.share(model, bits=4)
    espalier.save(model, tmp_path / "m.esp")
    fresh = espalier.load(tmp_path / "m.esp", into=Inception().eval())
    assert torch.equal(fresh(IMAGE), model(IMAGE))
    pairs = zip(espalier.edits_of(fresh), espalier.edits_of(model), strict=True)
    assert all(loaded.makes_shapes_of(made) for loaded, made in pairs)


def test_masked_shared_and_repeated_layers_stay():
    model = Inception()
    espalier.prune(model, {"three": 0.5})
    with pytest.raises(InvalidArgument, match="three: it is pruned or shared already"):
        espalier.merge(model, IMAGE, start="random", parts="branch")
    layer = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(layer, nn.ReLU(), nn.MaxPool2d(2), layer, nn.ReLU())
    with pytest.raises(InvalidArgument, match="0: it is called 2 times"):
        espalier.merge(model, IMAGE, start="random")
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.MaxPool2d(2), nn.Conv2d(3, 3, 1))
    model[2].weight = model[0].weight
    with pytest.raises(InvalidArgument, match="0: it shares its weight with 2"):
        espalier.merge(model, IMAGE, start="random")


# ---------------------------------------------------------------- wrong use


class Forks(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Moody(nn.Module):
    def forward(self, x):
        return torch.relu(x) if self.training else x


@pytest.mark.parametrize(
    ("build", "how", "message"),
    [
        (Forks, {}, r"cannot be traced by torch\.fx"),
        (Moody, {}, "other steps in training than in evaluation"),
        (lambda: nn.Conv2d(3, 4, 3), {}, r"cannot be traced|nothing in the model can be merged"),
        (zoo.resnet20, {"parts": "streamline"}, "nothing in the model can be merged"),
        (zoo.resnet20, {"parts": "all"}, "parts must be of exact, streamline, branch"),
        (zoo.resnet20, {"parts": ()}, "parts must be of"),
        (Functional, {"width": 0, "start": "random"}, r"width must be a number in \(0, 1\]"),
        (Functional, {"start": "zero"}, "start must be 'fit' or 'random'"),
        (Functional, {}, "needs batches"),
        (Functional, {"batches": []}, "needs batches"),
        (Functional, {"layers": "c*", "start": "random"}, r"'c\*' matches nothing.*there is a, b"),
        (Functional, {"example": torch.zeros(1, 5, 16, 16)}, "cannot be run on the example"),
    ],
)
def test_wrong_use_is_said_and_changes_nothing(build, how, message):
    model = build()
    before, kind = state(model), type(model)
    with pytest.raises(InvalidArgument, match=message) as caught:
        espalier.merge(model, **{"example": IMAGE} | how)
    assert "\n" not in str(caught.value)
    assert same(model, before)
    assert type(model) is kind
    assert espalier.edits_of(model) == ()


def test_what_cannot_be_merged_is_listed():
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 3, padding=1)
            self.b = nn.Conv2d(7, 4, 3)

        def forward(self, x):
            x = torch.cat([x, torch.relu(self.a(x))], 1)
            return functional.max_pool2d(self.b(x), 2)

    report = espalier.merge(Dense(), IMAGE, start="random", parts=("streamline", "branch"))
    assert [m.name for m in report.merged] == ["b"]
    assert [(s.name, s.reason) for s in report.skipped] == [
        ("cat", "its input itself is concatenated")
    ]


def test_edits_of_another_architecture_leave_the_model_as_it_was(tmp_path):
    model = Inception()
    espalier.merge(model, IMAGE, start="random", parts="branch")
    espalier.save(model, tmp_path / "m.esp")

    class Shorter(Inception):
        def forward(self, x):
            x = torch.relu(self.stem(x))
            x = torch.cat([self.one(x), self.three(self.before3(x))], 1)
            return self.head(x)

    for other, message in (
        (zoo.lenet5(), "three: the model has no such layer.*another architecture"),
        (Shorter(), "five: is called 0 times"),
    ):
        before = state(other)
        with pytest.raises(InvalidArgument, match=message) as caught:
            espalier.load(tmp_path / "m.esp", into=other)
        assert "\n" not in str(caught.value)
        assert same(other, before)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Dropout())
    espalier.merge(model, IMAGE[..., :3], parts="exact")
    espalier.save(model, tmp_path / "m.esp")
    for other, message in (
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.ReLU()), "2: is no dropout or identity"),
        (nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Dropout()), "1: cannot work in place"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            espalier.load(tmp_path / "m.esp", into=other)
    model = Functional()
    espalier.merge(model, IMAGE, parts="streamline", start="random")
    espalier.save(model, tmp_path / "m.esp")
    other = Inception()
    other.a = nn.Conv2d(3, 8, 3)
    with pytest.raises(InvalidArgument, match="a: is called 0 times"):
        espalier.load(tmp_path / "m.esp", into=other)


@pytest.mark.parametrize(
    "plain",
    [
        {"edit": "streamline", "layers": {"a": {}}},
        {"edit": "streamline", "layers": {"a": {"kernel": [0], "stride": [1], "padding": [0]}}},
        {"edit": "streamline", "layers": [1]},
        {"edit": "merge_branches", "blocks": {"a": {"branches": 3}}},
        {"edit": "merge_branches", "blocks": {"a": {"branches": [], "after": [], "kept": {}}}},
        {"edit": "merge_linear", "pairs": {"a": "a"}},
        {"edit": "merge_linear", "pairs": {"a": 3}},
        {"edit": "remove_identities", "layers": "a"},
        {"edit": "in_place", "layers": "a"},
        {"edit": "in_place", "layers": [], "functions": 0.5},
        {"edit": "remove_identities", "layers": [], "functions": -1},
    ],
)
def test_edits_that_are_none(plain):
    with pytest.raises(FormatError, match="structural edit"):
        edit_from_json(plain)


def test_a_flag_of_training_is_read_when_the_network_runs():
    graph = trace(Functional())
    flags = [n for n in graph.nodes if n.op == "get_attr"]
    assert [n.target for n in flags] == ["training"]


# ---------------------------------------------------------------- training


def network() -> nn.Module:
    return nn.Sequential(Inception(), nn.Flatten(), nn.Linear(5 * 36, 3))


def samples(data_dir: object = None) -> tuple[Samples, Samples]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (96,), generator=generator)
    x = torch.randn(96, 3, 16, 16, generator=generator)
    x[torch.arange(96), y] += 1
    return Samples(x[:64], y[:64]), Samples(x[64:], y[64:])


RECIPE = """
model: tests.unit.test_merge:network
data: tests.unit.test_merge:samples
stages:
  - train: {epochs: 1, batch_size: 32}
  - merge: {samples: 32, batch_size: 16, parts: [exact, branch]}
  - fine_tune: {epochs: 1, batch_size: 32, distill: 0.5, merged_lr: 5}
  - save: {path: merged.esp}
  - evaluate: {split: test, name: merged}
"""


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_stage_of_recipes(layerwise, tmp_path):
    text = RECIPE
    if layerwise:
        text = text.replace("branch]}", "branch], layerwise: {epochs: 1, batch_size: 32}}")
    result = run_recipe(parse_recipe(text, "here"), tmp_path / "run")
    (merged,) = [stage.values for stage in result.stages if stage.kind == "merge"]
    assert [m["layers"] for m in merged["layers"]] == [("0.three", "0.five")]
    assert ("held_out_error" in merged["layers"][0]) == layerwise
    fresh = espalier.load(tmp_path / "run" / "merged.esp", into=network().eval())
    x = samples()[1].x
    assert torch.equal(fresh(x), result.model.eval()(x))
    again = run_recipe(parse_recipe(text, "here"), tmp_path / "run", resume=True)
    assert torch.equal(again.model.eval()(x), fresh(x))
    with pytest.raises(InvalidArgument, match=r"stages\.0\.merge|parts"):
        parse_recipe(text.replace("branch]", "twig]"), "here")


def test_training_goes_at_the_rate_of_each_group():
    train, _ = samples()
    model = network()
    espalier.merge(model, train.x[:1], start="random", parts="branch")
    still = {n: p.detach().clone() for n, p in model.named_parameters()}
    espalier.train(
        model, train, epochs=1, lr=1e-6, merged_lr=1e4, batch_size=64, schedule="constant"
    )
    moved = {n: float((p.detach() - still[n]).abs().max()) for n, p in model.named_parameters()}
    del moved["0.norm.weight"], moved["0.norm.bias"]  # nothing calls it
    for name, distance in moved.items():  # one step of Adam is as long as the rate
        new = name.startswith(("0.three", "0.five"))
        assert distance == pytest.approx(1e-2 if new else 1e-6, rel=0.2), name
