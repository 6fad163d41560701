"""Clustering one large layer into shared weights: Espalier, scikit-learn and Core ML Tools.

    python benchmarks/bench_kmeans.py [--rows 4096] [--k 256] [--output FILE.json]

The layer is rows x rows float32, normal with standard deviation 0.01. Every method runs in a
process of its own, one after the other, in the same call of this script. What is timed is values
in, centroids and codes out; data, imports and (by a small run before) compilation are not. Methods:

- espalier optimal (the default), lloyd (linear initialisation, 300 iterations), exact, and
  lloyd with 5 iterations, which is what scikit-learn is given;
- espalier assign: codes alone, for known centroids;
- scikit-learn ``KMeans``: linear initialisation, 5 iterations, no early stop (its default of 300
  iterations takes 60 times as long);
- Core ML Tools, two ways: what ``PostTrainingPalettizer`` does by default (values rounded to 4
  decimals, then its ``kmeans1d``), and the exact ``kmeans1d`` on the distinct float16 values, as
  for Core ML programs. Its ``kmeans1d`` on the float32 values themselves needs a table of n x k
  entries (34 GB here), and is left out.

Sums of squares are of the float32 input, whatever a method made of it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from espalier.analysis.machine import PACKAGES, machine

SEED = 0
SCALE = 0.01
Found = tuple[np.ndarray, np.ndarray]
Method = Callable[[np.ndarray, int], Found]


def layer(n: int) -> np.ndarray:
    values = np.random.default_rng(SEED).standard_normal(n, dtype=np.float32)
    values *= np.float32(SCALE)
    return values


def espalier(**options: Any) -> Method:
    from espalier.quantization.kmeans import kmeans_1d

    def run(values: np.ndarray, k: int) -> Found:
        found = kmeans_1d(values, k, **options)
        run.gap = found.gap  # type: ignore[attr-defined]
        return found.centroids, found.codes

    return run


def espalier_assign() -> Method:
    from espalier.quantization.kmeans import assign

    def run(values: np.ndarray, k: int) -> Found:
        centroids = np.linspace(-0.05, 0.05, k)
        return centroids, assign(values, centroids)

    return run


def scikit_learn() -> Method:
    from sklearn.cluster import KMeans

    def run(values: np.ndarray, k: int) -> Found:
        start = np.linspace(values.min(), values.max(), k, dtype=np.float32).reshape(-1, 1)
        model = KMeans(k, init=start, n_init=1, max_iter=5, tol=0.0, copy_x=False)
        model.fit(values.reshape(-1, 1))
        return model.cluster_centers_.reshape(-1), model.labels_

    return run


def coremltools_rounded() -> Method:
    import torch
    from coremltools.optimize.torch._utils.k_means import KMeans, KMeansConfig

    def run(values: np.ndarray, k: int) -> Found:
        config = KMeansConfig(n_bits=k.bit_length() - 1)
        centroids, codes = KMeans._cluster_weights_1d(torch.from_numpy(values), None, config)
        return centroids.numpy(), codes.numpy()

    return run


def coremltools_float16() -> Method:
    from coremltools.models.neural_network import quantization_utils

    def run(values: np.ndarray, k: int) -> Found:
        return quantization_utils._get_kmeans_lookup_table_and_weight(
            k.bit_length() - 1, values.astype(np.float16), force_kmeans1d=True
        )

    return run


METHODS: dict[str, tuple[Callable[[], Method], int, dict[str, Any]]] = {
    "espalier optimal": (lambda: espalier(), 7, {"solver": "optimal"}),
    "espalier lloyd": (
        lambda: espalier(init="linear"),
        7,
        {"solver": "lloyd", "init": "linear", "iterations": 300},
    ),
    "espalier lloyd 5": (
        lambda: espalier(init="linear", iterations=5, reseed=False),
        7,
        {"solver": "lloyd", "init": "linear", "iterations": 5, "reseed": False},
    ),
    "espalier exact": (lambda: espalier(solver="exact"), 1, {"solver": "exact"}),
    "espalier assign": (espalier_assign, 7, {}),
    "coremltools rounded": (
        coremltools_rounded,
        3,
        {"enable_fast_kmeans_mode": True, "rounding_precision": 4},
    ),
    "coremltools float16": (coremltools_float16, 1, {"force_kmeans1d": True}),
    "scikit-learn": (scikit_learn, 1, {"init": "linear", "max_iter": 5, "tol": 0.0, "n_init": 1}),
}


def child(name: str, n: int, k: int) -> dict[str, Any]:
    make, repeats, settings = METHODS[name]
    run = make()
    run(layer(1 << 17), k)  # compile, and fill caches
    values = layer(n)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    load = os.getloadavg()[0]
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        centroids, codes = run(values, k)
        times.append(time.perf_counter() - start)
        if len(times) == 1:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    centroids = np.asarray(centroids, np.float64).reshape(-1)
    wcss = 0.0
    for lo in range(0, n, 1 << 20):
        part = slice(lo, min(n, lo + (1 << 20)))
        wcss += float(np.sum((values[part] - centroids[codes[part]]) ** 2))
    return {
        "settings": settings,
        "runs": repeats,
        "seconds": round(statistics.median(times), 4),
        "seconds_fastest": round(min(times), 4),
        "load_before": round(load, 2),
        "peak_bytes_above_input": peak,
        "wcss": wcss,
        "gap": getattr(run, "gap", None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--k", type=int, default=256)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/kmeans.json"))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--child", choices=list(METHODS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    n = args.rows**2
    if args.child:
        print(json.dumps(child(args.child, n, args.k)))
        return
    results: dict[str, dict[str, Any]] = {}
    for name in args.methods:
        command = [sys.executable, __file__, "--child", name, "--rows", str(args.rows)]
        done = subprocess.run(
            [*command, "--k", str(args.k)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            results[name] = {"failed": last}
            print(f"{name:22} failed: {last}")
            continue
        results[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name:22} {results[name]['seconds']:9.3f} s", flush=True)
    optimum = results.get("espalier exact", {}).get("wcss")
    ours = results.get("espalier optimal", {}).get("seconds")
    for name, result in results.items():
        if "failed" in result or name == "espalier assign":
            continue
        if optimum:
            result["wcss_over_optimum"] = result["wcss"] / optimum
        if ours:
            result["seconds_over_espalier_optimal"] = round(result["seconds"] / ours, 2)
    report = {
        "machine": machine((*PACKAGES, "scikit-learn", "coremltools")),
        "seed": SEED,
        "layer": {"shape": [args.rows, args.rows], "dtype": "float32", "normal_sd": SCALE},
        "k": args.k,
        "results": results,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
