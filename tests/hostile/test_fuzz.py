"""What fuzzing has found worth keeping, and more of the same from hypothesis.

The corpus is made by ``fuzz/fuzz_reader.py``: small files, nearly all of them broken, that between
them reach all of the reader that the fuzzer has reached.
"""

import importlib.util
import io
import os
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.container import Reader, layout

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("structured", HERE / "structured.py")
structured = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(structured)

SEEDS = dict(structured.seeds())
SECONDS = 4.0 if os.environ.get("NUMBA_BOUNDSCHECK") == "1" else 1.0
PEAK = 8 << 20
"""Bytes that a file of a few kilobytes may take; the dense tensors made of it are not counted."""


def corpus():
    with zipfile.ZipFile(HERE / "corpus.zip") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module", autouse=True)
def compiled():
    for data in SEEDS.values():
        structured.exercise(data)


def test_the_seeds_are_sound():
    assert all(structured.exercise(data) for data in SEEDS.values())
    methods = set()
    for data in SEEDS.values():
        entries = Reader(io.BytesIO(data))._directory.entries
        methods |= {stream.method for entry in entries for stream in entry.streams}
    assert {method >> 4 for method in methods} >= {0, 1, 2, 3, 4}
    assert {method & 15 for method in methods} == {0, 1, 2, 3, 4}


def test_the_corpus_is_decoded_or_refused_soon_and_within_memory():
    files = corpus()
    assert len(files) > 150
    for data in files.values():
        structured.exercise_within(data, SECONDS)
    tracemalloc.start()
    for name, data in files.items():
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        structured.exercise(data, dense_bytes=0)
        peak = tracemalloc.get_traced_memory()[1] - before
        assert peak < PEAK, f"{name}: {len(data)} bytes took {peak}"
    tracemalloc.stop()


@given(st.sampled_from(sorted(SEEDS)), st.sampled_from(sorted(SEEDS)), st.randoms())
@settings(deadline=None, max_examples=300)
def test_changed_files_are_decoded_or_refused(name, other, rng):
    change = structured.change_bytes(rng)
    data = structured.mutate(SEEDS[name], rng, change, SEEDS[other])
    structured.exercise_within(data, SECONDS)


def test_a_file_put_together_again_is_the_same():
    for name, data in SEEDS.items():
        if not name.startswith(("several", "runs")):
            again = structured.assemble(structured.take_apart(data))
            assert again == data, name


def other_types():
    """Every seed with every other dtype."""
    for data in SEEDS.values():
        parts = structured.take_apart(data)
        for at, part in enumerate(parts):
            for dtype in layout.DTYPE_NAMES:
                yield [*parts[:at], replace(part, dtype=dtype), *parts[at + 1 :]]


def other_methods():
    """Every seed of the densest coder with every other method of each stream."""
    for name, data in SEEDS.items():
        parts = structured.take_apart(data) if name.endswith("context") else []
        for at, part in enumerate(parts):
            for i, (_, body) in enumerate(part.streams):
                for method in (values << 4 | coder for values in range(7) for coder in range(5)):
                    streams = (*part.streams[:i], (method, body), *part.streams[i + 1 :])
                    yield [*parts[:at], replace(part, streams=streams), *parts[at + 1 :]]


@pytest.mark.parametrize("changed", [other_types, other_methods])
def test_kernels_take_and_refuse_what_is_taken_and_refused_one_by_one(changed):
    files = 0
    for parts in changed():
        structured.both_ways(structured.assemble(parts))
        files += 1
    assert files > 1000
