"""Core ML packages: the weights in them are ours, and what cannot be exported leaves nothing."""

import json
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from espalier.errors import CorruptFile, InvalidArgument, MissingDependency
from espalier.export.coreml_weights import packed
from espalier.zoo import lenet5, resnet20

pytest.importorskip("coremltools")

from espalier.export.coreml_read import _unpacked, read_weights

TARGETS = ("iOS16", "iOS18")


def stack(*layers):
    """A network whose layers are called a, b, c: a name that begins with a digit is changed."""
    return nn.Sequential(OrderedDict(zip("abc", layers, strict=False)))


def check(model, path):
    """Every weight of the network, read back from the package, bit for bit."""
    found = read_weights(path)
    state = dict(espalier.finalize(model).named_parameters())
    weights = [name for name in state if name.endswith("weight") and state[name].dim() > 1]
    assert weights
    for name in weights:
        want = state[name].detach().contiguous().numpy()
        got = found[name.replace(".", "_")]
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize(
    ("target", "kind", "share"),
    [("iOS16", "palettized", 0.7), ("iOS18", "sparse, palettized", 0.15)],
)
def test_lenet5_reads_back_exactly(tmp_path, target, kind, share):
    torch.manual_seed(0)
    model = lenet5()
    espalier.prune(model, density={"conv*": 0.6, "fc*": 0.08})
    espalier.share(model, bits={"conv*": 8, "fc*": 5})
    path = tmp_path / "lenet5.mlpackage"
    found = espalier.export_coreml(model, torch.randn(1, 1, 28, 28), path, target=target)
    assert set(found.forms) == {f"{n}.weight" for n in ("conv1", "conv2", "fc1", "fc2")}
    assert found.forms["fc1.weight"] in (kind, "sparse")
    assert found.file_bytes == sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    assert found.file_bytes < share * 4 * 431_080
    assert json.loads((path / "Manifest.json").read_text())["rootModelIdentifier"]
    check(model, path)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [1, 3, 5, 8])
@pytest.mark.parametrize("density", [None, 0.1])
def test_any_codebook_and_mask(tmp_path, target, bits, density):
    torch.manual_seed(0)
    model = stack(nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 24))
    if density is not None:
        espalier.prune(model, density=density)
    espalier.share(model, bits=bits)
    path = tmp_path / "x.mlpackage"
    espalier.export_coreml(model, torch.randn(2, 48), path, target=target)
    check(model, path)


@pytest.mark.parametrize("target", TARGETS)
def test_in_half_precision_values_are_rounded_and_codes_are_not(tmp_path, target):
    torch.manual_seed(0)
    model = stack(nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 24))
    espalier.prune(model, density={"a": 0.2})
    espalier.share(model, bits=4)
    path = tmp_path / "x.mlpackage"
    found = espalier.export_coreml(
        model, torch.randn(2, 48), path, target=target, precision="float16"
    )
    assert set(found.forms) == {"a.weight", "c.weight"}
    read = read_weights(path)
    for name in "ac":
        want = getattr(model, name).weight.detach().half().numpy()
        assert read[f"{name}_weight"].tobytes() == want.tobytes()


def test_in_half_precision_scales_are_rounded(tmp_path):
    model = stack(nn.Linear(48, 40))
    espalier.quantize(model, bits=8)
    path = tmp_path / "x.mlpackage"
    found = espalier.export_coreml(model, torch.randn(2, 48), path, precision="float16")
    assert found.forms == {"a.weight": "quantized"}
    want = model.a.weight.detach().numpy()
    np.testing.assert_allclose(read_weights(path)["a_weight"], want, rtol=2e-3)


@pytest.mark.parametrize("target", TARGETS)
def test_exact_sparse_weights(tmp_path, target):
    model = stack(nn.Linear(48, 40))
    espalier.prune(model, density=0.1)
    found = espalier.export_coreml(
        model, torch.randn(2, 48), tmp_path / "x.mlpackage", target=target
    )
    assert found.forms == {"a.weight": "sparse"}
    check(model, tmp_path / "x.mlpackage")


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"bits": 8}, "quantized"),
        ({"bits": 4}, "quantized"),
        ({"bits": 8, "symmetric": False}, "quantized"),
        ({"bits": 6, "granularity": "group", "group_size": 16}, "quantized"),
        ({"method": "ternary", "keep_ends": False}, "quantized"),
        ({"bits": 12}, None),
    ],
)
def test_numbers_on_a_grid(tmp_path, options, kind):
    torch.manual_seed(0)
    model = stack(nn.Linear(48, 40))
    espalier.quantize(model, **options)
    found = espalier.export_coreml(model, torch.randn(2, 48), tmp_path / "x.mlpackage")
    assert found.forms == ({} if kind is None else {"a.weight": kind})
    check(model, tmp_path / "x.mlpackage")


def test_batch_norms_leave_the_codebooks_alone(tmp_path):
    torch.manual_seed(0)
    model = resnet20().eval()
    for name, value in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    espalier.share(model, bits=4)
    found = espalier.export_coreml(model, torch.randn(1, 3, 32, 32), tmp_path / "x.mlpackage")
    assert found.counts() == {"palettized": 20}
    check(model, tmp_path / "x.mlpackage")


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_packed_codes_come_apart_again(bits):
    codes = np.random.default_rng(0).integers(0, 1 << bits, 1001).astype(np.uint8)
    data = packed(codes, bits)
    assert data.size == -(-1001 * bits // 8)
    assert np.array_equal(_unpacked(data.tobytes(), bits, 1001), codes)


class Odd(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x @ x.T).real


@pytest.mark.parametrize(
    ("model", "inputs", "name", "options", "says"),
    [
        (Odd(), torch.randn(4, 4), "x.mlpackage", {}, "cannot be exported to Core ML: .*eigvals"),
        (nn.Linear(5, 5), torch.randn(4, 4), "x.mlpackage", {}, "to Core ML: mat1 and mat2"),
        (nn.Linear(4, 4), torch.randn(4, 4), "x.mlmodel", {}, r"ends in \.mlpackage"),
        (nn.Linear(4, 4), torch.randn(4, 4), "x.mlpackage", {"target": "iOS15"}, "target must be"),
        (
            nn.Linear(4, 4),
            torch.randn(4, 4),
            "x.mlpackage",
            {"precision": "half"},
            "precision must",
        ),
        (nn.Linear(4, 4), [3], "x.mlpackage", {}, "takes tensors as inputs"),
    ],
)
def test_what_cannot_be_exported_writes_nothing(
    tmp_path, capfd, model, inputs, name, options, says
):
    with pytest.raises(InvalidArgument, match=says) as error:
        espalier.export_coreml(model, inputs, tmp_path / name, **options)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_an_existing_package_is_kept_unless_forced(tmp_path):
    path = tmp_path / "x.mlpackage"
    espalier.export_coreml(nn.Linear(4, 4), torch.randn(2, 4), path)
    before = (path / "Data/com.apple.CoreML/model.mlmodel").read_bytes()
    with pytest.raises(InvalidArgument, match="force"):
        espalier.export_coreml(nn.Linear(4, 4), torch.randn(2, 4), path, force=False)
    assert (path / "Data/com.apple.CoreML/model.mlmodel").read_bytes() == before
    espalier.export_coreml(nn.Linear(4, 4), torch.randn(2, 4), path)


def test_a_file_of_weights_that_is_not_whole(tmp_path):
    path = tmp_path / "x.mlpackage"
    espalier.export_coreml(nn.Linear(64, 64), torch.randn(2, 64), path)
    weights = path / "Data/com.apple.CoreML/weights/weight.bin"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(CorruptFile, match=r"x\.mlpackage"):
        read_weights(path)
    (path / "Data/com.apple.CoreML/model.mlmodel").write_bytes(b"\x08")
    with pytest.raises(CorruptFile, match="cannot be parsed"):
        read_weights(path)
    (path / "Data/com.apple.CoreML/model.mlmodel").write_bytes(b"")
    with pytest.raises(InvalidArgument, match="no ML Program"):
        read_weights(path)
    with pytest.raises(InvalidArgument, match="no Core ML package"):
        read_weights(tmp_path)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(MissingDependency, match=r"pip install 'espalier\[coreml\]'"):
        espalier.export_coreml(nn.Linear(4, 4), torch.randn(1, 4), tmp_path / "x.mlpackage")
    assert list(tmp_path.iterdir()) == []
