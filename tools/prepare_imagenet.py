"""Unpack the archives of ImageNet (ILSVRC2012): python tools/prepare_imagenet.py ARCHIVES OUT

ARCHIVES is the folder of the three official files: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
ILSVRC2012_devkit_t12.tar.gz. The images are written to OUT/train/<synset>/ and OUT/val/<synset>/, the layout that
`data.name=imagenet` reads. An interrupted command goes on where it was: images that are complete are kept. A file that
differs from the archive's image is never overwritten. About 150 GB are needed.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import src  # noqa: F401 - first, because from here on a signal ends the script with one line

# isort: split

import argparse
import contextlib
import functools
import gzip
import io
import re
import shutil
import tarfile
import zlib
from pathlib import Path

from src.errors import ArgumentParser, UserError, run
from src.files import PARTIAL
from src.outputs import located, refuse_place

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
META, LABELS = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"  # in a folder of DEVKIT
CLASS_ARCHIVE = r"(n\d{8})\.tar"
TRAIN_IMAGE = r"n\d{8}_\d+\.JPEG"
VAL_IMAGE = r"ILSVRC2012_val_(\d{8})\.JPEG"
# A file takes whole blocks of the disk, on average 2 KB more than its content, which is 2 % of an image of ImageNet.
BLOCKS = 1.02
MAX_LABEL_BYTES = 2**26  # a larger file in DEVKIT is not the official one


def main():
    args = parse()
    archives, out = Path(args.archives), Path(args.out)
    refuse_place(f"OUT {out}", located(out / "train"))
    missing = [name for name in (TRAIN, VAL, DEVKIT) if not (archives / name).is_file()]
    if missing:
        raise UserError(f"{archives}: has no {missing[0]}; download it from image-net.org (after a registration)")
    images_of, labels = read_devkit(archives / DEVKIT)
    check_space(archives, out)

    for split, unpack, content in (("train", unpack_train, images_of), ("val", unpack_val, labels)):
        images, written = unpack(archives, out, content)
        print(f"{split}: {images:,} images ({written:,} written, {images - written:,} were there)")
    print(f"\nuse them with: data.name=imagenet data.root={out}")


def parse():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archives", metavar="ARCHIVES", help="folder of the three archives")
    parser.add_argument("out", metavar="OUT", help="folder that receives train/ and val/")
    return parser.parse_args()


def read_devkit(path):
    """Return {synset: number of its training images}, and the synset of each validation image, in order."""
    from scipy.io import loadmat

    with opened(path, "r:gz") as archive:
        contents = {}
        for member in archive:
            name = next((name for name in (META, LABELS) if f"/{member.name}".endswith(f"/{name}")), None)
            if name and member.isfile() and member.size <= MAX_LABEL_BYTES:
                contents[name] = archive.extractfile(member).read()
    for name in (META, LABELS):
        if name not in contents:
            raise UserError(f"{path}: has no file {name}; download it again")
    try:
        table = loadmat(io.BytesIO(contents[META]), squeeze_me=True)["synsets"].reshape(-1)
        # The table also has synsets above the classes; only a class has no children.
        rows = [row for row in table if row["num_children"] == 0]
        synset_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
        images_of = {str(row["WNID"]): int(row["num_train_images"]) for row in rows}
    except Exception as error:  # SciPy raises many types of exception on damaged files.
        raise UserError(f"{path}: {META} cannot be read: {error}; download it again") from None
    wrong = [name for name in images_of if not re.fullmatch(r"n\d{8}", name)]
    if wrong or not images_of:
        raise UserError(f"{path}: {META} has no synsets (found {wrong[0] if wrong else 'nothing'}, expected n01440764)")
    numbers = contents[LABELS].decode("ascii", "replace").split()
    unknown = [number for number in numbers if not number.isdecimal() or int(number) not in synset_of]
    if unknown:
        raise UserError(f"{path}: {LABELS} has an unknown class (found {unknown[0]}, expected a number in {META})")
    return images_of, [synset_of[int(number)] for number in numbers]


def check_space(archives, out):
    """Raise a `UserError` if the disk of `out` has no room for the images that are not there yet."""
    there = 0
    for split in ("train", "val"):
        for folder, _, names in os.walk(out / split):
            there += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
    needed = max(0, sum((archives / name).stat().st_size for name in (TRAIN, VAL)) * BLOCKS - there)
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{out}: the disk is too full (found {free / 1e9:,.1f} GB, expected {needed / 1e9:,.1f} GB); "
            "free some space, or choose a folder on another disk"
        )


def unpack_train(archives, out, images_of):
    """Write the training images; `images_of` maps each synset to its number of images.

    Return the number of images in the archive and the number of images written.
    """
    path, found, written = archives / TRAIN, {}, 0
    with opened(path) as archive, progress(path) as bar:
        for member in archive:
            synset = matched(CLASS_ARCHIVE, member, path).group(1)
            place = f"{path}: {member.name}"
            if synset not in images_of:
                raise UserError(f"{place}: is not a class of {DEVKIT}; download both again")
            found[synset] = 0
            with opened(place, fileobj=archive.extractfile(member)) as images:
                for image in images:
                    matched(TRAIN_IMAGE, image, place)
                    written += unpack(images, image, class_folder(out, "train", synset), place)
                    found[synset] += 1
                    bar.update(image.size)
            check_count(place, "images", found[synset], images_of[synset])
    check_count(path, "classes", len(found), len(images_of))
    return sum(found.values()), written


def unpack_val(archives, out, labels):
    """Write the validation images; `labels` is the synset of each image, in order.

    Return the number of images in the archive and the number of images written.
    """
    path, images, written = archives / VAL, 0, 0
    with opened(path) as archive, progress(path) as bar:
        for image in archive:
            number = int(matched(VAL_IMAGE, image, path).group(1))
            if not 1 <= number <= len(labels):
                raise UserError(f"{path}: {image.name}: has no label (found {number}, expected 1 to {len(labels):,})")
            written += unpack(archive, image, class_folder(out, "val", labels[number - 1]), path)
            images += 1
            bar.update(image.size)
    check_count(path, "images", images, len(labels))
    return images, written


def progress(path):
    """Return a progress bar of an archive's bytes; it is shown on a terminal only."""
    from tqdm import tqdm

    size = path.stat().st_size
    return tqdm(total=size, desc=path.name, unit="B", unit_scale=True, leave=False, disable=not sys.stderr.isatty())


def check_count(place, what, found, expected):
    if found != expected:
        raise UserError(f"{place}: is incomplete (found {found:,} {what}, expected {expected:,}); download it again")


@contextlib.contextmanager
def opened(place, mode="r:", fileobj=None):
    """Open a tar archive; an archive that is damaged or incomplete is a `UserError` that names the `place`."""
    try:
        with tarfile.open(None if fileobj else place, mode, fileobj) as archive:
            yield archive
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{place}: is damaged or incomplete: {error}; download it again") from None


def matched(pattern, member, place):
    """Return the match of a member's whole name; only a plain file with such a name is safe to unpack."""
    match = re.fullmatch(pattern, member.name, re.ASCII)
    if match is None or not member.isfile():
        raise UserError(f"{place}: unexpected member {member.name!r}; it is not an official archive, download it again")
    return match


@functools.cache
def class_folder(out, split, synset):
    """Return the folder of a class, which is made if it is missing; a link that leads out of `out` is a `UserError`."""
    folder = out / split / synset
    folder.mkdir(parents=True, exist_ok=True)
    if out.resolve() not in folder.resolve().parents:
        raise UserError(f"{folder}: leads out of {out} (found a link to {folder.resolve()}); remove the link")
    return folder


def unpack(archive, member, folder, place):
    """Write an image into the folder if it is not there yet; return whether it was written.

    The image is not flushed to the disk, because 1.3 million flushes take hours. A file that a power failure left
    shorter is the beginning of the image, so the next start writes it again.
    """
    path = folder / member.name
    size = path.stat().st_size if path.is_file() else None
    if size == member.size:
        return False
    content = archive.extractfile(member).read()
    if len(content) != member.size:
        raise UserError(f"{place}: is damaged or incomplete: {member.name} ends too early; download it again")
    if os.path.lexists(path) and (size is None or not content.startswith(path.read_bytes())):
        raise UserError(f"{path}: differs from the image in {place}; move it away")
    partial = path.with_name(f".{path.name}{PARTIAL}")
    partial.unlink(missing_ok=True)
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return True


if __name__ == "__main__":
    run(main)
