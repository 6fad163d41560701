"""Lossless coding, one thread: Espalier beside ZipNN, zstd -19, xz and gzip -9.

    python benchmarks/bench_lossless.py [--rounds 5] [--output FILE.json]

Sizes, of whole files: ResNet-32 in float32 and in bfloat16 (the folder resnet_cifar10 of the
data), and a layer of 4096 x 4096 float32 of which 9 % are kept, with 32 values. Espalier writes an
``.esp`` file of the tensors; the others compress the bytes of the ``.safetensors`` file. ZipNN is
told each of its dtypes, and the best counts.

Speeds, in gigabytes of tensor a second: the same inputs, and a layer of 16 million normal float32,
and of as many bfloat16.
A round is one compression and one decompression by each; slow ones (over five seconds) run once.
Espalier's include its file, checksums and digests: from arrays to the bytes of a file, and back.
Before each call, memory four times the size of the tensors is written to and freed: a virtual
machine hands memory that is free for two seconds back to its host, and whichever method came first
after a slow one would pay for getting it again (0.1 s for 67 MB; ``--cold`` leaves it so).
Medians of the rounds, by the clock and by the processor time of the process; compilation is not in
them (one round before).
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import lzma
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from espalier.analysis.machine import PACKAGES, machine
from espalier.compress import compress_tensor, from_numbers, plan, to_numbers
from espalier.container import Reader, Writer
from espalier.interop import Content, TensorInfo, open_checkpoint, save_checkpoint
from espalier.state import Array

RESULTS = Path("benchmarks/results/lossless.json")
SEED = 0
SLOW_SECONDS = 5.0
TOUCHED = 4
ZIPNN_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Input:
    """Tensors (in their storage dtype) by name, and the safetensors file of them."""

    infos: list[TensorInfo]
    arrays: dict[str, Array]
    file: bytes

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.infos)


def as_input(arrays: dict[str, tuple[str, Array]]) -> Input:
    infos = [TensorInfo(name, a.shape, dtype) for name, (dtype, a) in arrays.items()]
    held = {name: a for name, (_, a) in arrays.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        save_checkpoint(path, Content(infos, held.__getitem__))
        return Input(infos, held, path.read_bytes())


def resnet32(dtype: str, data: Path) -> Input:
    checkpoint = open_checkpoint(data / "resnet_cifar10" / "resnet32.safetensors")
    arrays: dict[str, tuple[str, Array]] = {}
    for name in checkpoint.names():
        held, array = checkpoint.load(name)
        if held == "float32" and dtype != held:
            array = from_numbers(to_numbers(array, held), dtype)
            held = dtype
        arrays[name] = held, array
    return as_input(arrays)


def sparse_layer(side: int, density: float = 0.09, levels: int = 32) -> Input:
    rng = np.random.default_rng(SEED)
    kept = rng.random((side, side)) < density
    book = np.sort(rng.normal(0, 0.02, levels)).astype(np.float32)
    codes = np.clip(np.round(rng.normal(levels / 2, levels / 6, (side, side))), 0, levels - 1)
    return as_input({"w": ("float32", np.where(kept, book[codes.astype(np.int64)], np.float32(0)))})


def normal_layer(side: int, dtype: str) -> Input:
    rng = np.random.default_rng(SEED)
    values = rng.normal(0, 0.02, (side, side)).astype(np.float32)
    return as_input({"w": (dtype, from_numbers(values, dtype))})


@dataclass
class Method:
    compress: Callable[[Input], bytes]
    decompress: Callable[[bytes], Any]
    clock: dict[str, list[float]] = field(default_factory=lambda: {"encode": [], "decode": []})
    processor: dict[str, list[float]] = field(default_factory=lambda: {"encode": [], "decode": []})
    size_bytes: int = 0

    def _timed(self, what: str, function: Callable[[Any], Any], argument: Any, touch: int) -> Any:
        np.ones(touch, np.uint8)
        start, used = time.perf_counter(), time.process_time()
        result = function(argument)
        self.processor[what].append(time.process_time() - used)
        self.clock[what].append(time.perf_counter() - start)
        return result

    def round(self, source: Input, touch: int) -> None:
        """One compression and one decompression, each after so many bytes were touched."""
        data = self._timed("encode", self.compress, source, touch)
        self._timed("decode", self.decompress, data, touch)
        self.size_bytes = len(data)

    @property
    def slow(self) -> bool:
        return sum(times[0] for times in self.clock.values()) > SLOW_SECONDS

    def report(self, nbytes: int) -> dict[str, Any]:
        found: dict[str, Any] = {"bytes": self.size_bytes, "rounds": len(self.clock["encode"])}
        for what in ("encode", "decode"):
            clock = statistics.median(self.clock[what])
            processor = statistics.median(self.processor[what])
            found[f"{what}_gb_per_s"] = round(nbytes / clock / 1e9, 4)
            found[f"{what}_gb_per_processor_s"] = round(nbytes / processor / 1e9, 4)
        return found


def espalier_compress(source: Input) -> bytes:
    file = io.BytesIO()
    with Writer(file) as writer:
        for step in plan(source.infos, None, None):
            tensor, _ = compress_tensor(step, source.arrays[step.info.name])
            writer.add(step.info.name, tensor)
    return file.getvalue()


def espalier_decompress(data: bytes) -> dict[str, Array]:
    with Reader(io.BytesIO(data)) as reader:
        return reader.arrays()


def check(source: Input) -> None:
    back = espalier_decompress(espalier_compress(source))
    for name, array in source.arrays.items():
        if back[name].tobytes() != array.tobytes():
            raise SystemExit(f"{name} came back as another tensor")


def zipnn(dtype: str) -> Method:
    from zipnn import ZipNN

    def compress(source: Input) -> bytes:
        coder = ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1)
        return bytes(coder.compress(bytearray(source.file)))  # it works in place

    def decompress(data: bytes) -> Any:
        return ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1).decompress(data)

    return Method(compress, decompress)


def zstd(level: int) -> Method:
    import zstandard

    return Method(
        lambda source: zstandard.ZstdCompressor(level=level).compress(source.file),
        lambda data: zstandard.ZstdDecompressor().decompress(data),
    )


def methods() -> dict[str, Method]:
    found = {"espalier": Method(espalier_compress, espalier_decompress)}
    try:
        found |= {f"zipnn {dtype}": zipnn(dtype) for dtype in ZIPNN_DTYPES}
    except ImportError:
        print("zipnn is not installed: left out")
    try:
        found |= {"zstd -19": zstd(19), "zstd -3": zstd(3)}
    except ImportError:
        print("zstandard is not installed: left out")
    found["xz"] = Method(lambda s: lzma.compress(s.file), lzma.decompress)
    found["gzip -9"] = Method(lambda s: gzip.compress(s.file, 9), gzip.decompress)
    return found


def measure(source: Input, rounds: int, cold: bool) -> dict[str, Any]:
    check(source)
    touch = 0 if cold else TOUCHED * source.nbytes
    timed = methods()
    for i in range(rounds):
        for method in timed.values():
            if i == 0 or not method.slow:
                method.round(source, touch)
    results = {name: method.report(source.nbytes) for name, method in timed.items()}
    ours = results["espalier"]["bytes"]
    for row in results.values():
        row["times_ours"] = round(row["bytes"] / ours, 4)
    return {"tensor_bytes": source.nbytes, "safetensors_bytes": len(source.file)} | results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="inputs whose name holds this")
    parser.add_argument("--cold", action="store_true", help="memory as it comes")
    parser.add_argument("--side", type=int, default=4096, help="of the two layers")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("ESPALIER_DATA"))
    parser.add_argument("--output", type=Path, help=f"{RESULTS}; with --only, nothing")
    args = parser.parse_args()
    inputs: dict[str, Callable[[], Input]] = {
        "sparse layer, float32": lambda: sparse_layer(args.side),
        "normal layer, float32": lambda: normal_layer(args.side, "float32"),
        "normal layer, bfloat16": lambda: normal_layer(args.side, "bfloat16"),
    }
    if args.data_dir is None:
        print("neither --data-dir nor ESPALIER_DATA: ResNet-32 is left out")
    else:
        for dtype in ("float32", "bfloat16"):
            inputs[f"ResNet-32, {dtype}"] = lambda d=dtype: resnet32(d, Path(args.data_dir))
    load = [os.getloadavg()[0]]
    results = {}
    for name, make in inputs.items():
        if args.only not in name:
            continue
        results[name] = measure(make(), args.rounds, args.cold)
        load.append(os.getloadavg()[0])
        print(f"{name}: {results[name]['safetensors_bytes']:,} bytes")
        for method, row in results[name].items():
            if isinstance(row, dict):
                speeds = "  ".join(
                    f"{what} {row[f'{what}_gb_per_s']:6.3f} GB/s"
                    f" ({row[f'{what}_gb_per_processor_s']:.3f})"
                    for what in ("encode", "decode")
                )
                print(f"  {method:15} {row['bytes']:11,} bytes {row['times_ours']:7.3f}  {speeds}")
    report = {
        "machine": machine((*PACKAGES, "zipnn", "zstandard"))
        | {"threads": 1, "load_average": [round(x, 2) for x in load]},
        "seed": SEED,
        "cold": args.cold,
        "results": results,
    }
    output = args.output or (None if args.only else RESULTS)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
