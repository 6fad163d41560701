"""A sweep on a Dask cluster, one of whose workers is killed on the way."""

import os
import signal
import time

import pytest
import torch
from torch import nn

import espalier

dask = pytest.importorskip("dask.distributed")
joblib = pytest.importorskip("joblib")


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_point():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.randn(64, 8)
    grid = {"density": (0.1, 0.2, 0.3, 0.4, 0.5), "bits": (1, 2, 3)}

    def evaluate(changed):
        time.sleep(0.2)
        with torch.no_grad():
            return float(changed(x).sum())

    wanted = espalier.sensitivity(model, evaluate, grid, jobs=1)
    cluster = dask.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster, dask.Client(cluster) as client:
        pids = client.run(os.getpid)
        assert len(set(pids.values()) - {os.getpid()}) == 2
        killed = []

        def progress(done, _total, _text):
            if done >= 4 and not killed:
                killed.append(next(iter(pids.values())))
                os.kill(killed[0], signal.SIGKILL)

        with joblib.parallel_config(backend="dask"):
            found = espalier.sensitivity(model, evaluate, grid, progress=progress)
        assert killed
        assert killed[0] not in client.run(os.getpid).values()
    assert [(p.layer, p.axis, p.value) for p in found.points] == [
        (p.layer, p.axis, p.value) for p in wanted.points
    ]
    # Another process may sum in another order.
    assert [p.metric for p in found.points] == pytest.approx([p.metric for p in wanted.points])


def test_a_worker_of_joblib_that_dies_is_one_line_and_loses_nothing(tmp_path):
    model = nn.Linear(4, 4)
    keep = tmp_path / "points.jsonl"
    grid = {"bits": (1, 2)}

    def evaluate(_model):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(
        espalier.EspalierError, match=r"a worker process ended .* run again to go on"
    ):
        espalier.sensitivity(model, evaluate, grid, jobs=2, keep=keep)
    assert espalier.sensitivity(model, lambda _: 1.0, grid, jobs=2, keep=keep).points
