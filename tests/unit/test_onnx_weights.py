"""Weights in ONNX graphs: every form expands to the tensor, bit for bit."""

import numpy as np
import pytest

from espalier.errors import InvalidArgument
from espalier.state import Codebook, Dense, Sparse, SparseCodebook

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from espalier.export import onnx_weights  # noqa: E402
from espalier.export.onnx_weights import compress_weights, smallest  # noqa: E402

LATEST = 17


def graph_of(name, tensor, opset=LATEST):
    """A model that gives the tensor back."""
    dtype = {"float16": 10, "float32": 1, "float64": 11, "bfloat16": 16}[tensor.dtype]
    raw = tensor.dense().tobytes()
    held = TensorProto(name=name, data_type=dtype, dims=tensor.shape, raw_data=raw)
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], ["y"])],
        "graph",
        [],
        [helper.make_tensor_value_info("y", dtype, tensor.shape)],
        [held],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def expanded(form, name, tensor):
    """What the operators of one form compute."""
    model = graph_of(name, tensor)
    before, onnx_weights._FORMS = onnx_weights._FORMS, (lambda *_: iter([form]),)
    try:
        if form.nbytes >= tensor.nbytes:
            pytest.skip("larger than the tensor itself")
        compress_weights(model, {name: tensor})
    finally:
        onnx_weights._FORMS = before
    onnx.checker.check_model(model, full_check=True)
    return ReferenceEvaluator(model).run(None, {})[0]


def codebook(shape, k, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    storage = {"float32": "<f4", "float16": "<f2", "float64": "<f8"}[dtype]
    codes = rng.integers(0, k, int(np.prod(shape)))
    codes[: min(k, codes.size)] = np.arange(min(k, codes.size))
    narrow = codes.astype(np.uint8 if k <= 256 else np.uint16)
    return Codebook(shape, dtype, narrow, rng.normal(size=k).astype(storage))


def sparse(shape, density, k=None, seed=0):
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    positions = np.flatnonzero(rng.random(size) < density).astype(np.int64)
    if k is None:
        values = rng.normal(size=positions.size).astype("<f4")
        return Sparse(shape, "float32", positions, values)
    codes = rng.integers(0, k, positions.size).astype(np.uint8 if k <= 256 else np.uint16)
    return SparseCodebook(shape, "float32", positions, codes, rng.normal(size=k).astype("<f4"))


TENSORS = {
    "16 values": codebook((64, 33), 16),
    "two values": codebook((40, 64), 2),
    "one value": codebook((40, 64), 1),
    "256 values": codebook((64, 64), 256),
    "300 values": codebook((64, 64), 300),
    "float16": codebook((64, 64), 5, "float16"),
    "float64": codebook((64, 3, 5), 9, "float64"),
    "1-D": codebook((700,), 32),
    "sparse": sparse((200, 50), 0.1, 31),
    "sparse, 256 values": sparse((200, 50), 0.1, 256),
    "very sparse": sparse((200, 300), 0.001, 4),
    "half of it": sparse((16, 8, 3, 3), 0.5, 15),
    "exact": sparse((100, 100), 0.05),
    "first and last": Sparse(
        (4000,), "float32", np.array([0, 3999]), np.array([1.5, -2.5], np.float32)
    ),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS.keys())
@pytest.mark.parametrize("make", onnx_weights._FORMS)
def test_each_form_gives_the_tensor(tensor, make):
    forms = list(make("w", tensor, LATEST))
    for form in forms:
        got = expanded(form, "w", tensor)
        assert got.shape == tensor.shape
        assert got.tobytes() == tensor.dense().tobytes()


def test_the_smallest_is_taken():
    def kind(tensor, opset=LATEST):
        form = smallest("w", tensor, opset)
        return form and form.kind

    assert kind(TENSORS["16 values"]) == "words"
    assert kind(TENSORS["256 values"]) == "indices"
    assert kind(TENSORS["very sparse"]) == "gaps"
    assert kind(TENSORS["exact"]) == "gaps"
    assert kind(Dense((2, 2), "float32", np.zeros(4, "<f4"))) is None
    assert kind(codebook((2, 2), 4)) is None  # four floats are less than a codebook of them
    assert smallest("w", codebook((640, 64), 16), LATEST).nbytes == 8 * (-(-40960 // 15) + 21) + 64


@pytest.mark.parametrize(
    ("opset", "kind"), [(5, None), (6, "indices"), (9, "indices"), (10, "words")]
)
def test_only_operators_that_the_graph_knows(opset, kind):
    form = smallest("w", TENSORS["sparse"], opset)
    assert (form and form.kind) == kind
    assert smallest("w", TENSORS["exact"], 10) is None


def test_what_a_graph_has_already(tmp_path):
    tensor = TENSORS["16 values"]
    model = graph_of("w", tensor)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, tensor.shape))
    other = numpy_helper.from_array(np.zeros(3, np.float32), "other")
    model.graph.initializer.append(other)
    assert list(compress_weights(model, {"w": tensor})) == ["w"]
    assert [t.name for t in model.graph.input] == []
    assert model.graph.initializer[0] == other
    taken = graph_of("w", tensor)
    taken.graph.initializer.append(numpy_helper.from_array(np.zeros(3), "w.codebook"))
    with pytest.raises(InvalidArgument, match=r"'w\.codebook' already"):
        compress_weights(taken, {"w": tensor})
