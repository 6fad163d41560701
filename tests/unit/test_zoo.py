"""Parameter counts, data readers, and downloads against a local server."""

import gzip
import hashlib
import http.server
import socket
import threading
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
import torch

from espalier import zoo
from espalier.errors import CorruptFile, DataUnavailable, InvalidArgument
from espalier.samples import Samples
from espalier.zoo import cifar10, data, digits, lenet5, lenet300, mnist, resnet20
from espalier.zoo.download import download
from espalier.zoo.resnet_cifar import CifarResNet


@pytest.mark.parametrize(
    ("build", "parameters", "shape"),
    [
        (lenet300, 266_610, (1, 28, 28)),
        (lenet5, 431_080, (1, 28, 28)),
        (resnet20, 269_722, (3, 32, 32)),
        (zoo.small_inception, 31_498, (1, 28, 28)),
    ],
)
def test_parameter_counts(build, parameters, shape):
    model = build()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(2, *shape)).shape == (2, 10)


# As in the papers or, where they round, as in the published Caffe and torchvision networks.
@pytest.mark.parametrize(
    ("build", "parameters", "size", "classes"),
    [
        (zoo.resnet32, 464_154, 32, 10),
        (zoo.resnet44, 658_586, 32, 10),
        (zoo.resnet56, 853_018, 32, 10),
        (zoo.resnet110, 1_727_962, 32, 10),
        (zoo.vgg16_cifar, 14_987_210, 32, 10),
        (zoo.alexnet, 60_965_224, 227, 1000),
        (zoo.vgg16, 138_357_544, 224, 1000),
        (zoo.googlenet, 6_998_552, 224, 1000),
        (zoo.resnet18, 11_689_512, 224, 1000),
        (zoo.resnet34, 21_797_672, 224, 1000),
        (zoo.resnet50, 25_557_032, 224, 1000),
        (zoo.squeezenet, 1_248_424, 224, 1000),
        (zoo.mobilenet_v2, 3_504_872, 224, 1000),
    ],
)
def test_published_parameter_counts(build, parameters, size, classes):
    with torch.device("meta"):  # shapes, and no memory for 138 million weights
        model = build().eval()
        outputs = model(torch.zeros(2, 3, size, size))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert outputs.shape == (2, classes)


def test_a_depth_that_is_none():
    with pytest.raises(InvalidArgument, match="6n \\+ 2"):
        CifarResNet(21)


def test_digits_look_like_mnist():
    found = digits()
    assert (len(found.train), len(found.test)) == (1438, 359)
    assert found.train.x.shape[1:] == (1, 28, 28)
    assert found.train.y.dtype == torch.int64
    assert set(found.test.y.tolist()) == set(range(10))


def test_split_takes_each_sample_once():
    found = Samples(torch.arange(10.0), torch.arange(10))
    rest, held_out = found.split(3, seed=1)
    assert sorted([*rest.y.tolist(), *held_out.y.tolist()]) == list(range(10))
    assert len(held_out) == 3
    with pytest.raises(InvalidArgument, match="holdout 10"):
        found.split(10, seed=0)


@pytest.fixture
def small_mnist(monkeypatch):
    """Four files in MNIST's format, with their own checksums in the place of MNIST's."""
    images = (2051).to_bytes(4, "big") + bytes(12)
    labels = (2049).to_bytes(4, "big") + bytes(4)
    rng = np.random.default_rng(0)
    files = {}
    for part, n in (("train", 5), ("t10k", 3)):
        files[f"{part}-images-idx3-ubyte"] = (
            images + rng.integers(0, 256, 784 * n, np.uint8).tobytes()
        )
        files[f"{part}-labels-idx1-ubyte"] = labels + bytes(range(n))
    sums = {name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()}
    monkeypatch.setattr(data, "MNIST_SHA256", sums)
    monkeypatch.delenv("ESPALIER_DATA", raising=False)
    return files


def test_mnist_from_gzip_and_plain_files(tmp_path, small_mnist):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for i, (name, raw) in enumerate(small_mnist.items()):
        path = folder / (f"{name}.gz" if i % 2 else name)
        path.write_bytes(gzip.compress(raw) if i % 2 else raw)
    found = mnist(tmp_path)
    assert found.train.x.shape == (5, 1, 28, 28)
    assert found.test.y.tolist() == [0, 1, 2]
    pixel = small_mnist["train-images-idx3-ubyte"][16]
    assert found.train.x[0, 0, 0, 0].item() == pytest.approx((pixel / 255 - 0.1307) / 0.3081)
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(CorruptFile, match=r"t10k-labels-idx1-ubyte\.gz: SHA-256"):
        mnist(tmp_path)
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(CorruptFile, match="not a gzip file"):
        mnist(tmp_path)


@pytest.fixture
def server(small_mnist):
    """A mirror on this machine: /good serves the files, /bad other bytes, all else is missing."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, folder, name = self.path.split("/")
            if folder == "good":
                body = gzip.compress(small_mnist[name.removesuffix(".gz")])
            elif folder in ("bad", "cut"):
                body = gzip.compress(b"something else")
            else:
                self.send_error(404)
                return
            self.send_response(200)
            cut = folder == "cut"
            self.send_header("Content-Length", str(len(body) + 100 * cut))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def test_downloads_go_to_the_cache_from_the_first_good_mirror(tmp_path, monkeypatch, server):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mirrors = (f"{server}/missing/", f"{server}/bad/", f"{server}/good/")
    monkeypatch.setattr(data, "MNIST_MIRRORS", mirrors)
    assert len(mnist().train) == 5
    monkeypatch.setattr(data, "MNIST_MIRRORS", ())
    assert len(mnist(offline=True).train) == 5
    assert len(list((tmp_path / "espalier" / "mnist").iterdir())) == 4


def test_when_no_mirror_has_it_nothing_is_left(tmp_path, monkeypatch, server):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data, "MNIST_MIRRORS", (f"{server}/missing/", f"{server}/bad/"))
    with pytest.raises(DataUnavailable, match=r"missing/.*404.*bad/.*SHA-256"):
        mnist()
    assert not list(tmp_path.rglob("*ubyte*"))


def test_a_transfer_that_is_cut_short_is_a_failure_like_others(server):
    with pytest.raises(DataUnavailable, match=r"cut/x: ended 100 bytes early"):
        download([f"{server}/cut/x"], Path("nowhere"), check=bytes)
    assert not Path("nowhere").exists()


def test_a_host_that_does_not_answer_is_given_up():
    with socket.socket() as silent:  # accepts, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        start = monotonic()
        with pytest.raises(DataUnavailable, match="could not download"):
            download([url, url], Path("nowhere"), check=bytes, connect_seconds=0.3)
        assert monotonic() - start < 5
    assert not Path("nowhere").exists()


def test_offline_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ESPALIER_DATA", str(tmp_path / "data"))
    for reader in (mnist, cifar10):
        with pytest.raises(DataUnavailable, match=r"cache.*ESPALIER_DATA or --data-dir"):
            reader(offline=True)
