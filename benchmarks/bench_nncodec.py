"""Espalier beside NNCodec, the reference software of ISO/IEC 15938-17, on the same networks.

    python benchmarks/bench_nncodec.py --nncodec-python .venv-nncodec/bin/python

NNCodec needs NumPy 1 and torchvision, of which there is no build for every torch; it uses nothing
of that here, so an empty stand-in does. An environment of its own, Python 3.11:

    python3.11 -m venv .venv-nncodec
    mkdir -p stand-in/torchvision
    printf 'from unittest.mock import MagicMock\\ndatasets = transforms = MagicMock()\\n' \\
        > stand-in/torchvision/__init__.py
    printf '[project]\\nname = "torchvision"\\nversion = "0.28.0"\\n' > stand-in/pyproject.toml
    .venv-nncodec/bin/pip install torch==2.13.0
    .venv-nncodec/bin/pip install ./stand-in nncodec==2.1.3

What is measured, each on one thread, the two tools in turn:

- ResNet-20 and ResNet-32 for CIFAR-10, no retraining: bytes of the file, test error, seconds.
  NNCodec with its defaults (trellis-coded quantization) at several ``qp``; Espalier's
  ``quantize_rd`` at the given lambdas, saved with efforts default and max. The test images decide
  nothing.
- The codes of the original Deep Compression file of SqueezeNet and of the sparse layer of
  ``bench_lossless.py``, 4096 x 4096 at 9 % density with 32 levels, coded without loss: NNCodec gets
  them as integers, signed by the order of the codebook (it codes an int32 tensor with its
  arithmetic coder as it is). It has no codebooks for them: theirs are added as float32, and biases.

Decoding is from bytes in memory to dense arrays: ``nncodec.nn.decode``, and of that the calls into
the arithmetic decoder alone ("core"), beside ``Reader.arrays``. Medians of the rounds.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from bench_lossless import sparse_layer
from safetensors.torch import load_file
from torch import nn

import espalier
from espalier.analysis.machine import machine
from espalier.compress.exact import keep_exactly
from espalier.container import Reader, write
from espalier.interop.deep_compression import read_deep_compression
from espalier.samples import batches
from espalier.state import CompressedModel, SparseCodebook
from espalier.torch_io import read_model
from espalier.training import evaluate
from espalier.zoo import cifar10, resnet20, resnet32

NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet20": resnet20, "resnet32": resnet32}
PEER = Path(__file__).with_name("nncodec_peer.py")
RESULTS = Path("benchmarks/results/nncodec.json")
SEED = 0


def original(name: str) -> nn.Module:
    model = NETWORKS[name]()
    folder = Path(os.environ["ESPALIER_DATA"]) / "resnet_cifar10"
    model.load_state_dict(load_file(folder / f"{name}.safetensors"), strict=False)
    return model.eval()


def peer(python: str, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run jobs in the environment of NNCodec; see ``nncodec_peer.py``."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.json"
        path.write_text(json.dumps(jobs))
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        done = subprocess.run(
            [python, str(PEER), str(path)], stdout=subprocess.PIPE, env=env, check=False
        )
    if done.returncode:
        raise SystemExit(f"{python} {PEER.name} failed with status {done.returncode}")
    return list(json.loads(done.stdout))


def speeds(found: dict[str, Any], amount: float, unit: str) -> dict[str, Any]:
    """Medians of seconds as ``amount`` a second."""
    row: dict[str, Any] = {"bytes": found["bytes"]}
    for what in ("encode", "decode", "core_decode"):
        if times := found.get(f"{what}_s"):
            row[f"{what}_{unit}"] = float(f"{amount / statistics.median(times):.4g}")
            row[f"{what}_{unit}_best"] = float(f"{amount / min(times):.4g}")
    return row


def ours(model: CompressedModel, rounds: int, **options: Any) -> tuple[bytes, dict[str, Any]]:
    """The file of ``model``, and the seconds of writing and of reading it into dense arrays."""
    encode, decode = [], []
    for _ in range(rounds + 1):
        file = io.BytesIO()
        start = time.perf_counter()
        write(model, file, **options)
        encode.append(time.perf_counter() - start)
        start = time.perf_counter()
        with Reader(file) as reader:
            found = reader.arrays()
        decode.append(time.perf_counter() - start)
    for name, tensor in model.tensors.items():
        if found[name].tobytes() != tensor.dense().tobytes():
            raise SystemExit(f"{name}: what came back is other than what was written")
    data = file.getvalue()  # the first round compiles
    return data, {"bytes": len(data), "encode_s": encode[1:], "decode_s": decode[1:]}


# ---------------------------------------------------------------- networks


def quantized(name: str, lam: float, data: Any) -> nn.Module:
    """The network on its grids: as ``repro/repro_resnet_rd.py`` makes it."""
    rest, _ = data.train.split(2000, SEED)
    _, seen = rest.split(2048, SEED + 1)
    model = original(name)
    curvature = espalier.collect_curvature(model, batches(seen, 64), seed=SEED)
    inputs = [x for x, _ in batches(seen, 512)][:2]
    espalier.quantize_rd(model, lam, curvature=curvature, batches=inputs)
    return model


def network(name: str, args: argparse.Namespace) -> dict[str, Any]:
    data = cifar10()
    state = {k: v.numpy() for k, v in original(name).state_dict().items()}
    arrays = {k: v for k, v in state.items() if v.dtype == np.float32}
    weights = sum(array.size for array in arrays.values())
    million = weights / 1e6

    def error(tensors: dict[str, np.ndarray]) -> float | None:
        if args.no_error:
            return None
        model = original(name)
        found = {
            k: torch.from_numpy(np.array(v).reshape(state[k].shape)) for k, v in tensors.items()
        }
        model.load_state_dict(found, strict=False)
        return evaluate(model, data.test, batch_size=250).error

    rows: dict[str, Any] = {"weights": weights, "original_error": error(arrays)}
    model = quantized(name, args.lambdas[name], data)
    for effort in ("default", "max"):
        file, found = ours(read_model(model), args.rounds, effort=effort)
        rows[f"espalier {effort}"] = speeds(found, million, "million_weights_per_s")
    with Reader(io.BytesIO(file)) as reader:
        dense = {key: reader.dense(key) for key in arrays}
    for effort in ("default", "max"):
        rows[f"espalier {effort}"] |= {"lambda": args.lambdas[name], "error": error(dense)}
    with TemporaryDirectory() as folder:
        np.savez(f"{folder}/in.npz", **arrays)
        jobs = [
            {
                "input": f"{folder}/in.npz",
                "output": f"{folder}/{qp}.npz",
                "args": {"qp": qp},
                "rounds": args.rounds,
            }
            for qp in args.qp
        ]
        for qp, found in zip(args.qp, peer(args.nncodec_python, jobs), strict=True):
            row = speeds(found, million, "million_weights_per_s")
            with np.load(f"{folder}/{qp}.npz") as archive:
                rows[f"nncodec qp {qp}"] = row | {"error": error(dict(archive))}
    slowest = rows[f"nncodec qp {args.qp[0]}"]
    rows["decode_ratio"] = {
        effort: round(
            rows[f"espalier {effort}"]["decode_million_weights_per_s"]
            / slowest["decode_million_weights_per_s"],
            2,
        )
        for effort in ("default", "max")
    }
    return rows


# ---------------------------------------------------------------- codes without loss


def integers(tensor: SparseCodebook) -> np.ndarray:
    """A tensor as NNCodec takes it: 0, and the codes signed by the order of their values."""
    order = np.argsort(tensor.codebook, kind="stable")
    rank = np.empty(order.size, np.int64)
    rank[order] = np.arange(order.size)
    signed = rank - int((tensor.codebook < 0).sum())
    used = signed[tensor.codes]
    out = np.zeros(tensor.size, np.int32)
    # Where the codebook has no zero, the least positive level is 1.
    out[tensor.positions] = used + ((used >= 0) & (0 not in tensor.codebook[tensor.codes]))
    return out.reshape(tensor.shape)


def squeezenet() -> CompressedModel:
    folder = Path(os.environ["ESPALIER_DATA"]) / "squeezenet_deep_compression"
    names = "compressed_SqueezeNet.net", "SqueezeNet_deploy.prototxt"
    return read_deep_compression(*(folder / name for name in names)).model


def layer() -> CompressedModel:
    """The layer of :mod:`bench_lossless`, as codes."""
    source = sparse_layer(4096)
    tensors = {i.name: keep_exactly(i, source.arrays[i.name].reshape(-1)) for i in source.infos}
    return CompressedModel(tensors)


def codes(name: str, model: CompressedModel, args: argparse.Namespace) -> dict[str, Any]:
    sparse = {k: t for k, t in model.tensors.items() if isinstance(t, SparseCodebook)}
    arrays = {k: integers(t) for k, t in sparse.items()}
    beside = sum(t.nbytes for t in model.tensors.values() if not isinstance(t, SparseCodebook))
    beside += sum(t.codebook.nbytes for t in sparse.values())
    gigabytes = sum(t.nbytes for t in model.tensors.values()) / 1e9
    rows: dict[str, Any] = {"dense_bytes": round(gigabytes * 1e9)}
    for effort in ("default", "max"):
        _, found = ours(model, args.rounds if effort == "default" else 1, effort=effort)
        rows[f"espalier {effort}"] = speeds(found, gigabytes, "GB_per_s")
    with TemporaryDirectory() as folder:
        np.savez(f"{folder}/in.npz", **arrays)
        job = {"input": f"{folder}/in.npz", "output": None, "args": {}, "rounds": args.rounds}
        found = peer(args.nncodec_python, [job])[0]
    row = speeds(found, gigabytes, "GB_per_s")
    rows["nncodec"] = {"bytes_of_codes": row.pop("bytes")} | row
    rows["nncodec"] |= {"bytes": rows["nncodec"]["bytes_of_codes"] + beside}
    rows["nncodec"]["codebooks_and_biases_as_float32"] = beside
    return rows


def setting(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in NETWORKS:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=LAMBDA with one of {[*NETWORKS]}")
    return name, float(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--nncodec-python", help="python of NNCodec's environment; without it, nothing"
    )
    parser.add_argument("--qp", type=int, nargs="+", default=[-24, -22])
    parser.add_argument(
        "--lambdas", type=setting, nargs="*", default=[], help="NAME=LAMBDA, of each network"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-error", action="store_true", help="leave the test images out")
    parser.add_argument("--only", nargs="*", help="of resnet20, resnet32, squeezenet, layer")
    parser.add_argument("--output", type=Path, help=f"{RESULTS}; with --only, nothing")
    args = parser.parse_args()
    if args.nncodec_python is None:
        print("NNCodec is left out: --nncodec-python is not given (see the head of this script)")
        return
    args.lambdas = {"resnet20": 5.5e-8, "resnet32": 5.5e-8} | dict(args.lambdas)
    torch.set_num_threads(1)
    work: dict[str, Callable[[], dict[str, Any]]] = {
        **{name: (lambda name=name: network(name, args)) for name in NETWORKS},
        "squeezenet": lambda: codes("squeezenet", squeezenet(), args),
        "layer": lambda: codes("layer", layer(), args),
    }
    report: dict[str, Any] = {"machine": machine() | {"threads": 1}, "nncodec": "2.1.3"}
    for name, function in work.items():
        if args.only and name not in args.only:
            continue
        load = os.getloadavg()[0]
        report[name] = function() | {"load_average": [round(load, 2), round(os.getloadavg()[0], 2)]}
        print(name, json.dumps(report[name], indent=1), flush=True)
    output = args.output or (None if args.only else RESULTS)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
