"""Find the defects of a data set: python tools/check_data.py --config photos.yaml

Decodes every image once. Reports damaged and empty files, wrong file extensions, duplicates, class counts and
imbalance, and the range of image sizes. Also reports leakage: the same image in several splits.
The exit code is 1 if an image is bad or leaks.
"""

import argparse
import collections
import hashlib
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.config.load import load_config
from src.errors import ArgumentParser, run
from src.files import write_json

IMAGES_AT_ONCE = 256
LISTED = 20  # lines of each list that are printed; --json has all of them
EXTENSIONS = {"JPEG": (".jpg", ".jpeg", ".jfif"), "PNG": (".png",), "BMP": (".bmp",), "WebP": (".webp",)}


@dataclass(frozen=True)
class Finding:
    """What the check found out about one image."""

    name: str
    digest: bytes  # SHA-256; images with the same digest are the same image
    size: Optional[tuple] = None  # width, height
    problem: Optional[str] = None
    misnamed: Optional[str] = None


def main():
    args = parse()
    config = load_config(args.config, args.overrides)

    from src.data.datasets import load_samples, splits_of

    data = config.data.model_copy(update={"on_bad_image": "skip"})  # to find all bad images, not just the first
    report, places_of, classes = {"splits": {}}, {}, None
    # A folder without any split is an error, which loading the training split reports.
    for split in splits_of(data) or ("train",):
        samples = load_samples(data, split, classes)
        classes = classes or samples.classes
        findings = check(samples, split, data.workers)
        report["splits"][split] = report_of(samples, findings)
        for finding in findings:
            places_of.setdefault(finding.digest, {}).setdefault(split, []).append(finding.name)
    # The same image several times within a split is a duplicate. The same image in several splits is leakage.
    report["duplicates"] = [names for places in places_of.values() for names in places.values() if len(names) > 1]
    report["leakage"] = [[*itertools.chain(*places.values())] for places in places_of.values() if len(places) > 1]
    print_report(report)
    if args.json:
        write_json(report, args.json)
        print(f"\nwritten: {args.json}")
    sys.exit(1 if report["leakage"] or any(split["bad"] for split in report["splits"].values()) else 0)


def parse():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of settings; only the section `data` is used")
    parser.add_argument("--json", metavar="PATH", help="also write all findings to this file")
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
        images = (row.tobytes() for (row,) in rows)
    yield from ((f"{split} image {number}", None, image) for number, image in enumerate(images))


def examine(name, path, image):
    """Return the `Finding` of one image; the arguments are what `contents` yields."""
    from src.data.formats import ImageError, decodable, decode, decoder_takes, format_of, size_of

    if path is None and not isinstance(image, bytes):
        return Finding(name, hashlib.sha256(image.tobytes()).digest(), size=(image.shape[1], image.shape[0]))
    try:
        content = Path(path).read_bytes() if path else image
    except OSError as error:
        return Finding(name, name.encode(), problem=error.strerror)
    kind, digest = format_of(content[:12]), hashlib.sha256(content).digest()
    misnamed = f"is a {kind} image" if path and has_wrong_extension(path, kind) else None
    try:
        usable = decodable(content)
        size = size_of(usable)
        if not decoder_takes(usable):
            decode(content)
    except ImageError as problem:
        # Empty and damaged files do not count as duplicates of each other.
        return Finding(name, name.encode(), problem=str(problem), misnamed=misnamed)
    return Finding(name, digest, size, misnamed=misnamed)


def has_wrong_extension(path, kind):
    """Return whether the file's extension belongs to another image format than its content."""
    extension = Path(path).suffix.lower()
    known = any(extension in extensions for extensions in EXTENSIONS.values())
    return known and kind in EXTENSIONS and extension not in EXTENSIONS[kind]


def report_of(samples, findings):
    """Return the report on one split, as a dict."""
    good = [finding for finding in findings if not finding.problem]
    counts = collections.Counter(samples.labels.tolist())
    return {
        "images": len(samples),
        "bad": {finding.name: finding.problem for finding in findings if finding.problem},
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
    if not (report["duplicates"] or report["leakage"]):
        print("no duplicates, no leakage")


def print_list(title, lines):
    if lines:
        print(f"  {title}: {len(lines):,}")
        for line in lines[:LISTED]:
            print(f"    {line}")
        if len(lines) > LISTED:
            print(f"    and {len(lines) - LISTED:,} more")


if __name__ == "__main__":
    run(main)
