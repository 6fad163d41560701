"""Entropy coders on one stream, one thread: Espalier's, and constriction's ANS.

    python benchmarks/bench_coders.py [--symbols 10000000] [--levels 256] [--output FILE.json]

The symbols are normal-shaped: round(N(levels / 2, levels / 8)), clipped. What is timed is symbols
in memory to bytes in memory, and back; finding the table is timed apart, compilation (by a small
run before) is not. Rounds go over all coders, so that a change in the machine's load meets each of
them; medians and fastest of the rounds are kept. Sizes are of table and payload together;
constriction writes no table, and its model is made of the true frequencies on both sides.

Binary decisions a second: plain ones of the coder "context" on bits of which one in ten is set, and
mixed ones on the positions (each element a decision) of a layer of 1024 x 1024 of which a tenth is
kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from espalier.entropy import CODERS, entropy_bits
from espalier.kernels import neighbours, range_coder
from espalier.kernels.counting import count

SEED = 0


def normal_symbols(n: int, levels: int) -> np.ndarray:
    rng = np.random.default_rng(SEED)
    values = np.round(rng.normal(levels / 2, levels / 8, n))
    dtype = np.uint8 if levels <= 256 else np.uint16
    return np.clip(values, 0, levels - 1).astype(dtype)


@dataclass
class Timed:
    """A coder as three functions, and the seconds that they took."""

    fit: Callable[[np.ndarray], Any]
    encode: Callable[[np.ndarray, Any], Any]
    decode: Callable[[Any, int, Any], np.ndarray]
    size: Callable[[Any, Any], int]
    seconds: dict[str, list[float]] = field(
        default_factory=lambda: {"fit": [], "encode": [], "decode": []}
    )
    size_bytes: int = 0

    def _clock(self, what: str, function: Callable[..., Any], *args: Any) -> Any:
        start = time.perf_counter()
        result = function(*args)
        self.seconds[what].append(time.perf_counter() - start)
        return result

    def round(self, symbols: np.ndarray, counts: np.ndarray) -> None:
        table = self._clock("fit", self.fit, counts)
        payload = self._clock("encode", self.encode, symbols, table)
        found = self._clock("decode", self.decode, payload, symbols.size, table)
        if not np.array_equal(found, symbols):
            raise SystemExit("the symbols that came back are others")
        self.size_bytes = self.size(payload, table)

    def report(self, n: int) -> dict[str, Any]:
        found: dict[str, Any] = {"bytes": self.size_bytes, "rounds": len(self.seconds["encode"])}
        for what in ("encode", "decode"):
            times = self.seconds[what]
            found[f"{what}_million_symbols_per_s"] = round(n / statistics.median(times) / 1e6, 1)
            found[f"{what}_fastest"] = round(n / min(times) / 1e6, 1)
        found["fit_ms"] = round(1e3 * statistics.median(self.seconds["fit"]), 3)
        return found


def espalier(name: str, alphabet: int) -> Timed:
    coder = CODERS.make(name)
    return Timed(
        coder.fit,
        lambda symbols, table: coder.write_table(table) + coder.encode(symbols, table),
        lambda body, n, _table: coder.decode(body, n, alphabet)[0],
        lambda body, _table: len(body),
    )


def constriction() -> Timed:
    import constriction as package

    def fit(counts: np.ndarray) -> Any:
        probabilities = counts / counts.sum()
        return package.stream.model.Categorical(probabilities, perfect=False)

    def encode(symbols: np.ndarray, model: Any) -> np.ndarray:
        ans = package.stream.stack.AnsCoder()
        ans.encode_reverse(symbols.astype(np.int32), model)
        return ans.get_compressed()

    def decode(words: np.ndarray, n: int, model: Any) -> np.ndarray:
        return package.stream.stack.AnsCoder(words).decode(model, n)

    return Timed(fit, encode, decode, lambda words, model: 4 * words.size)


def methods(alphabet: int) -> dict[str, Timed]:
    found = {name: espalier(name, alphabet) for name in CODERS.names()}
    try:
        found["constriction ANS"] = constriction()
    except ImportError:
        print("constriction is not installed: left out")
    return found


def decisions(rounds: int) -> dict[str, Any]:
    """Million binary decisions a second of the adaptive coder: median and fastest."""
    rng = np.random.default_rng(SEED)
    bits = (rng.random(4_000_000) < 0.1).astype(np.uint8)
    mask = (rng.random((1024, 1024)) < 0.1).astype(np.uint8)
    plain, mixed = range_coder.encode(bits, 1), neighbours.encode_kept(mask, 1)
    again = np.zeros_like(mask)
    work: dict[str, tuple[int, Callable[[], Any]]] = {
        "plain_encode": (bits.size, lambda: range_coder.encode(bits, 1)),
        "plain_decode": (bits.size, lambda: range_coder.decode(plain, bits.size, 1, np.uint8)),
        "mixed_encode": (mask.size, lambda: neighbours.encode_kept(mask, 1)),
        "mixed_decode": (mask.size, lambda: neighbours.decode_kept(mixed, again, 1)),
    }
    found: dict[str, Any] = {}
    for name, (n, function) in work.items():
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        found[f"{name}_million_per_s"] = round(n / statistics.median(times) / 1e6, 1)
        found[f"{name}_fastest"] = round(n / min(times) / 1e6, 1)
    return found


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("numpy", "numba", "constriction"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": models[0] if models else platform.machine(), "cores": os.cpu_count()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--symbols", type=int, default=10_000_000)
    parser.add_argument("--levels", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--coders", nargs="*", help="default: all")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/coders.json"))
    args = parser.parse_args()
    symbols = normal_symbols(args.symbols, args.levels)
    timed = {k: v for k, v in methods(args.levels).items() if not args.coders or k in args.coders}
    for coder in timed.values():
        small = symbols[: 1 << 17]
        coder.round(small, count(small)[: args.levels])
        coder.seconds = {what: [] for what in coder.seconds}
    counts = count(symbols)[: args.levels]
    load = [os.getloadavg()[0]]
    for i in range(args.rounds):
        for coder in timed.values():
            # A coder that takes over five seconds runs three times.
            if i < 3 or sum(coder.seconds["decode"][:1] + coder.seconds["encode"][:1]) < 5:
                coder.round(symbols, counts)
        load.append(os.getloadavg()[0])
    report = {
        "machine": machine() | {"threads": 1, "load_average": [round(x, 2) for x in load]},
        "versions": versions(),
        "seed": SEED,
        "symbols": args.symbols,
        "levels": args.levels,
        "entropy_bytes": round(entropy_bits(symbols) / 8),
        "decisions": decisions(args.rounds),
        "results": {name: coder.report(args.symbols) for name, coder in timed.items()},
    }
    for name, row in report["results"].items():
        print(
            f"{name:18} {row['bytes']:10,} bytes"
            f"  encode {row['encode_million_symbols_per_s']:7.1f} ({row['encode_fastest']:7.1f})"
            f"  decode {row['decode_million_symbols_per_s']:7.1f} ({row['decode_fastest']:7.1f})"
            " million/s: median (fastest)"
        )
    print(report["decisions"])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
