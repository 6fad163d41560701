"""What rate-aware training promises of every layer, network, precision and memory format."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn

import espalier
from espalier.samples import Samples
from espalier.training import Settings, train
from espalier.zoo import resnet20, vgg16_cifar

ROUNDINGS = ("straight-through", "noise", "annealed")


class Scalar(nn.Module):
    """A parameter without dimensions, and one of several."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.table = nn.Parameter(torch.randn(2, 3, 4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x + self.table


class Pairs(nn.Bilinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x)


class Attention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x, x, need_weights=False)[0]


tokens = torch.arange(12).view(3, 4)
LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), torch.randn(4, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2), torch.randn(2, 4, 8)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), bias=False), torch.randn(2, 4, 8, 8)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), torch.randn(2, 2, 4, 4, 4)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3), torch.randn(2, 4, 8)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), torch.randn(2, 4, 8, 8)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2), torch.randn(2, 2, 4, 4, 4)),
    "one channel": (lambda: nn.Conv2d(1, 6, 3), torch.randn(2, 1, 8, 8)),
    "embedding": (lambda: nn.Embedding(12, 5, padding_idx=0), tokens),
    "bag": (lambda: nn.EmbeddingBag(12, 5), tokens),
    "bilinear": (lambda: Pairs(4, 4, 3), torch.randn(2, 4)),
    "attention": (lambda: Attention(8, 2, batch_first=True), torch.randn(2, 5, 8)),
    "cell": (lambda: nn.GRUCell(4, 3), torch.randn(2, 4)),
    "norms": (
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.GroupNorm(2, 4), nn.LayerNorm([4, 3])),
        torch.randn(3, 4, 3),
    ),
    "scalar": (Scalar, torch.randn(2, 3, 4, 5)),
}


def fit(model: nn.Module, rate: espalier.RateAware, x: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, eps=1e-4)  # which float16 can hold
    for _ in range(steps):
        (model(x).float().square().mean() + rate.loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
        rate.step()


def check_file(model: nn.Module, rate: espalier.RateAware, x: Tensor, fresh: nn.Module) -> None:
    """What is trained is what is saved, and what is read again."""
    model.eval()
    with torch.no_grad():
        outputs = model(x)
    report = rate.finish()
    file = io.BytesIO()
    assert espalier.save(model, file, effort="max").file_bytes == report.file_bytes
    espalier.load(io.BytesIO(file.getvalue()), into=fresh.eval())
    plain = espalier.finalize(copy.deepcopy(model)).state_dict()
    assert all(torch.equal(weight, plain[name]) for name, weight in fresh.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(x), outputs)
        torch.testing.assert_close(fresh(x), outputs)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_kind_of_layer_trains_and_is_saved(layer, rounding):
    torch.manual_seed(0)
    make, x = LAYERS[layer]
    model = make()
    rate = espalier.RateAware(
        model, 1e-5, steps=8, every=3, grid=0.2, rounding=rounding, groups=0.1
    )
    names = {name for name, _ in make().named_parameters()}
    bits = rate.bits
    fit(model.train(), rate, x, 8)
    assert rate.bits != bits
    for parameter in model.parameters():
        assert torch.isfinite(parameter).all()
    check_file(model, rate, x, make())
    assert {name for name, _ in model.named_parameters()} == {
        f"{'.'.join([*head, 'parametrizations', last])}.original"
        for *head, last in (name.split(".") for name in names)
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_of_weights(dtype):
    torch.manual_seed(0)
    model = nn.Linear(16, 8).to(dtype)
    rate = espalier.RateAware(model, 1e-5, steps=6, every=3, grid=0.5)
    fit(model, rate, torch.randn(4, 16, dtype=dtype), 6)
    check_file(model, rate, torch.randn(4, 16, dtype=dtype), nn.Linear(16, 8).to(dtype))


@pytest.mark.parametrize("layer", ["linear", "conv2d", "transposed2d", "embedding", "attention"])
def test_mixed_precision_changes_no_dtype_of_what_is_kept(layer):
    torch.manual_seed(0)
    make, x = LAYERS[layer]
    model = make()
    rate = espalier.RateAware(model, 1e-5, steps=8, every=3, grid=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).float().square().mean() + rate.loss()
    assert loss.dtype == torch.float32
    outside = rate.loss().item()
    with torch.autocast("cpu", torch.bfloat16):
        assert rate.loss().item() == outside
    loss.backward()
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is None or parameter.grad.dtype == torch.float32
    check_file(model, rate, x, make())


@pytest.mark.parametrize("layer", ["conv2d", "conv3d", "transposed2d", "one channel"])
def test_the_memory_format_may_change_on_the_way(layer):
    torch.manual_seed(0)
    make, x = LAYERS[layer]
    model = make()
    rate = espalier.RateAware(model, 1e-3, steps=8, every=100, grid=0.2)
    plain = rate.loss()
    plain.backward()
    (original,) = (p for n, p in model.named_parameters() if n.endswith("weight.original"))
    gradient, original.grad = original.grad.clone(), None
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    model.to(memory_format=last)
    moved = rate.loss()
    moved.backward()
    torch.testing.assert_close(moved, plain)
    torch.testing.assert_close(original.grad, gradient)
    fit(model, rate, x.to(memory_format=last), 4)
    check_file(model, rate, x, make())


@pytest.mark.parametrize(
    "settings", [{"precision": "bfloat16"}, {"channels_last": True}, {"average": 0.9}]
)
def test_a_cifar_resnet_in_the_training_loop(settings):
    torch.manual_seed(0)
    data = Samples(torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,)))
    model = resnet20()
    rate = espalier.RateAware(model, 1e-6, steps=4, every=2)
    options = Settings(epochs=1, batch_size=4, choose="last", **settings)
    train(model, data, options, callbacks=[rate])
    assert rate.steps_done == 4
    check_file(model, rate, data.x[:4], resnet20())


@pytest.mark.slow
def test_vgg_16():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    model = vgg16_cifar().train()
    rate = espalier.RateAware(model, 1e-6, steps=2, every=2, grid=4.0)
    fit(model, rate, x, 2)
    check_file(model, rate, x, vgg16_cifar())
