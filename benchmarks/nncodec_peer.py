"""NNCodec's side of ``bench_nncodec.py``: run by the Python of its environment, not by ours.

    python nncodec_peer.py JOBS.json

JOBS.json is a list of {"input": npz, "output": npz or null, "args": {...}, "rounds": n}; what is
measured goes to standard output as JSON, one object for each job. Times are of
``nncodec.nn.encode`` and ``decode`` on arrays in memory, as a user calls them, and of the calls
into the arithmetic decoder alone ("core").
"""

import contextlib
import io
import json
import os
import sys
import tempfile
import time

import numpy as np
import torch
from nncodec import nn
from nncodec.nnc_core.coder import baseline

CORE = {"seconds": 0.0}


def timed_core(function):
    def call(*args, **kwargs):
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            CORE["seconds"] += time.perf_counter() - start

    return call


def clocked(function, *args, **kwargs):
    start = time.perf_counter()
    found = function(*args, **kwargs)
    return found, time.perf_counter() - start


def run(job):
    with np.load(job["input"]) as archive:
        arrays = {name: np.ascontiguousarray(archive[name]) for name in archive.files}
    encode, decode, core = [], [], []
    for _ in range(job["rounds"]):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            args = {"results": folder, "verbose": False, **job["args"]}
            stream, seconds = clocked(nn.encode, arrays, args=args)
            encode.append(seconds)
            CORE["seconds"] = 0.0
            found, seconds = clocked(nn.decode, stream)
            decode.append(seconds)
            core.append(CORE["seconds"])
    for name, array in arrays.items():
        if array.dtype == np.int32 and not np.array_equal(found[name], array):
            raise SystemExit(f"{name}: the integers that came back are others")
    if job["output"]:
        np.savez(job["output"], **{name: np.asarray(found[name]) for name in arrays})
    return {"bytes": len(stream), "encode_s": encode, "decode_s": decode, "core_decode_s": core}


def main():
    torch.set_num_threads(1)
    baseline.decode = timed_core(baseline.decode)
    with open(sys.argv[1]) as file:
        jobs = json.load(file)
    here = os.dup(1)
    os.dup2(2, 1)  # whatever it prints goes to standard error
    found = [run(job) for job in jobs]
    os.write(here, json.dumps(found).encode())


if __name__ == "__main__":
    main()
