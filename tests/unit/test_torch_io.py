"""From a module to a file and back, bit for bit."""

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from espalier.container import Reader, write
from espalier.errors import InvalidArgument
from espalier.state import CompressedModel, Dense
from espalier.torch_io import read_model, to_array, to_tensor


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 32), nn.Linear(32, 4)
    )


def compressed() -> nn.Sequential:
    model = network()
    espalier.prune(model, density={"3": 0.1, "4": 0.5})
    espalier.share(model, bits={"0": 4, "3": 5})
    return model


def plain(model: nn.Module) -> dict[str, torch.Tensor]:
    return espalier.finalize(model).state_dict()


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return list(first) == list(second) and all(
        a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(first.values(), second.values(), strict=True)
    )


@pytest.mark.parametrize("coder", ["huffman", "fixed"])
def test_load_gives_back_a_plain_state_dict(tmp_path, coder):
    model = compressed()
    ledger = espalier.save(model, tmp_path / "model.esp", coder=coder)
    assert ledger.file_bytes == (tmp_path / "model.esp").stat().st_size
    kinds = {row.name: row.kind for row in ledger.rows}
    assert kinds["0.weight"] == "codebook"
    assert kinds["3.weight"] == "sparse codebook"
    assert kinds["4.weight"] == "sparse"
    assert kinds["1.num_batches_tracked"] == kinds["1.weight"] == "dense"
    assert kinds["1.running_var"] == "copy"  # ones, as the weight is
    assert equal(espalier.load(tmp_path / "model.esp"), plain(model))


def test_load_into_a_model_computes_the_same_bits(tmp_path):
    model = compressed().eval()
    espalier.save(model, tmp_path / "model.esp")
    fresh = espalier.load(tmp_path / "model.esp", into=network()).eval()
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(fresh(x), model(x))
    assert not hasattr(fresh[3], "parametrizations")


def test_load_trainable_puts_masks_and_codebooks_back(tmp_path):
    model = compressed()
    espalier.save(model, tmp_path / "model.esp")
    fresh = espalier.load(tmp_path / "model.esp", into=network(), trainable=True)
    assert torch.equal(fresh[3].weight, model[3].weight)
    assert fresh[3].parametrizations.weight.original.shape == (32,)
    assert fresh[4].parametrizations.weight[0].mask.sum() == 64
    before = (tmp_path / "model.esp").read_bytes()
    espalier.save(fresh, tmp_path / "again.esp")
    assert (tmp_path / "again.esp").read_bytes() == before


def test_loading_into_a_compressed_model_replaces_what_was_there(tmp_path):
    model = network()
    espalier.save(model, tmp_path / "model.esp")
    other = compressed()
    espalier.load(tmp_path / "model.esp", into=other)
    assert equal(other.state_dict(), model.state_dict())


def test_a_kept_weight_that_is_zero_keeps_its_place():
    layer = nn.Linear(4, 1, bias=False)
    espalier.prune(layer, density=0.5)
    mask = layer.parametrizations.weight[0].mask
    with torch.no_grad():
        layer.parametrizations.weight.original.zero_()
    tensor = read_model(layer)["weight"]
    assert tensor.positions.tolist() == mask.flatten().nonzero().flatten().tolist()


def test_centroids_without_weights_are_left_out():
    layer = nn.Linear(8, 8, bias=False)
    espalier.share(layer, bits=3)
    espalier.prune(layer, density=2 / 64)
    tensor = read_model(layer)["weight"]
    assert tensor.codebook.size <= 2
    assert tensor.codes.size == 2
    assert np.array_equal(tensor.dense(), layer.weight.detach().numpy())


def test_tied_weights_are_written_once_and_come_back_tied(tmp_path):
    def tied() -> nn.ModuleList:
        embedding, head = nn.Embedding(100, 16), nn.Linear(16, 100, bias=False)
        head.weight = embedding.weight
        return nn.ModuleList([embedding, head])

    model = tied()
    espalier.share(model, bits=4)
    ledger = espalier.save(model, tmp_path / "model.esp")
    assert [row.name for row in ledger.rows] == ["0.weight"]
    state = espalier.load(tmp_path / "model.esp")
    assert state["0.weight"] is state["1.weight"]
    fresh = espalier.load(tmp_path / "model.esp", into=tied(), trainable=True)
    assert torch.equal(fresh[1].weight, model[0].weight)
    assert len(list(fresh.parameters())) == 1


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8, torch.float8_e4m3fn, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_arrays_hold_the_same_bits(dtype, shape):
    tensor = torch.randn(shape).to(dtype)
    name, array = to_array(tensor)
    back = to_tensor(array.reshape(shape), name)
    assert back.dtype == dtype
    assert back.shape == tensor.shape
    assert back.flatten().view(torch.uint8).tolist() == tensor.flatten().view(torch.uint8).tolist()


def test_nan_in_a_bias_is_kept_and_in_a_shared_weight_refused(tmp_path):
    model = compressed()
    with torch.no_grad():
        model[3].bias[0] = float("nan")
    espalier.save(model, tmp_path / "model.esp")
    assert espalier.load(tmp_path / "model.esp")["3.bias"][0].isnan()
    with torch.no_grad():
        model[3].parametrizations.weight.original[3] = float("inf")
    with pytest.raises(
        InvalidArgument, match=r"3\.weight holds \d+ values that are NaN or infinite"
    ):
        espalier.save(model, tmp_path / "other.esp")
    assert not (tmp_path / "other.esp").exists()


def test_what_does_not_fit_is_said_and_the_model_left_as_it_was(tmp_path):
    espalier.save(compressed(), tmp_path / "model.esp")
    model = nn.Sequential(nn.Conv2d(1, 8, 5))
    before = model[0].weight.detach().clone()
    with pytest.raises(InvalidArgument, match=r"0\.weight is \(8, 1, 3, 3\) in the file and"):
        espalier.load(tmp_path / "model.esp", into=model)
    assert torch.equal(model[0].weight, before)
    model = nn.Sequential(nn.Conv2d(1, 8, 3))
    with pytest.raises(InvalidArgument, match=r"1\.weight is only in the file"):
        espalier.load(tmp_path / "model.esp", into=model)
    espalier.load(tmp_path / "model.esp", into=model, strict=False)


def test_metadata_travels_with_the_weights(tmp_path):
    espalier.save(network(), tmp_path / "model.esp", metadata={"epoch": 3, "note": "ä"})
    with Reader(tmp_path / "model.esp") as reader:
        assert reader.metadata == {"epoch": 3, "note": "ä"}


def test_the_order_is_that_of_the_plain_state_dict(tmp_path):
    espalier.save(compressed(), tmp_path / "model.esp")
    assert list(espalier.load(tmp_path / "model.esp")) == list(network().state_dict())


def test_a_wrapped_model_is_saved_under_its_plain_names(tmp_path):
    model = compressed()
    espalier.save(model, tmp_path / "plain.esp")
    for name, wrapped in (
        ("compiled", torch.compile(model, backend="eager")),
        ("parallel", nn.DataParallel(model)),
    ):
        espalier.save(wrapped, tmp_path / f"{name}.esp")
        assert (tmp_path / f"{name}.esp").read_bytes() == (tmp_path / "plain.esp").read_bytes()
    fresh = torch.compile(network(), backend="eager")
    espalier.load(tmp_path / "plain.esp", into=fresh, trainable=True)
    assert torch.equal(fresh._orig_mod[3].weight, model[3].weight)


def test_a_ledger_says_itself_in_one_line(tmp_path):
    ledger = espalier.save(network(), tmp_path / "model.esp")
    assert repr(ledger).startswith("Ledger(11 tensors, ")


def test_weights_without_counts_of_batches_fit(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    state = {n: v for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    tensors = {n: Dense(tuple(v.shape), "float32", v.numpy().ravel()) for n, v in state.items()}
    write(CompressedModel(tensors), tmp_path / "old.esp")
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    espalier.load(tmp_path / "old.esp", into=fresh)
    assert torch.equal(fresh[0].weight, model[0].weight)
    assert int(fresh[1].num_batches_tracked) == 0
