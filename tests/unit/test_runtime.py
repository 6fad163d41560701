"""Networks that run from their compressed weights: choices, memory, and what cannot be."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from espalier.errors import InvalidArgument
from espalier.runtime import candidates as candidates_module
from espalier.runtime.api import _milder
from espalier.runtime.candidates import gain
from espalier.runtime.convolution import PackedConv
from espalier.runtime.dense_convolution import PREPACKED, PrepackedConv
from espalier.runtime.inference_layer import DENSE
from espalier.runtime.layers import EXPANDED, PACKED, SKIPPING, PackedLayer, PackedLinear
from espalier.runtime.packed import PackedMatrix
from espalier.runtime.report import Choice
from espalier.runtime.threads import openmp, pool
from espalier.timing import Comparison, Spread

FAST = Spread(1.0, 1.0, 1.0)


def network(density: float = 0.1, bits: int | None = 5) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 256)
    )
    espalier.prune(model, density=density)
    if bits:
        espalier.share(model, bits=bits)
    return model.eval()


IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def clock(monkeypatch):
    """Ratios that a test sets: dense by each form of a layer, and of the whole model."""
    ratios = {PACKED: 2.0, SKIPPING: 0.5, EXPANDED: 0.5, PREPACKED: 0.5, "model": 2.0}

    last: list[str] = []

    def of_layer(first, second, clock, **options):
        first(), second()
        return fake(ratios[last[-1]])

    def of_dense(first, second, clock, **options):
        first(), second()
        return fake(ratios[PREPACKED])

    def of_model(first, second, clock, **options):
        first(), second()
        return fake(ratios["model"])

    def fake(ratio):
        return Comparison(Spread(ratio, ratio, ratio), FAST, Spread(ratio, ratio, ratio))

    for kind in (PackedLinear, PackedConv, PrepackedConv):

        def compute(layer, x, form, real=kind.compute):
            last.append(form)
            return real(layer, x, form)

        monkeypatch.setattr(kind, "compute", compute)
    monkeypatch.setattr("espalier.runtime.candidates.compare", of_layer)
    monkeypatch.setattr("espalier.runtime.prepack.compare", of_dense)
    monkeypatch.setattr("espalier.runtime.api.compare", of_model)
    return ratios


def test_words_by_hand():
    dense = torch.tensor([[0.0, 2.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 2.0]])
    packed = PackedMatrix.of(dense)
    # Two values and -1 make three: codes of two bits under the column.
    assert packed.bits == 2
    assert packed.table.tolist() == [-1.0, 2.0, 5.0]
    assert packed.words.tolist() == [1 << 2 | 1, 3 << 2 | 0, 0 << 2 | 2, 3 << 2 | 1]
    assert packed.pointers.tolist() == [0, 2, 2, 4]
    assert packed.nbytes == 4 * 2 + 4 * 4 + 3 * 4
    y = packed.times_vector(torch.tensor([1.0, 10.0, 100.0, 1000.0]), torch.ones(3), 1)
    assert y.tolist() == [1 + 20 - 1000, 1, 1 + 5 + 2000]


def test_the_memory_of_the_paper_s_layer():
    """4096 x 4096, 9% of them, 32 values: 2 bytes for each nonzero, pointers for two blocks."""
    n = 1_509_949
    at = torch.randperm(1 << 24, generator=torch.Generator().manual_seed(0))[:n]
    dense = torch.zeros(1 << 24)
    dense[at] = torch.arange(1.0, 33.0)[torch.arange(n) % 32]
    packed = PackedMatrix.of(dense.view(4096, 4096))
    assert packed.words.dtype == np.uint16
    assert packed.nbytes == 2 * n + 4 * (2 * 4096 + 1) + 4 * 32 < 4_000_000


def test_results_are_those_of_the_dense_network(clock):
    model = network()
    with torch.no_grad():
        before = model(IMAGES)
    plain = espalier.finalize(copy.deepcopy(model)).state_dict()
    report = espalier.accelerate(model, IMAGES, batches=[1, 4])
    assert [row.name for row in report.layers] == ["0", "3"]
    assert all(isinstance(model[i], PackedLayer) for i in (0, 3))
    assert not list(model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), before, rtol=0, atol=1e-5)
        twin = copy.deepcopy(model)
        assert twin[3].forms[PACKED] is model[3].forms[PACKED]
        torch.testing.assert_close(twin(IMAGES), before, rtol=0, atol=1e-5)
    state = model.state_dict()
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[name], plain[name]) for name in plain)


def test_the_reported_bytes_are_those_in_memory(clock):
    model = network()
    report = espalier.accelerate(model, IMAGES, batches=[1])
    conv, linear = report.layers
    matrix = model[3].forms[PACKED]
    assert linear.weight_bytes == sum(
        part.nbytes for part in (matrix.words, matrix.pointers, matrix.table)
    )
    assert linear.dense_bytes == 256 * 1024 * 4
    assert (linear.levels, linear.density) == (32, pytest.approx(0.1, abs=1e-4))
    biases = (16 + 256) * 4
    assert report.dense_bytes == conv.dense_bytes + linear.dense_bytes + biases
    assert report.weight_bytes == conv.weight_bytes + linear.weight_bytes + biases


def test_dense_where_dense_is_faster(clock):
    clock[PACKED] = 0.9
    model = network()
    report = espalier.accelerate(model, IMAGES, batches=[1])
    assert not report.layers
    assert type(model[3]) is nn.Linear
    assert [skipped.name for skipped in report.skipped] == ["0", "3"]
    assert "dense is faster" in report.skipped[0].reason


def test_a_network_that_is_slower_as_a_whole_goes_back(clock):
    clock["model"] = 0.9
    model = network()
    report = espalier.accelerate(model, IMAGES, batches=[1])
    assert not report.layers
    assert type(model[0]) is nn.Conv2d


def test_a_gain_is_there_in_the_rounds_and_in_the_quick_ones():
    fast, slow = Spread(2.0, 1.0, 9.0), Spread(4.0, 4.0, 4.0)
    assert gain(Comparison(slow, fast, Spread(2.0, 0.5, 4.0))) == 2.0
    assert gain(Comparison(slow, Spread(1.0, 3.2, 9.0), Spread(2.0, 0.5, 4.0))) == 1.25


def candidate(**forms):
    made = PackedLinear(PackedMatrix.of(torch.eye(4)), nn.Linear(4, 4))
    shapes = {1: torch.Size([1, 4]), 8: torch.Size([8, 4])}
    found = candidates_module.Candidate(
        ("fc",),
        nn.Linear(4, 4),
        made,
        made.forms[PACKED],
        torch.ones(1, 4),
        shapes,
        nn.Linear(4, 4),
    )
    found.settle(
        Choice(int(batch[1:]), form, FAST, {PACKED: FAST}, 2.0) for batch, form in forms.items()
    )
    return found


def test_what_is_slower_goes_back_step_by_step():
    mixed, packed = candidate(b1=DENSE, b8=PACKED), candidate(b1=PACKED, b8=PACKED)
    assert _milder([mixed, packed], {1}) == [packed]
    assert _milder([packed], {1}) == [packed]
    assert packed.made.choice == {1: DENSE, 8: PACKED}
    assert _milder([packed], {1}) == []
    assert _milder([mixed], {8}) == []


def test_memory_before_time(clock):
    clock[PACKED] = 0.5
    clock["model"] = 0.5
    model = network()
    report = espalier.accelerate(model, IMAGES, batches=[1], prefer="memory")
    assert [choice.form for row in report.layers for choice in row.choices] == [PACKED, PACKED]
    assert report.weight_bytes < report.dense_bytes / 5


def test_expanded_where_that_is_worth_its_memory(clock):
    clock[EXPANDED] = 2.05
    model = network()
    espalier.accelerate(model, IMAGES, batches=[1], expand=True)
    assert list(model[3].forms) == [PACKED]
    clock[EXPANDED] = 3.0
    model = network()
    with torch.no_grad():
        before = model(IMAGES)
    report = espalier.accelerate(model, IMAGES, batches=[1], expand=True)
    assert report.layers[1].choices[0].form == EXPANDED
    csr = model[3].forms[EXPANDED]
    assert csr.col_indices().dtype == torch.int32
    held = sum(part.nbytes for part in (csr.crow_indices(), csr.col_indices(), csr.values()))
    assert report.layers[1].weight_bytes == held
    for made in (model, copy.deepcopy(model)):
        with torch.no_grad():
            torch.testing.assert_close(made(IMAGES), before, rtol=0, atol=1e-5)
            torch.testing.assert_close(made(IMAGES[:1]), before[:1], rtol=0, atol=1e-5)


def test_zeros_of_the_input_are_skipped_where_that_pays(clock):
    clock[SKIPPING] = 4.0
    model = network()
    with torch.no_grad():
        before = model(IMAGES)
    plain = espalier.finalize(copy.deepcopy(model)).state_dict()
    report = espalier.accelerate(model, IMAGES, batches=[1])
    conv, linear = report.layers
    assert list(conv.choices[0].ms) == [PACKED]
    assert linear.choices[0].form == SKIPPING  # its input comes out of a ReLU
    turned = model[3].forms[SKIPPING]
    assert list(model[3].forms) == [SKIPPING]
    assert turned.shape == (1024, 256)
    assert linear.weight_bytes == turned.nbytes
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), before, rtol=0, atol=1e-5)
    assert torch.equal(model.state_dict()["3.weight"], plain["3.weight"])

    model = network()
    report = espalier.accelerate(model, IMAGES, batches=[1, 4])
    assert [choice.form for choice in report.layers[1].choices] == [SKIPPING, PACKED]
    assert report.layers[1].weight_bytes == sum(m.nbytes for m in model[3].forms.values())


def test_an_input_without_zeros_has_none_to_skip(clock):
    model = nn.Sequential(nn.Linear(64, 64)).eval()
    espalier.prune(model, density=0.1)
    report = espalier.accelerate(model, torch.ones(1, 64), batches=[1])
    assert list(report.layers[0].choices[0].ms) == [PACKED]


@pytest.mark.parametrize("faster", [PACKED, SKIPPING])
@pytest.mark.parametrize("groups", [1, 2])
def test_fixed_point_has_a_scale_for_each_output(clock, faster, groups):
    clock[faster] = 4.0
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3, groups=groups), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 64)
    ).eval()
    espalier.prune(model, density=0.3)
    espalier.quantize(model, bits=4)
    images = torch.randn(3, 4, 8, 8)
    with torch.no_grad():
        before = model(images)
    plain = espalier.finalize(copy.deepcopy(model)).state_dict()
    report = espalier.accelerate(model, images, batches=[1])
    assert [row.levels <= 15 for row in report.layers] == [True, True]
    linear = model[3]
    assert report.layers[1].weight_bytes == linear.forms[faster].nbytes + 64 * 4
    with torch.no_grad():
        torch.testing.assert_close(model(images), before, rtol=0, atol=1e-5)
        torch.testing.assert_close(model(images[:1]), before[:1], rtol=0, atol=1e-5)
    state = model.state_dict()
    assert all(torch.equal(state[name], plain[name]) for name in plain)


def test_pickles_hold_no_address(clock):
    model = network()
    espalier.accelerate(model, IMAGES, batches=[1])
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert "_block" not in vars(again[3].forms[PACKED])
    with torch.no_grad():
        assert torch.equal(again(IMAGES), model(IMAGES))


def test_the_nearest_batch_size_counts():
    layer = PackedLinear(PackedMatrix.of(torch.eye(8)), nn.Linear(8, 8))
    layer.choice = {1: PACKED, 16: EXPANDED, 64: DENSE}
    assert [layer.form(n) for n in (0, 1, 3, 5, 16, 31, 33, 1000)] == [
        PACKED, PACKED, PACKED, EXPANDED, EXPANDED, EXPANDED, DENSE, DENSE
    ]  # fmt: skip


def test_plain_zeros_need_no_mask(clock):
    model = espalier.finalize(network())
    report = espalier.accelerate(model, IMAGES, batches=[1])
    assert [row.levels for row in report.layers] == [32, 32]
    model = network(bits=None)
    report = espalier.accelerate(model, IMAGES, batches=[1])
    assert [row.levels for row in report.layers] == [43, None]  # 43 weights, as many values


def test_from_a_file_and_back_into_one(clock, tmp_path):
    model = network()
    espalier.save(model, tmp_path / "model.esp")
    fresh = espalier.load(tmp_path / "model.esp", into=network(density=0.9, bits=None))
    espalier.accelerate(fresh, IMAGES, batches=[1])
    again = io.BytesIO()
    espalier.save(fresh, again)
    again.seek(0)
    state = espalier.load(again)
    plain = espalier.finalize(model).state_dict()
    assert all(torch.equal(state[name], plain[name]) for name in plain)


class Tied(nn.Module):
    """One module twice, one weight in two modules, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(64, 64, bias=False)
        self.again = self.one
        self.other = nn.Linear(64, 64)
        self.other.weight = self.one.weight
        self.idle = nn.Linear(64, 64)

    def forward(self, x):
        return self.other(self.again(self.one(x)))


def test_tied_weights_are_packed_once(clock):
    model = Tied().eval()
    espalier.prune(model, density=0.2)
    x = torch.randn(2, 64)
    with torch.no_grad():
        before = model(x)
    report = espalier.accelerate(model, x, batches=[1])
    assert model.again is model.one
    assert model.other.forms[PACKED] is model.one.forms[PACKED]
    assert [row.name for row in report.layers] == ["one", "other"]
    (skipped,) = report.skipped
    assert (skipped.name, "not called" in skipped.reason) == ("idle", True)
    with torch.no_grad():
        torch.testing.assert_close(model(x), before)


class Language(nn.Module):
    """An embedding whose weight is that of the last layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 64)
        self.head = nn.Linear(64, 100)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


def test_a_weight_that_an_embedding_shares_is_packed_for_the_layer(clock):
    model, x = Language().eval(), torch.arange(5)[None]
    espalier.prune(model, {"head": 0.2})
    with torch.no_grad():
        before = model(x)
    report = espalier.accelerate(model, x, batches=[1])
    assert [row.name for row in report.layers] == ["head"]
    assert type(model.embedding) is nn.Embedding
    assert report.weight_bytes == report.dense_bytes + report.layers[0].weight_bytes
    with torch.no_grad():
        torch.testing.assert_close(model(x), before)


def test_inference_only(clock):
    model = network()
    espalier.accelerate(model, IMAGES, batches=[1])
    with pytest.raises(InvalidArgument, match="for inference only: call model"):
        model(IMAGES.clone().requires_grad_())
    model.train()
    with pytest.raises(InvalidArgument, match="for inference only"):
        model(IMAGES)
    model.eval()
    with pytest.raises(InvalidArgument, match="into which none can be loaded"):
        model.load_state_dict(model.state_dict())
    with pytest.raises(InvalidArgument, match=r"computes .* in torch.float32; .* in torch.float64"):
        model(IMAGES.double())
    with pytest.raises(InvalidArgument, match=r"shape \(2, 5\) for a layer of 1024 features"):
        model[3](torch.zeros(2, 5))
    with pytest.raises(InvalidArgument, match=r"shape \(2, 5, 9, 9\) for a convolution of 3"):
        model[0](torch.zeros(2, 5, 9, 9))


def test_bad_options_leave_the_model_alone():
    model = network()
    before = type(model[3])
    for options, words in [
        ({"batches": [0]}, r"batches \[0\] must be numbers from 1 on"),
        ({"prefer": "size"}, "prefer 'size' must be one of time, memory"),
    ]:
        with pytest.raises(InvalidArgument, match=words):
            espalier.accelerate(model, IMAGES, **options)
    with pytest.raises(InvalidArgument, match="no sample"):
        espalier.accelerate(model, IMAGES[:0])
    with pytest.raises(InvalidArgument, match="cannot be run on the example at batch size 1"):
        espalier.accelerate(model, torch.zeros(1, 4, 8, 8))
    with pytest.raises(InvalidArgument, match="on the CPU, not meta"):
        espalier.accelerate(model, IMAGES.to("meta"))
    assert type(model[3]) is before


def test_what_is_left_alone_says_why(clock):
    model = nn.Sequential(
        nn.ConvTranspose2d(3, 3, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    )
    model[2].register_forward_hook(lambda *_: None)
    espalier.prune(model, {"2": 0.1, "3": 0.1})
    report = espalier.accelerate(model, torch.zeros(1, 3, 12, 12), batches=[1])
    reasons = {skipped.name: skipped.reason for skipped in report.skipped}
    assert reasons["0"] == "a ConvTranspose2d is run dense"
    assert reasons["1"] == "100% of its weights are not zero: dense is faster"
    assert reasons["2"].startswith("has hooks")
    assert [row.name for row in report.layers] == ["3"]
    alone = espalier.accelerate(nn.Linear(4, 4), torch.zeros(1, 4))
    assert "is the whole model" in alone.skipped[0].reason
    half = nn.Sequential(nn.Linear(4, 4)).bfloat16()
    report = espalier.accelerate(half, torch.zeros(1, 4, dtype=torch.bfloat16))
    assert "it is bfloat16" in report.skipped[0].reason


def test_a_real_clock_and_two_threads():
    model = network()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            want = model(IMAGES)
        report = espalier.accelerate(model, IMAGES, batches=[1], prefer="memory")
        assert report.threads == 2
        assert report.model[0].ratio.median > 0
        with torch.no_grad():
            torch.testing.assert_close(model(IMAGES), want, rtol=0, atol=1e-5)
    finally:
        torch.set_num_threads(before)
    assert report.to_json()["layers"][0]["name"] == "0"


@pytest.mark.parametrize("make", [openmp, pool])
def test_either_kind_of_threads_does_all_the_work(make, monkeypatch):
    share = make()
    if share is None:
        pytest.skip("this build of PyTorch has no OpenMP of GNU's kind")
    monkeypatch.setattr("espalier.runtime.threads._shared", lambda: share)
    torch.manual_seed(0)
    dense = torch.randn(1000, 300) * (torch.rand(1000, 300) < 0.3)
    x = torch.randn(300)
    y = PackedMatrix.of(dense).times_vector(x, torch.zeros(1000), 3)
    torch.testing.assert_close(y, dense @ x, rtol=0, atol=1e-4)


def test_a_sample_fills_any_shape():
    found = candidate(b8=PACKED)
    found.sample = torch.arange(4.0)[None]
    assert found.input(8).tolist() == [[0, 1, 2, 3]] * 8


def test_values_that_are_not_shared_are_not_packed_densely(clock):
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300)).eval()
    espalier.share(model, {"1": 4})
    x = torch.ones(1, 300)
    report = espalier.accelerate(model, x, batches=[1], prefer="memory")
    assert [row.name for row in report.layers] == ["1"]
    assert "share no values" in report.skipped[0].reason
    assert report.layers[0].weight_bytes < report.layers[0].dense_bytes


# ---------------------------------------------------------------- dense convolutions


def images_network(*behind: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, groups=3), *behind, nn.Conv2d(6, 4, 3)).eval()


@pytest.mark.parametrize(
    "behind",
    [
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.Hardtanh(-0.1, 0.2),
        nn.LeakyReLU(0.3),
        nn.GELU(),
        nn.GELU(approximate="tanh"),
        nn.SiLU(),
        nn.Hardswish(),
        nn.Sigmoid(),
        nn.Tanh(),
    ],
    ids=repr,
)
def test_a_dense_convolution_computes_what_is_behind_it(clock, behind):
    clock[PREPACKED] = 2.0
    model = images_network(nn.Identity(), behind)
    images = IMAGES.repeat(1, 1, 2, 2)
    with torch.no_grad():
        before = model(images)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    report = espalier.accelerate(model, images, batches=[1])
    assert not report.layers
    assert [row.name for row in report.prepacked] == ["0", "3"]
    assert report.prepacked[0].after
    assert not report.prepacked[1].after
    assert [(found.batch, found.form) for found in report.forms] == [(1, PREPACKED)]
    assert not report.skipped
    assert type(model[2]) is nn.Identity
    assert report.weight_bytes == report.dense_bytes
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    with torch.no_grad():
        for made in (model, copy.deepcopy(model), torch.load(buffer, weights_only=False)):
            torch.testing.assert_close(made(images), before, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(made[0](images[0]), made[0](images)[0], rtol=0, atol=1e-6)
    state = model.state_dict()
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[name], plain[name]) for name in plain)


class Shared(nn.Module):
    """One activation for all, also as a function, and what may not be taken out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.relu, self.linear = nn.ReLU(), nn.Linear(3 * 64, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.a(x))
        y = self.b(x)  # read twice
        x = self.relu(y) + y
        return self.linear(torch.relu(self.c(x)).flatten(1))


def test_a_shared_activation_is_taken_out_where_it_can_be(clock):
    clock[PREPACKED] = 2.0
    torch.manual_seed(0)
    model = Shared().eval()
    with torch.no_grad():
        before = model(IMAGES)
    report = espalier.accelerate(model, IMAGES, batches=[1, 4])
    assert [(row.name, row.after) for row in report.prepacked] == [
        ("a", "relu"),
        ("b", ""),
        ("c", "relu"),
    ]
    assert isinstance(model, Shared)
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), before, rtol=1e-5, atol=1e-5)
        twin = copy.deepcopy(model)
        torch.testing.assert_close(twin(IMAGES), before, rtol=1e-5, atol=1e-5)


class Branching(nn.Module):
    """Cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv(x)) if x.sum() > -1e9 else x


def test_without_a_graph_weights_alone_are_laid_out(clock):
    clock[PREPACKED] = 2.0
    hooked = nn.Sequential(images_network(nn.ReLU())).eval()
    calls = []
    hooked[0].register_forward_hook(lambda *_: calls.append(1))
    for model in (Branching().eval(), hooked):
        with torch.no_grad():
            before = model(IMAGES)
        report = espalier.accelerate(model, IMAGES, batches=[1])
        assert not any(row.after for row in report.prepacked)
        assert report.prepacked
        calls.clear()
        with torch.no_grad():
            torch.testing.assert_close(model(IMAGES), before, rtol=1e-5, atol=1e-5)
        assert len(calls) == (model is hooked)


class Viewed(nn.Module):
    """Takes for granted how its images lie, or does not."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(3, 4, 3), how

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        flat = getattr(self.conv(x), self.how)(len(x), -1)
        return {"flat": [flat], "label": torch.ones(1).long(), "name": "x"}


def test_a_network_that_fails_on_the_order_in_memory_is_left_alone(clock):
    clock[PREPACKED] = 2.0
    for how, made in (("view", False), ("reshape", True)):
        model = Viewed(how).eval()
        assert bool(espalier.accelerate(model, IMAGES, batches=[1]).prepacked) is made
        assert type(model.conv) is (PrepackedConv if made else nn.Conv2d)


def test_other_outputs_are_noticed(clock, monkeypatch):
    clock[PREPACKED] = 2.0
    real = PrepackedConv.compute
    monkeypatch.setattr(PrepackedConv, "compute", lambda *args: 1.01 * real(*args))
    assert not espalier.accelerate(images_network(nn.ReLU()), IMAGES, batches=[1]).prepacked


def test_dense_convolutions_stay_where_that_is_as_fast(clock):
    for options, made in [({}, False), ({"prepack": False}, False), ({"prefer": "memory"}, False)]:
        model = images_network(nn.ReLU())
        report = espalier.accelerate(model, IMAGES, batches=[1], **options)
        assert bool(report.prepacked) is made
        assert type(model[0]) is nn.Conv2d
        assert type(model[1]) is nn.ReLU
        assert [skipped.name for skipped in report.skipped] == ["0", "2"]
        assert report.model == report.forms == ()
    clock[PREPACKED] = 2.0
    model = images_network(nn.ReLU())
    report = espalier.accelerate(model, IMAGES, batches=[1], prepack=False)
    assert not report.prepacked
    for prefer in ("time", "memory"):
        model = images_network(nn.ReLU())
        report = espalier.accelerate(model, IMAGES, batches=[1], prefer=prefer)
        assert [list(model[i].forms) for i in (0, 2)] == [[PREPACKED]] * 2


def test_each_batch_size_has_its_form(clock, monkeypatch):
    """The weight as it was is held only where a size asks for it."""
    sizes = []
    monkeypatch.setattr(
        "espalier.runtime.prepack.gain", lambda _: 2.0 if sizes.append(1) or len(sizes) < 2 else 0.5
    )
    model = images_network(nn.ReLU())
    with torch.no_grad():
        before = model(IMAGES)
    report = espalier.accelerate(model, IMAGES, batches=[1, 5])
    assert [(found.batch, found.form) for found in report.forms] == [(1, PREPACKED), (5, DENSE)]
    assert [*model[0].forms] == [PREPACKED, DENSE]
    assert report.prepacked[0].weight_bytes == 2 * model[0].weight.nbytes
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), before, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(IMAGES[:1]), before[:1], rtol=1e-5, atol=1e-5)
    sizes.clear()
    model = images_network(nn.ReLU())
    assert not espalier.accelerate(model, IMAGES, batches=[1, 5], prefer="memory").prepacked


def test_sparse_convolutions_go_back_where_dense_ones_are_faster_laid_out(clock, monkeypatch):
    """By more than what their memory is worth; linear layers stay sparse."""
    gains: list[float] = []
    monkeypatch.setattr("espalier.runtime.prepack.gain", lambda _: gains.pop(0))
    for own, everywhere, prefer, names in [
        (1.5, 2.0, "time", ["0.0", "0.2"]),
        (1.5, 1.6, "time", ["0.0"]),
        (0.5, 1.2, "time", ["0.0", "0.2"]),
        (0.5, 1.05, "time", []),
        (1.5, 2.0, "memory", ["0.0"]),
    ]:
        gains[:] = [own, everywhere]
        model = nn.Sequential(images_network(nn.ReLU()), nn.Flatten(), nn.Linear(16, 200))
        espalier.prune(model, {"2": 0.1, "0.2": 0.1})
        with torch.no_grad():
            before = model(IMAGES)
        report = espalier.accelerate(model, IMAGES, batches=[1], prefer=prefer)
        assert sorted(row.name for row in report.prepacked) == names
        packed = [name for name in ("0.2", "2") if name not in names]
        assert [row.name for row in report.layers] == packed
        everything = [*names, *packed, *(skipped.name for skipped in report.skipped)]
        assert sorted(everything) == ["0.0", "0.2", "2"]
        with torch.no_grad():
            torch.testing.assert_close(model(IMAGES), before, rtol=1e-5, atol=1e-5)


def test_convolutions_that_cannot_be_laid_out_stay(clock):
    clock[PREPACKED] = 2.0
    convolutions = [
        nn.Conv2d(3, 3, 3, padding="same"),
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 3, 1),
        nn.Conv2d(3, 3, 1),
        nn.Conv2d(3, 3, 1),
        nn.Conv2d(3, 3, 1),
    ]
    convolutions[2].weight = convolutions[3].weight  # tied
    convolutions[4].register_forward_hook(lambda *_: None)
    model = nn.Sequential(*convolutions).eval()
    report = espalier.accelerate(model, IMAGES, batches=[1])
    assert [row.name for row in report.prepacked] == ["5"]
    double = images_network(nn.ReLU()).double()
    assert not espalier.accelerate(double, IMAGES.double(), batches=[1]).prepacked


def test_a_build_without_onednn_leaves_convolutions_alone(clock, monkeypatch):
    clock[PREPACKED] = 2.0

    def missing(*_):
        raise RuntimeError("mkldnn is not there")

    monkeypatch.setattr("espalier.runtime.dense_convolution.PrepackedConv._ordered", missing)
    assert not espalier.accelerate(images_network(nn.ReLU()), IMAGES, batches=[1]).prepacked


def test_what_a_prepacked_layer_refuses(clock):
    clock[PREPACKED] = 2.0
    model = images_network(nn.ReLU())
    espalier.accelerate(model, IMAGES, batches=[1])
    with torch.no_grad():
        with pytest.raises(InvalidArgument, match=r"shape \(1, 2, 8, 8\) for a convolution of 3"):
            model(IMAGES[:1, :2])
        with pytest.raises(InvalidArgument, match=r"on the CPU in torch\.float32"):
            model(IMAGES.double())
    with pytest.raises(InvalidArgument, match="weights laid out for oneDNN, for inference only"):
        model(IMAGES.clone().requires_grad_())
    with pytest.raises(InvalidArgument, match="into which none can be loaded"):
        model.load_state_dict(model.state_dict())


def test_sparse_and_dense_layers_together(clock):
    """The graph is read though some of its layers are packed already."""
    clock[PREPACKED] = 2.0
    model = nn.Sequential(images_network(nn.ReLU()), nn.ReLU(), nn.Flatten(), nn.Linear(16, 200))
    espalier.prune(model, {"3": 0.1})
    with torch.no_grad():
        before = model(IMAGES)
    report = espalier.accelerate(model, IMAGES, batches=[1])
    assert [row.name for row in report.layers] == ["3"]
    assert [(row.name, row.after) for row in report.prepacked] == [
        ("0.0", "relu"),
        ("0.2", "relu"),
    ]
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), before, rtol=1e-5, atol=1e-5)
    assert len(report.model) == 1
