"""Download standard data sets from a server on this machine: once, with checksums and retries, completely or not."""

import functools
import hashlib
import http.server
import io
import tarfile
import threading

import numpy as np
import pytest

from src.config.load import make_config
from src.data import download as module
from src.data.datasets import load_samples
from src.data.download import Source, download
from src.errors import UserError


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve a folder, count the requests, and answer the first requests with status 503."""

    def __init__(self, *arguments, counts, **options):
        self.counts = counts
        super().__init__(*arguments, **options)

    def do_GET(self):
        self.counts["requests"] += 1
        if self.counts["requests"] <= self.counts["failures"]:
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Yield (the folder that is served, its address, counts)."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # so that a retry does not wait
    folder, counts = tmp_path / "served", {"requests": 0, "failures": 0}
    folder.mkdir()
    handler = functools.partial(Handler, counts=counts, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}/", counts
        running.shutdown()


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar(server):
    """Return (sources with CIFAR-10's archive of 20 images per file, the rows of the files, class names)."""
    folder, address, _ = server
    generator = np.random.default_rng(0)
    rows = {}
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
        for name in names:
            labels = np.arange(20, dtype=np.uint8)[:, None] % 10
            rows[name] = np.concatenate([labels, generator.integers(0, 256, (20, 3072), dtype=np.uint8)], 1)
        classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
        contents = {name: array.tobytes() for name, array in rows.items()}
        for name, content in {**contents, "batches.meta.txt": "\n".join(classes).encode() + b"\n\n"}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    digest = md5(folder / "cifar-10-binary.tar.gz")
    source = Source(address, {"cifar-10-binary.tar.gz": digest}, folder="cifar-10-batches-bin")
    return {"cifar10": source}, rows, classes


def test_cifar_is_downloaded_once_unpacked_and_read(server, cifar, tmp_path, monkeypatch):
    sources, rows, classes = cifar
    monkeypatch.setattr("src.data.datasets.download", functools.partial(download, sources=sources))
    data = make_config({"data": {"name": "cifar10", "root": str(tmp_path / "data"), "download": True}}).data
    train, test = load_samples(data, "train"), load_samples(data, "eval")
    assert server[2]["requests"] == 1
    assert (train.classes, train.images.shape, test.images.shape) == (classes, (100, 32, 32, 3), (20, 32, 32, 3))
    assert train.labels.tolist() == list(range(10)) * 10
    # Each row is a label, then 1024 red, 1024 green and 1024 blue values, line by line.
    row, column = 7, 30
    for channel in range(3):
        assert test.images[5, row, column, channel] == rows["test_batch.bin"][5, 1 + 1024 * channel + 32 * row + column]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-10-batches-bin"]


def test_cifar100_has_the_fine_labels(tmp_path):
    row = np.r_[np.uint8([3, 42]), np.zeros(3072, np.uint8)]
    (tmp_path / "train.bin").write_bytes(row.tobytes())
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"name_{i}" for i in range(100)) + "\n")
    data = make_config({"data": {"name": "cifar100", "root": str(tmp_path)}}).data
    assert load_samples(data, "train").labels.tolist() == [42]
    with pytest.raises(UserError, match="test.bin: no such file"):
        load_samples(data, "test")
    (tmp_path / "test.bin").write_bytes(row.tobytes()[:-1])
    with pytest.raises(
        UserError, match=r"test.bin: has the wrong size \(found 3073 bytes, expected a multiple of 3074"
    ):
        load_samples(data, "test")


def test_a_failed_download_is_retried(server, tmp_path):
    folder, address, counts = server
    (folder / "a-ubyte.gz").write_bytes(b"content")
    sources = {"mnist": Source(address, {"a-ubyte.gz": md5(folder / "a-ubyte.gz")})}
    counts["failures"] = module.RETRIES
    download("mnist", tmp_path / "data", sources)
    assert (tmp_path / "data" / "a-ubyte.gz").read_bytes() == b"content"
    assert counts["requests"] == module.RETRIES + 1
    download("mnist", tmp_path / "data", sources)
    assert counts["requests"] == module.RETRIES + 1


def test_unpacked_idx_files_are_not_downloaded(server, tmp_path):
    _, address, counts = server
    (tmp_path / "a-ubyte").write_bytes(b"content")
    download("mnist", tmp_path, {"mnist": Source(address, {"a-ubyte.gz": "0" * 32})})
    assert counts["requests"] == 0


def closed_address():
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return f"http://127.0.0.1:{server.server_port}/"


@pytest.mark.parametrize(
    ("defect", "said"),
    [
        ("wrong content", "cifar-10-binary.tar.gz: checksum mismatch; place"),
        ("missing file", "download failed \\(status 404\\); place cifar-10-binary.tar.gz \\(md5:"),
        ("no network", "download failed \\(no connection\\); place cifar-10-binary.tar.gz \\(md5:"),
        ("truncated archive", "cifar-10-binary.tar.gz: is damaged"),
    ],
)
def test_a_failed_download_leaves_no_partial_files(server, cifar, tmp_path, defect, said):
    folder, address, _ = server
    source, archive = cifar[0]["cifar10"], folder / "cifar-10-binary.tar.gz"
    if defect in ("wrong content", "truncated archive"):
        archive.write_bytes(archive.read_bytes()[:5000])
    digest = md5(archive) if defect == "truncated archive" else source.md5[archive.name]
    if defect == "missing file":
        archive.unlink()
    address = closed_address() if defect == "no network" else address
    sources = {"cifar10": Source(address, {archive.name: digest}, source.folder)}
    with pytest.raises(UserError, match=said) as caught:
        download("cifar10", tmp_path / "data", sources)
    assert str(tmp_path / "data") in str(caught.value)
    left = list((tmp_path / "data").iterdir())
    assert [path.name for path in left] == ([archive.name] if defect == "truncated archive" else [])


def test_the_checksums_have_the_form_that_pooch_expects():
    for source in module.SOURCES.values():
        assert source.url.startswith("https://")
        for digest in source.md5.values():
            assert len(bytes.fromhex(digest)) == 16
