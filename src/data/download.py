"""Download of the standard data sets: with checksums and retries; an archive is unpacked completely or not at all."""

import shutil
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import pooch
import requests

from src.errors import UserError
from src.files import making_folder

RETRIES = 2
TIMEOUT = 30  # seconds to wait for the server


@dataclass(frozen=True)
class Source:
    """Where the files of a data set are. If one is an archive, it unpacks to `folder`."""

    url: str
    md5: dict[str, str]  # file name: its MD5 checksum, as the authors of the data set or torchvision publish it
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


def download(name: str, root: Union[str, Path], sources: dict[str, Source] = SOURCES) -> None:
    """Download the missing files of the data set `name` into the folder `root`.

    If that fails, a `UserError` says which file the user should place where.
    """
    source, root = sources[name], Path(root)
    if source.folder and (root / source.folder).is_dir():
        return
    pooch.get_logger().setLevel("ERROR")
    registry = {file: f"md5:{digest}" for file, digest in source.md5.items()}
    fetcher = pooch.create(root, source.url, registry=registry, retry_if_failed=RETRIES)
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT)
    for file in source.md5:
        if not (root / file.removesuffix(".gz")).is_file():  # the user may have unpacked an idx file
            fetch(fetcher, file, downloader, root)
    if source.folder:
        unpack(root / next(iter(source.md5)), root, source.folder)


def fetch(fetcher: pooch.Pooch, file: str, downloader: pooch.HTTPDownloader, root: Path) -> None:
    """Download one file; pooch puts it into `root` once it is complete and its checksum is right."""
    url, by_hand = fetcher.get_url(file), f"place {file} ({fetcher.registry[file]}) into {root} by hand"
    try:
        fetcher.fetch(file, downloader=downloader)
    except requests.RequestException as error:
        raise UserError(f"data.download: {url}: download failed ({reason_of(error)}); {by_hand}") from None
    except ValueError:
        raise UserError(f"data.download: {url}: checksum mismatch; {by_hand}") from None


def reason_of(error: requests.RequestException) -> str:
    """Return in a few words why a request failed."""
    if isinstance(error, requests.HTTPError):
        return f"status {error.response.status_code}"
    return "no answer" if isinstance(error, requests.Timeout) else "no connection"


def unpack(archive: Path, root: Path, folder: str) -> None:
    """Unpack a .tar.gz so that `folder` exists only if it is complete, and remove the archive."""
    with making_folder(root / folder) as partial:
        try:
            with tarfile.open(archive) as packed:
                for member in packed.getmembers():
                    if member.isfile() and (source := packed.extractfile(member)):
                        with source, open(partial / Path(member.name).name, "wb") as copy:
                            shutil.copyfileobj(source, copy)
        except (tarfile.TarError, EOFError) as error:
            raise UserError(f"{archive}: is damaged: {error}") from None
    archive.unlink()
