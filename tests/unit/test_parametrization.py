"""Masks and codebooks on a module: what they must survive."""

import copy
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import espalier
from espalier.errors import InvalidArgument
from espalier.parametrization import SharedWeight, codes_dtype


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 16), nn.Linear(16, 4)
    )


def compressed() -> nn.Sequential:
    model = network()
    espalier.prune(model, density=0.25)
    espalier.share(model, bits={"0": 3, "3": 4})
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x, y = torch.randn(8, 1, 8, 8), torch.randint(0, 4, (8,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zeros_stay_zero_under_any_optimizer(optimizer):
    model = network()
    espalier.prune(model, density=0.25)
    masks = {i: model[i].weight != 0 for i in (0, 3, 4)}
    before = model[3].weight.detach().clone()
    opt = OPTIMIZERS[optimizer](model.parameters())
    for _ in range(5):
        step(model, opt)
    assert all(torch.equal(model[i].weight != 0, mask) for i, mask in masks.items())
    assert not torch.equal(model[3].weight, before)


def test_momentum_from_before_pruning_moves_no_zero():
    model = network()
    opt = OPTIMIZERS["sgd"](model.parameters())
    step(model, opt)
    espalier.prune(model, density=0.25)  # the same parameter objects: the optimizer goes on
    zero = model[3].weight == 0
    for _ in range(3):
        step(model, opt)
    assert (model[3].weight[zero] == 0).all()


def test_at_most_k_values_while_training():
    model = compressed()
    opt = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(3):
        step(model, opt)
    assert model[0].weight.unique().numel() <= 9
    assert model[3].weight.unique().numel() <= 17
    assert int(model[3].weight.count_nonzero()) == model[3].weight.numel() // 4


def test_gradient_of_a_centroid_is_the_sum_of_its_weights_gradients():
    model = compressed()
    layer = model[3]
    codes = layer.parametrizations.weight[0].codes
    x = torch.randn(5, 4 * 36)
    weight = layer.weight.detach().requires_grad_()
    nn.functional.linear(x, weight, layer.bias).square().sum().backward()
    layer(x).square().sum().backward()
    codebook = layer.parametrizations.weight.original
    expected = torch.stack([weight.grad[codes == i + 1].sum() for i in range(codebook.numel())])
    torch.testing.assert_close(codebook.grad, expected)


@pytest.mark.parametrize("make", [network, compressed])
def test_deepcopy_is_independent(make):
    model = make()
    espalier.prune(model, density={"3": 0.1})
    twin = copy.deepcopy(model)
    assert torch.equal(twin[3].weight, model[3].weight)
    with torch.no_grad():
        twin[3].parametrizations.weight.original.zero_()
    assert model[3].weight.any()
    assert not twin[3].weight.any()


@pytest.mark.parametrize("refreshable", [False, True])
def test_attach_puts_a_checkpoint_on_a_fresh_model(tmp_path, refreshable):
    model = network()
    espalier.prune(model, density={"0": 0.5, "3": 0.1})
    espalier.share(model, bits={"3": 4}, refreshable=refreshable)
    torch.save(model.state_dict(), tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    fresh = espalier.attach(network(), state)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(fresh(x), model(x))
    assert list(fresh.state_dict()) == list(model.state_dict())
    opt = torch.optim.SGD(fresh.parameters(), 0.1)
    step(fresh, opt)
    assert torch.equal(fresh[0].weight != 0, model[0].weight != 0)


def test_attach_refuses_what_does_not_fit():
    state = compressed().state_dict()
    other = nn.Sequential(nn.Conv2d(1, 5, 3))
    with pytest.raises(InvalidArgument, match=r"0\.weight: the checkpoint's shape \(4, 1, 3, 3\)"):
        espalier.attach(other, state)
    assert not hasattr(other[0], "parametrizations")
    with pytest.raises(InvalidArgument, match="the model has no such"):
        espalier.attach(nn.Sequential(nn.Conv2d(1, 4, 3)), state)


def test_attach_takes_a_plain_checkpoint_too():
    model = network()
    fresh = espalier.attach(network(), model.state_dict())
    assert list(fresh.state_dict()) == list(model.state_dict())


def test_finalize_leaves_a_plain_module_and_the_same_bits():
    model = compressed()
    x = torch.randn(2, 1, 8, 8)
    before = model(x)
    assert espalier.finalize(model) is model
    assert list(model.state_dict()) == list(network().state_dict())
    assert type(model[3]) is nn.Linear
    assert torch.equal(model(x), before)
    step(model, torch.optim.SGD(model.parameters(), 0.1))


def test_finalize_leaves_foreign_parametrizations_alone():
    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    espalier.finalize(model)
    assert hasattr(model, "parametrizations")


def test_autocast():
    model = compressed()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(torch.randn(2, 1, 8, 8)).float().square().sum()
    loss.backward()
    assert model[3].parametrizations.weight.original.grad.dtype == torch.float32


def test_tied_weights_share_one_codebook():
    embedding, head = nn.Embedding(30, 8), nn.Linear(8, 30, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleList([embedding, head])
    espalier.share(model, bits=2)
    assert torch.equal(embedding.weight, head.weight)
    (codebook,) = model.parameters()
    assert codebook.shape == (4,)
    head(embedding(torch.arange(30))).sum().backward()
    fresh = nn.ModuleList([nn.Embedding(30, 8), nn.Linear(8, 30, bias=False)])
    fresh[1].weight = fresh[0].weight
    espalier.attach(fresh, model.state_dict())
    assert torch.equal(fresh[1].weight, head.weight)
    assert len(list(fresh.parameters())) == 1
    espalier.finalize(model)
    assert head.weight is embedding.weight
    assert head.weight.shape == (30, 8)


def test_half_precision_models():
    model = network().bfloat16()
    espalier.prune(model, density=0.5)
    espalier.share(model, bits=3)
    assert model[3].weight.dtype == torch.bfloat16
    assert model[3].weight.unique().numel() <= 9


def test_module_to_other_dtype_and_device_moves_everything():
    model = compressed().double()
    assert model[3].weight.dtype == torch.float64
    assert model(torch.randn(1, 1, 8, 8).double()).dtype == torch.float64


@pytest.mark.parametrize(("k", "dtype"), [(255, "uint8"), (256, "int32"), (65535, "int32")])
def test_codes_are_as_narrow_as_they_can_be(k, dtype):
    assert codes_dtype(k) == getattr(torch, dtype)


def test_all_256_centroids_of_8_bits_are_reached():
    layer = nn.Linear(64, 64, bias=False)
    espalier.share(layer, bits=8)
    held = layer.parametrizations.weight[0]
    assert isinstance(held, SharedWeight)
    assert layer.weight.unique().numel() == 256


@pytest.mark.slow
def test_torch_compile():
    model = compressed()
    x = torch.randn(2, 1, 8, 8)
    fast = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(fast(x), model(x))
    opt = torch.optim.SGD(model.parameters(), 0.1)
    opt.zero_grad()
    fast(x).square().sum().backward()
    opt.step()
    assert model[3].weight.unique().numel() <= 17
    torch.testing.assert_close(fast(x), model(x))


DDP = """
import os, sys, torch, torch.distributed as dist, espalier
from torch import nn
from torch.nn.parallel import DistributedDataParallel
path, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
espalier.prune(model, density={"0": 0.25})
espalier.share(model, bits={"0": 2})
espalier.prune(model, density={"1": 0.5})
zero = [model[i].weight == 0 for i in (0, 1)]
ddp = DistributedDataParallel(model)
opt = torch.optim.SGD(ddp.parameters(), 0.1, momentum=0.9)
torch.manual_seed(dist.get_rank())
for _ in range(3):
    opt.zero_grad()
    ddp(torch.randn(4, 8)).square().sum().backward()
    opt.step()
assert all((model[i].weight[z] == 0).all() for i, z in enumerate(zero))
assert model[0].weight.unique().numel() <= 5
mine = torch.cat([model[0].weight.detach().flatten(), model[1].weight.detach().flatten()])
both = [torch.zeros_like(mine) for _ in range(2)]
dist.all_gather(both, mine)
assert torch.equal(*both)
dist.barrier()  # gloo can abort at exit where the other process has left
del ddp
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path):
    in_two_processes(tmp_path, DDP)


def in_two_processes(tmp_path, text):
    """Run a script twice, with the path of a rendezvous and its rank."""
    script = tmp_path / "ddp.py"
    script.write_text(textwrap.dedent(text))
    rendezvous = str(tmp_path / "rendezvous")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), rendezvous, str(rank)],
            stderr=subprocess.PIPE,
            env=environment,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err.decode()


def test_releasing_a_copy_leaves_the_original_parametrized():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    espalier.prune(model, density=0.5)
    weight = model[0].weight.clone()
    twin = copy.deepcopy(model)
    espalier.share(twin, bits=1)
    espalier.finalize(copy.deepcopy(model))
    assert torch.equal(model[0].weight, weight)
    assert type(espalier.finalize(twin)[0]) is nn.Linear
    assert type(espalier.finalize(model)[0]) is nn.Linear
    assert torch.equal(model[0].weight, weight)


@pytest.mark.parametrize("channels", [1, 3])
def test_weights_stay_in_the_memory_format_that_the_model_has(channels):
    def build():
        return nn.Sequential(nn.Conv2d(channels, 4, 3)).to(memory_format=torch.channels_last)

    model, x = build(), torch.randn(2, channels, 8, 8)
    strides, made = model[0].weight.stride(), model(x).stride()
    espalier.prune(model, 0.5)
    pruned = model[0].weight.detach().clone()
    assert model[0].weight.stride() == strides
    assert model(x).stride() == made
    espalier.share(model, 16)
    assert model[0].weight.stride() == strides
    assert model(x).stride() == made
    assert torch.equal(model[0].weight, pruned)  # fewer weights than centroids
    contiguous = {name: value.contiguous() for name, value in model.state_dict().items()}
    fresh = espalier.attach(build(), contiguous)
    assert fresh[0].weight.stride() == strides
    espalier.finalize(fresh)
    assert fresh[0].weight.stride() == strides
    assert torch.equal(fresh[0].weight, pruned)
