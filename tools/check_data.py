"""Find the defects of a data set: python tools/check_data.py --config photos.yaml

Decodes every image once. Reports damaged and empty files, wrong file extensions, duplicates, class counts and
imbalance, and the range of image sizes. Also reports leakage: the same image in several splits. Near-duplicates are
images of different splits that look alike, such as a photo and its smaller copy; look at them, because some may be
different images. The exit code is 1 if an image is bad or leaks, or if a folder cannot be read.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import src  # noqa: F401 - first, because from here on a signal ends the script with one line

# isort: split

import argparse
import collections
import hashlib
import io
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from src.arguments import existing
from src.config.load import load_config
from src.errors import ArgumentParser, run
from src.files import write_json
from src.outputs import add_overwrite, check_outputs, output_files

IMAGES_AT_ONCE = 256
LISTED = 20  # lines of each list that are printed; --json has all of them
# Above this number of images of the largest class for each image of the smallest, the report says what to do.
MUCH_IMBALANCE = 10
# Perceptual hashes have 16 x 16 bits. Hashes of unlike images differ in about 128 bits. Among all pairs of 3,000 images
# of Fashion-MNIST, and of 1,797 digits, no two hashes differ in 24 bits or fewer; 53 of its 10,000 test images have a
# training image so near. Of 200 photos, 95 % are so near to their copy with JPEG quality 75, and to their copy of half
# the size.
HASH_SIDE = 16
NEAR_BITS = 24
PAIRS_AT_ONCE = 1_000_000
THUMBNAIL = 128  # pixels; a JPEG is decoded at this size or a little above for its hash, which needs 64
IMBALANCE_HELP = (
    "add images of the small classes, or remove some of the large ones; or name the images of the small classes "
    "several times in a table (data.name=csv); top-1 hides a small class: look at the recall per class of eval.py"
)
NEAR_HELP = (
    "look at each pair; if both show the same thing, remove one of them or move both into one split (with "
    "data.val_fraction, data.group does it), because the network has seen the answer; if their classes differ, "
    "one class is wrong"
)
EXTENSIONS = {"JPEG": (".jpg", ".jpeg", ".jfif"), "PNG": (".png",), "BMP": (".bmp",), "WebP": (".webp",)}


@dataclass(frozen=True)
class Finding:
    """What the check found out about one image."""

    name: str
    digest: bytes  # SHA-256; images with the same digest are the same image
    size: Optional[tuple] = None  # width, height
    look: Optional[bytes] = None  # perceptual hash; images that look alike have hashes that differ in few bits
    problem: Optional[str] = None
    misnamed: Optional[str] = None


def main():
    args = parse()
    config = load_config(args.config, args.overrides)

    from src.data.datasets import inputs_of, load_samples, splits_of
    from src.data.loading import workers_of

    outputs = output_files("--json", args.json, ".json")
    check_outputs(outputs, {"--config": args.config, **inputs_of(config.data)}, args.overwrite)
    data = config.data.model_copy(update={"on_bad_image": "skip"})  # to find all bad images, not just the first
    report, places_of, looks_of, classes = {"splits": {}}, {}, {}, None
    # A folder without any split is an error, which loading the training split reports.
    for split in splits_of(data) or ("train",):
        samples = load_samples(data, split, classes)
        classes = classes or samples.classes
        findings = check(samples, split, workers_of(data))
        report["splits"][split] = report_of(samples, findings)
        looks_of[split] = looks(samples, findings)
        for finding in findings:
            places_of.setdefault(finding.digest, {}).setdefault(split, []).append(finding.name)
    # The same image several times within a split is a duplicate. The same image in several splits is leakage.
    report["duplicates"] = [names for places in places_of.values() for names in places.values() if len(names) > 1]
    report["leakage"] = [[*itertools.chain(*places.values())] for places in places_of.values() if len(places) > 1]
    report["near_duplicates"] = near_duplicates(looks_of)
    print_report(report)
    if args.json:
        write_json(report, args.json)
        print(f"\nwritten: {args.json}")
    sys.exit(1 if report["leakage"] or any(split["bad"] for split in report["splits"].values()) else 0)


def parse():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", type=existing, required=True, help="YAML file of settings; only the section `data` is used"
    )
    parser.add_argument("--json", metavar="PATH", help="also write all findings to this file")
    add_overwrite(parser)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the file's")
    return parser.parse_intermixed_args()


def check(samples, split, workers):
    """Return the `Finding` of every image."""
    from tqdm import tqdm

    bar = tqdm(total=len(samples), desc=split, unit=" images", leave=False, disable=not sys.stderr.isatty())
    with ThreadPoolExecutor(workers) as pool, bar:
        findings = []
        images = contents(samples, split)
        while chunk := list(itertools.islice(images, IMAGES_AT_ONCE)):
            findings += pool.map(examine, *zip(*chunk))
            bar.update(len(chunk))
    return findings


def contents(samples, split):
    """Yield (name, path, content) of each image.

    An image file has a path, and its content is None: the threads read it. Any other image has no path, and its content
    is an array or the bytes of a packed file.
    """
    import numpy as np

    from src.data.mindrecord import Packed

    images = samples.images
    if isinstance(images, list):
        yield from ((path, path, None) for path in images)
        return
    if isinstance(images, Packed):
        rows = images.pipeline(np.arange(len(images)), 1).create_tuple_iterator(num_epochs=1, output_numpy=True)
        images = (row.tobytes() for row, *_ in rows)
    yield from ((f"{split} image {number}", None, image) for number, image in enumerate(images))


def examine(name, path, image):
    """Return the `Finding` of one image; the arguments are what `contents` yields."""
    from PIL import Image

    from src.data.formats import ImageError, decodable, decode, decoder_takes, format_of, read_file, size_of

    if path is None and not isinstance(image, bytes):
        digest = hashlib.sha256(image.tobytes()).digest()
        pixels = image[..., 0] if image.shape[-1] == 1 else image
        return Finding(name, digest, (image.shape[1], image.shape[0]), look_of(Image.fromarray(pixels)))
    try:
        content = read_file(path) if path else image
    except OSError as error:
        return Finding(name, name.encode(), problem=error.strerror)
    kind, digest = format_of(content[:12]), hashlib.sha256(content).digest()
    misnamed = f"is a {kind} image" if path and has_wrong_extension(path, kind) else None
    try:
        usable, orientation = decodable(content)
        size = size_of(usable, orientation)
        if not decoder_takes(usable):
            decode(content)
        look = look_of(small(content)) if kind == "JPEG" else look_of(decode(content))
    except ImageError as problem:
        # Empty and damaged files do not count as duplicates of each other.
        return Finding(name, name.encode(), problem=str(problem), misnamed=misnamed)
    return Finding(name, digest, size, look, misnamed=misnamed)


def small(content):
    """Return a small upright gray image of a JPEG; its decoding at an eighth of the size takes little time."""
    import numpy as np
    from PIL import Image

    from src.data.formats import decode, orientation_of, upright

    try:
        with Image.open(io.BytesIO(content)) as file:
            file.draft("L", (THUMBNAIL, THUMBNAIL))
            orientation = orientation_of(file.info.get("exif"))
            return Image.fromarray(upright(np.asarray(file.convert("L")), orientation))
    except Exception:  # Pillow raises many types of exception; `decode` turns them into an ImageError.
        return decode(content)


def look_of(image):
    """Return the perceptual hash of a Pillow image as bytes."""
    import imagehash
    import numpy as np

    return np.packbits(imagehash.phash(image, HASH_SIDE).hash).tobytes()


def has_wrong_extension(path, kind):
    """Return whether the file's extension belongs to another image format than its content."""
    extension = Path(path).suffix.lower()
    known = any(extension in extensions for extensions in EXTENSIONS.values())
    return known and kind in EXTENSIONS and extension not in EXTENSIONS[kind]


@dataclass(frozen=True)
class Looks:
    """The good images of a split: names, classes, digests and perceptual hashes, uint8 (images, bytes of a hash)."""

    names: list
    classes: list
    digests: list
    hashes: object


def looks(samples, findings):
    """Return the `Looks` of a split."""
    import numpy as np

    good = [(finding, label) for finding, label in zip(findings, samples.labels) if not finding.problem]
    hashes = np.frombuffer(b"".join(finding.look for finding, _ in good), np.uint8).reshape(len(good), -1)
    classes = [samples.classes[label] for _, label in good]
    return Looks([finding.name for finding, _ in good], classes, [finding.digest for finding, _ in good], hashes)


def near_duplicates(looks_of):
    """Return each image of a later split that looks like an image of an earlier split, with the most similar of these.

    Equal files are not among them: they are leakage already.
    """
    import numpy as np

    pairs = []
    for (split, one), (other_split, other) in itertools.combinations(looks_of.items(), 2):
        if not one.names or not other.names:
            continue
        known = set(one.digests)
        hashes, first = np.unique(one.hashes, axis=0, return_index=True)
        other_hashes, hash_of = np.unique(other.hashes, axis=0, return_inverse=True)
        nearest, bits = nearest_hashes(hashes, other_hashes)
        for i, number in enumerate(hash_of.reshape(-1)):
            if bits[number] <= NEAR_BITS and other.digests[i] not in known:
                j = first[nearest[number]]
                images = [
                    {"name": one.names[j], "split": split, "class": one.classes[j]},
                    {"name": other.names[i], "split": other_split, "class": other.classes[i]},
                ]
                pairs.append({"bits": int(bits[number]), "images": images})
    return sorted(pairs, key=lambda pair: pair["bits"])


def nearest_hashes(hashes, others):
    """Return, for each hash of `others`, the index of the nearest of `hashes` and the number of bits that differ.

    Both arrays are uint8 (number of hashes, bytes of a hash), without repeated rows. Only hashes that differ in at most
    NEAR_BITS bits are found; for a hash without such a neighbour, the number is larger. The bits are divided into
    NEAR_BITS + 1 bands. Two hashes that differ in at most NEAR_BITS bits have a band in common, because not every band
    can have a bit that differs. So only hashes with an equal band are compared, not all pairs.
    """
    import numpy as np

    ones = np.array([bin(number).count("1") for number in range(2**16)], np.uint8)
    words, other_words = hashes.view(np.uint16), others.view(np.uint16)
    # Nearly all compared hashes differ in more than NEAR_BITS of their first 64 bits already.
    parts = [(words[:, :4].copy(), other_words[:, :4].copy()), (words[:, 4:].copy(), other_words[:, 4:].copy())]
    bits, other_bits = np.unpackbits(hashes, axis=1), np.unpackbits(others, axis=1)
    nearest = np.zeros(len(others), np.int64)
    fewest = np.full(len(others), bits.shape[1] + 1, np.int64)
    for band in range(NEAR_BITS + 1):
        power = 2 ** np.arange(bits[0, band :: NEAR_BITS + 1].size)
        keys, other_keys = bits[:, band :: NEAR_BITS + 1] @ power, other_bits[:, band :: NEAR_BITS + 1] @ power
        order = np.argsort(keys, kind="stable")
        starts, ends = (np.searchsorted(keys[order], other_keys, side) for side in ("left", "right"))
        totals = np.cumsum(ends - starts)
        done = 0
        while done < len(others):
            before = totals[done - 1] if done else 0
            until = max(done + 1, int(np.searchsorted(totals, before + PAIRS_AT_ONCE, "right")))
            counts = (ends - starts)[done:until]
            other = np.repeat(np.arange(done, until), counts)
            within = np.arange(len(other)) - np.repeat(np.cumsum(counts) - counts, counts)
            one = order[starts[other] + within]
            differing = np.zeros(len(one), np.int64)
            for part, other_part in parts:
                differing += ones[part[one] ^ other_part[other]].sum(1, dtype=np.int64)
                near = (differing <= NEAR_BITS) & (differing < fewest[other])
                one, other, differing = one[near], other[near], differing[near]
            ranked = np.lexsort((one, differing, other))[::-1]  # The best of each hash comes last, and stays.
            nearest[other[ranked]], fewest[other[ranked]] = one[ranked], differing[ranked]
            done = until
    return nearest, fewest


def report_of(samples, findings):
    """Return the report on one split, as a dict."""
    good = [finding for finding in findings if not finding.problem]
    counts = collections.Counter(samples.labels.tolist())
    return {
        "images": len(samples),
        "bad": {**samples.unreadable, **{finding.name: finding.problem for finding in findings if finding.problem}},
        "misnamed": {finding.name: finding.misnamed for finding in findings if finding.misnamed},
        "notes": list(samples.notes),
        "classes": {name: counts[label] for label, name in enumerate(samples.classes)},
        "widths": [min(f.size[0] for f in good), max(f.size[0] for f in good)] if good else None,
        "heights": [min(f.size[1] for f in good), max(f.size[1] for f in good)] if good else None,
    }


def print_report(report):
    for name, split in report["splits"].items():
        counts = collections.Counter(split["classes"])
        (largest, highest), (smallest, lowest) = counts.most_common()[0], counts.most_common()[-1]
        imbalance = f", imbalance {highest / lowest:.1f} to 1" if lowest else ""
        print(f"\n{name}: {split['images']:,} images of {len(counts)} classes")
        print(f"  largest class: {largest} ({highest:,}), smallest class: {smallest} ({lowest:,}){imbalance}")
        if name == "train" and highest > MUCH_IMBALANCE * lowest:
            print(f"  what to do: {IMBALANCE_HELP}")
        if split["widths"]:
            (narrow, wide), (low, tall) = split["widths"], split["heights"]
            print(f"  width {narrow} to {wide}, height {low} to {tall} pixels")
        for note in split["notes"]:
            print(f"  note: {note}")
        print_list("bad images", [f"{file}: {problem}" for file, problem in split["bad"].items()])
        print_list("wrong file extensions", [f"{file}: {kind}" for file, kind in split["misnamed"].items()])
    print()
    print_list("duplicates within a split", [" = ".join(names) for names in report["duplicates"]])
    print_list("leakage, the same image in several splits", [" = ".join(names) for names in report["leakage"]])
    print_list("near-duplicates in several splits", [described(pair) for pair in report["near_duplicates"]])
    if report["near_duplicates"]:
        print(f"  what to do: {NEAR_HELP}")
    if not (report["duplicates"] or report["leakage"] or report["near_duplicates"]):
        print("no duplicates, no leakage, no near-duplicates")


def described(pair):
    """Return a line about a pair of near-duplicates."""
    one, other = (f"{image['name']} ({image['split']}, {image['class']})" for image in pair["images"])
    return f"{one} ~ {other}, {pair['bits']} of {HASH_SIDE**2} bits differ"


def print_list(title, lines):
    if lines:
        print(f"  {title}: {len(lines):,}")
        for line in lines[:LISTED]:
            print(f"    {line}")
        if len(lines) > LISTED:
            print(f"    and {len(lines) - LISTED:,} more")


if __name__ == "__main__":
    run(main)
