"""Parts of a file: single tensors, and files at a URL of which only ranges are fetched."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from espalier.container import Reader

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")


class Ranges(BaseHTTPRequestHandler):
    """Serves the server's ``files``; by ranges, unless its ``whole`` is set; counts bytes."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        data = self.server.files.get(self.path)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if data is None:
            self.send_response(404)
            data = b""
        elif wanted and not self.server.whole:
            start, stop = int(wanted[1]), int(wanted[2]) + 1
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            data = data[start:stop]
        else:
            self.send_response(200)
        if not self.server.whole:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.server.sent += len(data)
            self.wfile.write(data)

    def log_message(self, *_args):
        pass


@pytest.fixture
def server():
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    serving.files, serving.whole, serving.sent = {}, False, 0
    serving.url = f"http://127.0.0.1:{serving.server_port}"
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    yield serving
    serving.shutdown()
    serving.server_close()
    thread.join(10)


@pytest.fixture
def esp(espalier, checkpoint, tmp_path):
    path = tmp_path / "net.esp"
    assert espalier("compress", checkpoint, "-o", path, "-q").status == 0
    return path


def test_only_some_tensors(espalier, fails, esp, tmp_path):
    part = tmp_path / "part.safetensors"
    done = espalier("decompress", esp, "-o", part, "--only", "fc1.*", "--only", "steps")
    assert done.status == 0, done
    assert "3 tensors" in done.out
    with Reader(esp) as reader:
        found = load_file(part)
        assert set(found) == {"fc1.weight", "fc1.bias", "steps"}
        for name, array in found.items():
            assert np.array_equal(array, reader.tensor(name).dense())
    line = fails("decompress", esp, "-o", tmp_path / "x.npz", "--only", "fc1.*", "--only", "fc9*")
    assert "--only 'fc9*' matches nothing; there are" in line
    line = fails("decompress", esp, "-o", tmp_path / "x.onnx", "--only", "*", status=2)
    assert ".onnx cannot be written" in line
    assert not (tmp_path / "x.npz").exists()


def test_only_a_tied_name(espalier, tmp_path):
    weight = torch.randn(100, 64)
    torch.save({"a.weight": weight, "b.weight": weight, "c": weight}, tmp_path / "tied.pt")
    esp, part = tmp_path / "tied.esp", tmp_path / "part.pt"
    assert espalier("compress", tmp_path / "tied.pt", "-o", esp, "-q").status == 0
    assert espalier("decompress", esp, "-o", part, "--only", "[bc]*", "-q").status == 0
    found = torch.load(part, weights_only=True)
    assert list(found) == ["b.weight", "c"]
    assert found["b.weight"].data_ptr() == found["c"].data_ptr()


def test_a_tensor_at_a_url_costs_its_own_bytes(server, tmp_path):
    rng = np.random.default_rng(0)
    from espalier.container import write
    from espalier.state import CompressedModel, Dense

    def dense(n):
        return Dense((n, 10), "float32", rng.normal(size=10 * n).astype("<f4"))

    model = CompressedModel({"large": dense(50_000), "small": dense(10), "last": dense(50_000)})
    write(model, tmp_path / "big.esp")
    server.files["/big.esp"] = (tmp_path / "big.esp").read_bytes()
    with Reader(f"{server.url}/big.esp") as reader:
        assert reader.names() == ["large", "small", "last"]
        assert np.array_equal(reader.tensor("small").dense(), model["small"].dense())
        assert np.array_equal(reader.slice("small", 3), model["small"].dense()[3])
        assert reader.path == f"{server.url}/big.esp"
    assert server.sent < 40_000 < len(server.files["/big.esp"]) / 50


def test_commands_at_a_url(espalier, esp, checkpoint, server, tmp_path):
    server.files["/net.esp"] = esp.read_bytes()
    url = f"{server.url}/net.esp"
    assert "sound, 9 tensors decoded" in espalier("verify", url).out
    assert f"{url}: {esp.stat().st_size:,} bytes for" in espalier("inspect", url).out
    args = ("--only", "conv1.*", "--jobs", 2)
    done = espalier("decompress", url, "-o", tmp_path / "part.npz", *args)
    assert done.status == 0, done
    with np.load(tmp_path / "part.npz") as part, Reader(esp) as reader:
        for name in ("conv1.weight", "conv1.bias"):
            assert np.array_equal(part[name], reader.tensor(name).dense())


def test_what_cannot_be_read_at_a_url(fails, esp, server, tmp_path):
    data = esp.read_bytes()
    server.files |= {"/net.esp": data, "/cut.esp": data[: len(data) // 2], "/empty.esp": b""}
    assert "/gone.esp: cannot be read (404" in fails("verify", f"{server.url}/gone.esp")
    assert "was cut short" in fails("verify", f"{server.url}/cut.esp")
    assert "/empty.esp" in fails("verify", f"{server.url}/empty.esp")
    assert "cannot be read" in fails("inspect", "http://127.0.0.1:9/net.esp")
    assert "gopher" in fails("inspect", "gopher://example.org/net.esp")
    server.whole = True
    line = fails("decompress", f"{server.url}/net.esp", "-o", tmp_path / "x.npz")
    assert "range requests" in line


def test_without_the_package_the_extra_is_named(monkeypatch):
    import sys

    from espalier.errors import MissingDependency

    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingDependency, match=r"pip install 'espalier\[remote\]'"):
        Reader("https://example.org/net.esp")
