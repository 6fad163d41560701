"""Make the golden files: ``python tests/golden/make.py`` writes what is not there yet.

Never run by a test. A file that is there is never written anew: it pins what a reader must go on
decoding, whatever a writer does by then. Beside each ``NAME.esp`` lies ``NAME.npz`` with the dense
tensors, as bytes, made from the values here and not by reading the file; and with the files that
travel with them, called ``file:NAME``.
"""

from pathlib import Path

import numpy as np

from espalier.container import Writer, layout
from espalier.fixed_point import FixedPoint, SparseFixedPoint, scale_dtype
from espalier.state import (
    STORAGE_DTYPES,
    Codebook,
    CompressedModel,
    Dense,
    Sparse,
    SparseCodebook,
    storage_dtype,
)

HERE = Path(__file__).parent


def noise(n, seed):
    """Numbers that depend on no library: a linear congruential generator, 16 bits each."""
    out, state = np.empty(n, np.int64), seed
    for i in range(n):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        out[i] = state >> 48
    return out


def bowl(n, levels, seed):
    """Codes in a bell shape around the middle."""
    return sum(noise(n, seed + i) % (levels // 4) for i in range(4))


def levels(k):
    return ((np.arange(k) - k / 2) / k).astype("<f4")


def sparse(n, keep, k, seed, shape=None):
    kept = np.flatnonzero(noise(n, seed) < keep * 65536)
    codes = bowl(kept.size, k, seed + 9).astype(np.uint8)
    return SparseCodebook(shape or (n,), "float32", kept, codes, levels(k))


def lenet():
    tensors = {
        "conv1.weight": sparse(500, 0.66, 32, 1, (20, 1, 5, 5)),
        "conv1.bias": Dense((20,), "float32", (noise(20, 2) / 9e5).astype("<f4")),
        "ip1.weight": sparse(6000, 0.08, 32, 3, (60, 100)),
        "ip1.bias": Dense((60,), "float32", (noise(60, 4) / 9e5).astype("<f4")),
        "ip2.weight": sparse(600, 0.19, 32, 5, (10, 60)),
        "steps": Dense((), "int64", np.array([12345], "<i8")),
    }
    return CompressedModel(tensors, {"tied.weight": "ip1.weight"}, {"net": "LeNet", "é": [1, None]})


def dtypes():
    tensors = {}
    for seed, (dtype, storage) in enumerate(STORAGE_DTYPES.items()):
        raw = (noise(24 * storage.itemsize, seed) % (2 if dtype == "bool" else 256)).astype("u1")
        values = raw.view(storage)
        tensors[f"{dtype}.dense"] = Dense((4, 6), dtype, values)
        tensors[f"{dtype}.sparse"] = Sparse((99,), dtype, np.arange(1, 97, 4), values)
        tensors[f"{dtype}.constant"] = Dense((9, 1), dtype, np.repeat(values[:1], 9))
        tensors[f"{dtype}.empty"] = Dense((0, 3), dtype, values[:0])
    bell = np.ldexp(1 + bowl(900, 64, 3) / 64, -(bowl(900, 16, 7) // 2))
    tensors["planes"] = Dense((900,), "float32", bell.astype("<f4"))
    return CompressedModel(tensors)


def shapes():
    n = 40_000
    tensors = {
        "runs": Codebook((n,), "float32", bowl(n, 64, 1).astype("u1"), levels(64)),
        "wide": Codebook(
            (5, 400), "float32", (bowl(2000, 1200, 2) % 1000).astype("<u2"), levels(1000)
        ),
        "uniform": Codebook((512,), "float32", (np.arange(512) % 256).astype("u1"), levels(256)),
        "one code": Codebook((5000,), "float32", np.zeros(5000, "u1"), levels(1)),
        "bitmap": sparse(3000, 0.9, 4, 3),
        "full": sparse(1500, 2.0, 4, 4),
        "far": SparseCodebook(
            (1 << 21,),
            "float16",
            noise(30, 5).cumsum(),
            np.arange(30).astype("u1"),
            np.arange(30).astype("<f2"),
        ),
        "none": SparseCodebook(
            (7,), "float32", np.zeros(0, np.int64), np.zeros(0, "u1"), levels(2)
        ),
        "regular": Sparse((9000,), "int8", np.arange(0, 9000, 9), np.full(1000, -3, "i1")),
    }
    return CompressedModel(tensors)


def coded():
    """What a coder may do: one symbol, few, many, wide alphabets, far gaps, planes."""
    skewed = (noise(3000, 7) < 300).astype("u1")
    tensors = {
        "blocks": Codebook((70_000,), "float32", bowl(70_000, 64, 1).astype("u1"), levels(64)),
        "few": Codebook((3,), "float32", np.array([0, 2, 1], "u1"), levels(3)),
        "skewed": Codebook((3000,), "float16", skewed, np.array([0, 1], "<f2")),
        "wide": Codebook((900,), "float32", (noise(900, 2) % 600).astype("<u2"), levels(600)),
        "sparse": sparse(6000, 0.08, 32, 3, (60, 100)),
        "dense": sparse(3000, 0.9, 4, 3),
        "bias": Dense((400,), "float32", (bowl(400, 4096, 4) / 9e3).astype("<f4")),
        "one code": Codebook((500,), "float32", np.zeros(500, "u1"), levels(1)),
        "none": Codebook((0,), "float32", np.zeros(0, "u1"), levels(2)),
    }
    return CompressedModel(tensors)


def neighbourhoods():
    """What decisions by neighbours depend on: shapes, levels, dtypes, signs."""
    row = np.arange(2592) // 108  # filters of different density, and with values of different size
    kept = np.flatnonzero(noise(2592, 2) % 6 < noise(24, 1)[row] % 5)
    small = row[kept] % 3 > 0
    rank = np.where(small, 20 + bowl(kept.size, 4, 3), bowl(kept.size, 40, 13))
    unsorted = (noise(40, 3) / 3e4 - 1).astype("<f4")
    codes = np.argsort(unsorted, kind="stable")[rank].astype("u1")
    channel = np.arange(800) // 5 % 8
    wave = np.where(channel < 3, bowl(800, 16, 8), 7 + noise(800, 5) % 2).astype("u1")
    line = np.flatnonzero(noise(2000, 6) % 3 == 0)
    tensors = {
        "conv": SparseCodebook((24, 12, 3, 3), "float32", kept, codes, unsorted),
        "linear": sparse(1500, 0.3, 16, 4, (30, 50)),
        "line": SparseCodebook(
            (2000,),
            "int8",
            line,
            bowl(line.size, 8, 7).astype("u1"),
            np.array([3, -1, 0, -128, 127, 2, -2, 9], "i1"),
        ),
        "dense": Codebook((20, 8, 5), "float16", wave, levels(16).astype("<f2")),
        "halves": Codebook(
            (9, 9), "uint8", bowl(81, 4, 9).astype("u1"), np.array([7, 3, 5, 200], "u1")
        ),
        "plane": Codebook(
            (10, 30),
            "complex64",
            bowl(300, 4, 11).astype("u1"),
            np.array([1 + 2j, -1, 3j, 0], "<c8"),
        ),
        "planes": Dense((500,), "float32", (bowl(500, 4096, 4) / 9e3).astype("<f4")),
    }
    return CompressedModel(tensors)


def sizes():
    """Signed numbers whose size goes by the channel, dense and sparse, in kernels and lines."""

    def drawn(shape, most, seed):
        n = int(np.prod(shape))
        places = int(np.prod(shape[2:]))
        columns = n // shape[0] if len(shape) > 1 else n
        channel = np.arange(n) % columns // places
        swing = 1 + most * (channel * 7 % 12 % 5) ** 2 // 16
        return (
            noise(n, seed) % (2 * swing + 1) + noise(n, seed + 1) % (2 * swing + 1)
        ) // 2 - swing

    def tensor(shape, dtype, most, seed, keep=None):
        values = drawn(shape, most, seed)
        values, codes = np.unique(values if keep is None else values[keep], return_inverse=True)
        storage = STORAGE_DTYPES[dtype]
        levels = (values * 0.01 if storage.kind == "f" else values).astype(storage)
        if keep is None:
            return Codebook(shape, dtype, codes.astype("u1"), levels)
        return SparseCodebook(shape, dtype, keep, codes.astype("u1"), levels)

    far = np.flatnonzero(noise(2400, 3) % 3 * drawn((40, 60), 9, 4))
    return CompressedModel(
        {
            "conv": tensor((24, 8, 3, 3), "float32", 5, 1),
            "large": tensor((30, 100), "float32", 60, 2),
            "sparse": tensor((40, 60), "float32", 9, 4, far),
            "sparse kernels": tensor((10, 12, 5), "float16", 30, 5, np.arange(1, 600, 2)),
            "line": tensor((2500,), "int8", 20, 6),
        }
    )


def codebooks():
    """Codebooks in order, nearly in order, and in none; of each kind of number."""
    tensors = {}
    for name in ["float32", "float16", "bfloat16", "float8_e4m3fn", "int8", "int32", "uint16"]:
        storage = STORAGE_DTYPES[name]
        size = np.dtype(storage).itemsize
        raw = np.unique(noise(4 * 60, 5) % 256)[: 40 * size] if size == 1 else noise(80, 6)
        if name in ("float32", "float16"):
            values = np.sort(raw / 3e4 - 1).astype(storage)
            values[[3, 20, 21]] = values[[20, 21, 3]]
        elif size == 1:
            values = raw.astype("u1").view(storage)
        else:
            values = np.unique(raw.astype(f"u{size}")).view(storage)
        values = values[np.sort(np.unique(values.view(f"u{size}"), return_index=True)[1])]
        codes = bowl(3000, values.size // 4 * 4, 7).astype("u1")
        tensors[name] = Codebook((3000,), name, codes, values)
    return CompressedModel(tensors)


def repeats():
    """Copies of tensors of each kind, runs in each width of word."""
    again = sparse(600, 0.2, 16, 1, (20, 30))
    bias = Dense((40,), "float32", (noise(40, 2) / 9e5).astype("<f4"))
    tensors = {"a": again, "bias": bias, "b": again, "c.bias": bias, "other": bias}
    tensors["flat"] = Dense((4, 10), "float32", bias.values)  # another shape: no copy
    tensors |= {"none": Dense((0, 3), "int8", np.zeros(0, "i1"))}
    tensors |= {"none too": tensors["none"], "zero": Dense((), "int64", np.zeros(1, "<i8"))}
    lengths = 1 + noise(90, 3) % 40
    for dtype in ("bool", "int8", "bfloat16", "float32", "int64", "complex64", "complex128"):
        storage = STORAGE_DTYPES[dtype]
        raw = noise(90 * storage.itemsize, 4) % (2 if dtype == "bool" else 256)
        values = np.repeat(raw.astype("u1").view(storage), lengths)
        tensors[f"runs {dtype}"] = Dense((values.size,), dtype, values)
    equal = np.repeat(noise(50, 5).astype("<u2"), 20)
    tensors["runs of one length"] = Dense((1000,), "uint16", equal)
    return CompressedModel(tensors, {"tied to a copy": "c.bias", "tied": "a"}, {"k": "v"})


def beside():
    """Files that travel with :func:`repeats`: text, noise, nothing, equal bytes; in pieces."""
    text = "".join(f'"{word}": {i}, ' for i, word in enumerate(noise(700, 6).tolist()))
    return {
        "config.json": b"{}\n",
        "tokenizer/vocab.json": text.encode(),
        "a": noise(2500, 7).astype("<u2").tobytes(),
        "empty": b"",
        "zeros": bytes(3000),
        "skewed": (noise(2500, 8) % 5 // 4).astype("u1").tobytes(),
    }


def packs():
    """Small tensors in packs, of each kind of float; copies of them; grids; streams by length."""
    tensors, floats = {}, ("float32", "float16", "bfloat16", "float64", "complex64")
    for seed, dtype in enumerate(floats):
        storage = STORAGE_DTYPES[dtype]
        raw = (noise(300 * storage.itemsize, seed) % 256).astype("u1").view(storage)
        tensors |= {
            f"{dtype}.a": Dense((10, 4), dtype, raw[:40]),
            f"{dtype}.scalar": Dense((), dtype, raw[40:41]),
            f"{dtype}.again": Dense((10, 4), dtype, raw[:40]),
            f"{dtype}.b": Dense((200,), dtype, raw[50:250]),
        }
        tensors[f"steps.{dtype}"] = Dense((), "int64", np.array([seed], "<i8"))
    for dtype, step in (("float32", 0.0123), ("float16", 0.25)):
        k = np.flatnonzero(noise(40, 7) % 4) - 19
        grid = (k * step).astype(STORAGE_DTYPES[dtype])
        tensors[f"grid.{dtype}"] = Codebook(
            (900,), dtype, bowl(900, k.size // 4 * 4, 8).astype("u1"), grid
        )
    for n in (4095, 4096, 4097, 30_000):
        tensors[f"lanes.{n}"] = Codebook((n,), "float32", bowl(n, 32, n).astype("u1"), levels(32))
    # Of eight states that take turns, seven see next to nothing.
    rare = np.where(np.arange(8192) % 8 == 3, noise(8192, 9) % 16, 0).astype("u1")
    tensors["uneven"] = Codebook((8192,), "float32", rare, levels(16))
    return CompressedModel(tensors, {"tied": "float32.a", "tied again": "float32.again"})


def on_grid(shape, block, numbers, seed, dtype="float32", keep=None, zeros=0):
    """A fixed-point tensor; ``numbers``: first, stride, levels."""
    n = int(np.prod(shape))
    blocks = int(np.prod([d // b for d, b in zip(shape, block, strict=True)]))
    kept = np.flatnonzero(noise(n, seed) < (keep or 1) * 65536)
    levels = numbers[2]
    codes = bowl(kept.size, levels, seed + 9) if levels > 4 else noise(kept.size, seed + 9) % levels
    scales = ((1 + noise(blocks, seed + 2)) / 65536).astype(storage_dtype(scale_dtype(dtype)))
    points = (noise(blocks, seed + 3) % (zeros + 1) - zeros // 2).astype("<i2")
    codes = codes.astype("u1" if levels <= 256 else "<u2")
    fields = shape, dtype, codes, scales, points, block, *numbers
    return FixedPoint(*fields) if keep is None else SparseFixedPoint(*fields, kept)


def numbers():
    """Fixed point: blocks, zero points, dtypes, sparse or not, binary and ternary."""
    byte, nibble = (-127, 1, 255), (-8, 1, 16)
    tensors = {
        "tensor": on_grid((30, 40), (30, 40), byte, 1),
        "channel": on_grid((12, 5, 3, 3), (1, 5, 3, 3), byte, 2),
        "group": on_grid((20, 64), (1, 16), nibble, 3),
        "other axis": on_grid((6, 10, 4), (6, 1, 4), nibble, 4),
        "squares": on_grid((8, 12), (4, 3), (-3, 1, 7), 5),
        "affine": on_grid((16, 50), (1, 50), (-128, 1, 256), 6, zeros=200),
        "wide": on_grid((900,), (900,), (-2047, 1, 4095), 7),
        "binary": on_grid((10, 100), (1, 100), (-1, 2, 2), 8),
        "ternary": on_grid((10, 100), (1, 100), (-1, 1, 3), 9),
        "sparse": on_grid((30, 40), (1, 40), nibble, 10, keep=0.2),
        "sparse groups": on_grid((4, 8, 3, 3), (1, 4, 3, 3), byte, 11, keep=0.5, zeros=9),
        "sparse signs": on_grid((40, 50), (1, 50), (-1, 2, 2), 12, keep=0.1),
        "half": on_grid((9, 20), (1, 20), (-127, 1, 255), 13, "float16"),
        "brain": on_grid((9, 20), (1, 20), (-127, 1, 255), 14, "bfloat16"),
        "double": on_grid((9, 20), (3, 5), (-3, 1, 7), 15, "float64", keep=0.5),
        "scalar": on_grid((), (), (-3, 1, 7), 16),
        "empty": on_grid((0, 3), (1, 3), (-3, 1, 7), 17),
        "none": on_grid((4, 3), (1, 3), (-3, 1, 7), 18, keep=1e-9),
    }
    tensors["again"] = tensors["group"]
    return CompressedModel(tensors, {"tied": "sparse"})


def files():
    """Name of each file, the model in it and the coder."""
    return {
        "lenet-huffman-v2": (lenet(), "huffman"),
        "lenet-fixed-v2": (lenet(), "fixed"),
        "dtypes-v2": (dtypes(), "huffman"),
        "shapes-v2": (shapes(), "huffman"),
        "rans-v2": (coded(), "rans"),
        "sorted-v2": (codebooks(), "rans"),
        "context-v2": (coded(), "context"),
        "neighbours-v2": (neighbourhoods(), "context"),
        "sizes-v2": (sizes(), "context"),
        "repeats-v2": (repeats(), "rans"),
        "packs-v2": (packs(), "rans"),
        "numbers-v2": (numbers(), "context"),
        "numbers-rans-v2": (numbers(), "rans"),
        "nothing-v2": (CompressedModel({}), "huffman"),
    }


def put(writer, model, others):
    """Files among the tensors, since their place is free, and in pieces of 4000 bytes."""
    layout.PIECE = 4000
    for i, (name, tensor) in enumerate(model.tensors.items()):
        if i == 1:
            for other, data in others.items():
                writer.file(other, [data])
        writer.add(name, tensor)
    for alias, of in model.aliases.items():
        writer.alias(alias, of)
    writer.metadata = dict(model.metadata)


def main():
    for name, (model, coder) in files().items():
        path = HERE / f"{name}.esp"
        if path.exists():
            print(f"{path.name} is kept")
            continue
        others = beside() if name.startswith("repeats") else {}
        with Writer(path, coder) as writer:
            put(writer, model, others)
        raw = {key: tensor.dense().tobytes() for key, tensor in model.tensors.items()}
        raw |= {f"file:{key}": data for key, data in others.items()}
        arrays = {key: np.frombuffer(data, np.uint8) for key, data in raw.items()}
        np.savez_compressed(HERE / f"{name}.npz", **arrays)
        print(f"{path.name}: {writer.ledger.file_bytes} bytes")


if __name__ == "__main__":
    main()
