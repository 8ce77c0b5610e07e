"""Fetching the standard sets: checked against their known hashes, tried again, and unpacked all or not at all."""

import os
import shutil
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import pooch
import requests

from src.errors import UserError

ATTEMPTS_MORE = 2
TIMEOUT = 30  # seconds without an answer


@dataclass(frozen=True)
class Source:
    """Where a set's files are; `folder` is what an archive among them unpacks to."""

    url: str
    md5: dict  # file name: its hash, as the set's authors or torchvision publish it
    folder: Optional[str] = None


SOURCES = {
    "mnist": Source(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion_mnist": Source(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar10": Source(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
        folder="cifar-10-batches-bin",
    ),
    "cifar100": Source(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"},
        folder="cifar-100-binary",
    ),
}


def download(name, root, sources=SOURCES):
    """Fetch into the folder `root` what of the set `name` is missing there; a `UserError` says what to place where."""
    source, root = sources[name], Path(root)
    if source.folder and (root / source.folder).is_dir():
        return
    pooch.get_logger().setLevel("ERROR")
    registry = {file: f"md5:{digest}" for file, digest in source.md5.items()}
    fetcher = pooch.create(root, source.url, registry=registry, retry_if_failed=ATTEMPTS_MORE)
    way = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT)
    for file in source.md5:
        if not (root / file.removesuffix(".gz")).is_file():  # an idx file may lie there unpacked
            fetch(fetcher, file, way, root)
    if source.folder:
        unpack(root / next(iter(source.md5)), root, source.folder)


def fetch(fetcher, file, way, root):
    """Fetch one file; pooch puts it in place when it is complete and its hash is right."""
    url, by_hand = fetcher.get_url(file), f"place {file} ({fetcher.registry[file]}) into {root} by hand"
    try:
        fetcher.fetch(file, downloader=way)
    except requests.RequestException as error:
        raise UserError(f"data.download: {url} cannot be fetched ({reason(error)}); {by_hand}") from None
    except ValueError:
        raise UserError(f"data.download: {url} has not the hash that it should have; {by_hand}") from None


def reason(error):
    """Return what went wrong with a request, in few words."""
    if isinstance(error, requests.HTTPError):
        return f"status {error.response.status_code}"
    return "no answer" if isinstance(error, requests.Timeout) else "no connection"


def unpack(archive, root, folder):
    """Unpack a .tar.gz so that `folder` is there complete or not at all, and remove the archive."""
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpacking-") as partial:
        try:
            with tarfile.open(archive) as packed:
                for member in packed.getmembers():
                    if member.isfile():
                        target = Path(partial) / Path(member.name).name
                        with packed.extractfile(member) as source, open(target, "wb") as copy:
                            shutil.copyfileobj(source, copy)
        except (tarfile.TarError, EOFError) as error:
            raise UserError(f"{archive}: is damaged: {error}") from None
        os.chmod(partial, 0o755)
        os.replace(partial, root / folder)
        os.mkdir(partial)  # for TemporaryDirectory to remove
    archive.unlink()
