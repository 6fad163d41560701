"""The choice of coders: by name, or the smallest by measured size for each stream."""

import io
from itertools import pairwise

import numpy as np
import pytest

import espalier
from espalier.container import Reader, write
from espalier.entropy import CODERS
from espalier.entropy.choice import EFFORTS, coders_for
from espalier.entropy.codes import encode_codes
from espalier.entropy.positions import encode_positions
from espalier.entropy.values import encode_values
from espalier.errors import InvalidArgument, UnknownMethod
from espalier.state import CompressedModel, Dense, SparseCodebook


def codes_of(n, spread, seed=0):
    return np.clip(np.random.default_rng(seed).normal(16, spread, n), 0, 31).astype(np.uint8)


def test_a_name_is_that_coder_alone():
    assert coders_for("huffman", "fast").name == "huffman"
    coder = CODERS.make("rans")
    assert coders_for(coder) is coder
    with pytest.raises(UnknownMethod, match="known are"):
        coders_for("zip")
    with pytest.raises(
        InvalidArgument, match="no effort is called 'slow'; known are fast, default, max"
    ):
        coders_for("auto", "slow")


def test_more_effort_tries_more():
    names = [set(coders) for coders in EFFORTS.values()]
    assert all(few < many for few, many in pairwise(names))


@pytest.mark.parametrize("n", [1, 20, 300, 5000, 300_000])
@pytest.mark.parametrize("spread", [0.3, 5, 1000])
@pytest.mark.parametrize("effort", EFFORTS)
def test_no_coder_alone_is_smaller(n, spread, effort):
    codes = codes_of(n, spread)
    kept = np.flatnonzero(np.random.default_rng(n).random(9 * n) < 0.1)
    values = (codes / 7).astype("<f4")
    several = coders_for("auto", effort)
    for encode in [
        lambda coders: encode_codes(codes, 32, coders)[0],
        lambda coders: encode_positions(kept, 9 * n, coders, n)[0],
        lambda coders: encode_values(values, "float32", coders),
    ]:
        sizes = [len(encode(coder).body) for coder in several]
        assert len(encode(several).body) <= min(sizes)


def test_each_stream_has_its_own():
    rng = np.random.default_rng(0)
    n = 4000
    skewed = rng.choice(4, n, p=[0.97, 0.01, 0.01, 0.01]).astype("u1")
    kept = np.sort(rng.permutation(9 * n)[:n])
    codes = (np.arange(n) % 16).astype("u1")
    tensors = {
        "skewed": Dense((n,), "uint8", skewed),
        "uniform": SparseCodebook((9 * n,), "float32", kept, codes, np.arange(16, dtype="<f4")),
    }
    file = io.BytesIO()
    ledger = write(CompressedModel(tensors), file)
    assert ledger["skewed"].values_coder == "rans"
    assert ledger["uniform"].codes_coder == "fixed"
    assert ledger["uniform"].positions_coder == "rans"
    with Reader(file) as reader:
        for name, tensor in tensors.items():
            assert reader.tensor(name).dense().tobytes() == tensor.dense().tobytes()
    fast = write(CompressedModel(tensors), io.BytesIO(), effort="fast")
    assert fast["skewed"].values_coder == "huffman"
    assert fast.file_bytes > ledger.file_bytes


def test_saving_tries_several_by_default(tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Linear(300, 300)
    espalier.prune(model, density=0.1)
    espalier.share(model, bits=5)
    sizes = {
        coder: espalier.save(model, tmp_path / "m.esp", coder=coder).file_bytes
        for coder in ["auto", "huffman", "fixed", "rans"]
    }
    assert espalier.save(model, tmp_path / "m.esp").file_bytes == sizes["auto"]
    assert sizes["auto"] == min(sizes.values())
    assert espalier.save(model, tmp_path / "m.esp", effort="fast").file_bytes <= sizes["huffman"]
    with pytest.raises(InvalidArgument, match="effort"):
        espalier.save(model, tmp_path / "m.esp", effort="most")
