"""``espalier search`` as a process: killed and gone on with, and on a PostgreSQL server."""

import glob
import json
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna")

NETWORK = """
import time
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

def data():
    x = torch.randn(600, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model()(x).argmax(1)
    return (x[:400], y[:400]), (x[400:500], y[400:500]), (x[500:], y[500:])
"""


@pytest.fixture
def project(tmp_path, espalier):
    """A folder with a finished sweep in ``s``."""
    (tmp_path / "mine.py").write_text(NETWORK)
    ran = espalier(
        "sensitivity",
        "--model",
        "mine:model",
        "--data",
        "mine:data",
        "--density",
        "0.2,0.5",
        "--bits",
        "1,2,4",
        "--out",
        "s",
        "-j",
        "1",
        "-q",
        cwd=tmp_path,
    )
    assert ran.status == 0, ran
    return tmp_path


def finished(database):
    """Finished trials in an SQLite database that another process may be writing."""
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            query = "select count(*) from trials where state = 'COMPLETE'"
            return connection.execute(query).fetchone()[0]
    except sqlite3.OperationalError:
        return 0


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on(espalier, fails, project):
    args = ["search", "s", "--max-loss", "10", "-j", "1", "-q"]
    running = subprocess.Popen(
        [sys.executable, "-m", "espalier", *args, "--trials", "100000"],
        cwd=project,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    database, deadline = project / "s" / "search.db", time.monotonic() + 200
    while finished(database) < 3:
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    held = finished(database)
    ran = espalier(*args, "--trials", held + 2, "--json", cwd=project)
    assert ran.status == 0, ran
    result = json.loads(ran.out)
    assert result["trials"] == held + 2 == finished(database)
    assert result["front"][0]["metric"] >= 90
    assert (project / "s" / "recipe.yaml").is_file()
    line = fails("search", "s", "--pareto", "-q", "-j", "1", cwd=project)
    assert "search.db: " in line


def binaries():
    """The folder of PostgreSQL's programs, or None."""
    found = shutil.which("initdb") or next(
        iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), reverse=True)), None
    )
    return Path(os.path.realpath(found)).parent if found else None


@pytest.fixture
def postgres(tmp_path_factory):
    """The URL of a PostgreSQL server that is started for the test, and stopped."""
    folder = binaries()
    if folder is None or not (folder / "postgres").exists():
        pytest.skip("PostgreSQL (initdb, postgres) is not installed")
    pytest.importorskip("psycopg", reason="psycopg, the driver, is not installed")
    home = tmp_path_factory.mktemp("postgres")
    who = {}
    if os.geteuid() == 0:  # which the server refuses
        nobody = pwd.getpwnam("nobody")
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
        who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        for parent in list(home.parents)[:-2]:
            parent.chmod(parent.stat().st_mode | 0o011)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = subprocess.run(
        [folder / "initdb", "-D", home / "data", "-U", "espalier", "-A", "trust", "--no-sync"],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=home,
        check=False,
        **who,
    )
    assert made.returncode == 0, made
    server = subprocess.Popen(
        [folder / "postgres", "-D", home / "data", "-p", str(port), "-k", home, "-F"],
        cwd=home,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **who,
    )
    try:
        deadline = time.monotonic() + 100
        while subprocess.run(
            [folder / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)], check=False
        ).returncode:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield f"postgresql://espalier@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)


@pytest.mark.slow
def test_two_processes_work_on_one_postgresql_server(espalier, project, postgres):
    args = ["search", "s", "--max-loss", "10", "--trials", "14", "--storage", postgres]
    args += ["-j", "1", "--json", "-q", "--out"]
    first = espalier(*args[:5], "4", *args[6:], "a", cwd=project)
    assert first.status == 0, first
    together = [
        subprocess.Popen(
            [sys.executable, "-m", "espalier", *args, out],
            cwd=project,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for out in ("b", "c")
    ]
    results = [json.loads(process.communicate(timeout=280)[0]) for process in together]
    assert [process.returncode for process in together] == [0, 0]
    # Each may finish the one that it had begun when the other reached the number.
    assert all(14 <= result["trials"] <= 15 for result in results)
    assert all(result["front"][0]["metric"] >= 90 for result in results)
