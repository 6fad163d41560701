"""What every initialisation and every solver of 1-D k-means keeps to, known or yet to come."""

from __future__ import annotations

import numpy as np
import pytest

from espalier.quantization.initialisation import INITIALISATIONS
from espalier.quantization.kmeans import kmeans_1d
from espalier.quantization.solver import SOLVERS
from espalier.quantization.sorted_values import SortedValues


def _layers() -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    rng = np.random.default_rng(0)
    normal = rng.normal(scale=0.01, size=5000).astype(np.float32)
    return {
        "normal": (normal, None),
        "weighted": (normal, rng.random(5000)),
        "pruned": (normal[np.abs(normal) > 0.015], None),
        "float64": (normal[:900].astype(np.float64) + 3.0, None),
        "heavy tails": (rng.standard_cauchy(3000).astype(np.float32), None),
        "an outlier": (np.append(normal[:500], np.float32(1e4)), None),
        "whole numbers": (rng.integers(-20, 20, 3000).astype(np.float32), None),
        "mostly equal": (np.repeat([0.0, 1, 2, 3, 4, 5, 6, 7], [2000, *[1] * 7]), None),
        "eight": (np.arange(8.0), None),
        "tiny": (normal[:300] * np.float32(1e-30), None),
    }


LAYERS = _layers()


@pytest.fixture(params=LAYERS, ids=lambda name: name.replace(" ", "-"))
def layer(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray | None]:
    return LAYERS[request.param]


@pytest.mark.parametrize("name", INITIALISATIONS.names())
@pytest.mark.parametrize("k", [1, 2, 7])
def test_initial_centroids(name: str, k: int, layer: tuple[np.ndarray, np.ndarray | None]) -> None:
    data = SortedValues.of(*layer)
    before = data.values.tobytes()
    method = INITIALISATIONS.make(name)
    centroids = method.centroids(data, k, np.random.default_rng(1))
    assert centroids.shape == (k,)
    assert centroids.dtype == np.float64
    assert np.all(np.diff(centroids) >= 0)
    assert data.low <= centroids[0]
    assert centroids[-1] <= data.high
    again = INITIALISATIONS.make(name).centroids(data, k, np.random.default_rng(1))
    assert np.array_equal(centroids, again)
    assert data.values.tobytes() == before


@pytest.mark.parametrize("name", INITIALISATIONS.names())
def test_lloyd_from_everywhere(name: str, layer: tuple[np.ndarray, np.ndarray | None]) -> None:
    values, weights = layer
    found = kmeans_1d(values, 7, init=name, weights=weights)
    assert found.centroids.size == 7
    started = kmeans_1d(values, 7, init=name, weights=weights, iterations=0)
    assert found.wcss <= started.wcss * (1 + 1e-12)


@pytest.mark.parametrize("name", INITIALISATIONS.names())
def test_initialisations_are_frozen_and_described(name: str) -> None:
    cls = INITIALISATIONS.get(name)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert cls.__doc__
    assert INITIALISATIONS.make(name) == cls()


@pytest.mark.parametrize("name", SOLVERS.names())
@pytest.mark.parametrize("k", [1, 2, 7, 40])
def test_solvers(name: str, k: int, layer: tuple[np.ndarray, np.ndarray | None]) -> None:
    values, weights = layer
    before = values.tobytes()
    found = kmeans_1d(values, k, solver=name, weights=weights)
    assert values.tobytes() == before
    assert np.all(np.diff(found.centroids) > 0)
    assert 1 <= found.centroids.size <= k
    distances = np.abs(values.astype(np.float64)[:, None] - found.centroids)
    assert np.array_equal(found.codes, distances.argmin(axis=1))
    mass = np.ones(values.size) if weights is None else weights
    wcss = np.sum(mass * distances.min(axis=1) ** 2)
    assert np.isclose(found.wcss, wcss, rtol=1e-9, atol=0)
    assert np.bincount(found.codes, minlength=found.centroids.size).all()
    best = kmeans_1d(values, k, solver="exact", weights=weights)
    assert best.wcss <= found.wcss * (1 + 1e-9) + 1e-13 * np.sum(mass * values.astype(float) ** 2)
    if found.gap is not None:
        assert found.gap >= 0
    again = kmeans_1d(values, k, solver=name, weights=weights)
    assert again.codes.tobytes() == found.codes.tobytes()
    assert again.centroids.tobytes() == found.centroids.tobytes()
