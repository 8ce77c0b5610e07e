"""What is wrong with a dataset: python tools/check_data.py --config photos.yaml

Decodes every image once. Lists files that cannot be decoded, are empty, of another type than their name says, or twice
there; class counts and imbalance; the range of image sizes; and leakage, the same image in training and evaluation.
The exit code is 1 where an image is bad or leaks.
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

import numpy as np
from tqdm import tqdm

from src.config.load import load_config
from src.data.datasets import load_samples, splits_of
from src.data.formats import ImageError, decodable, decode, decoder_takes, format_of, size_of
from src.data.mindrecord import Packed
from src.errors import ArgumentParser, run
from src.files import write_json

IMAGES_AT_ONCE = 256
LISTED = 20  # lines of each kind that are printed; --json has all
ENDINGS = {"JPEG": (".jpg", ".jpeg", ".jfif"), "PNG": (".png",), "BMP": (".bmp",), "WebP": (".webp",)}


@dataclass(frozen=True)
class Finding:
    """What one image turned out to be."""

    name: str
    digest: bytes
    size: Optional[tuple] = None  # width, height
    problem: Optional[str] = None
    misnamed: Optional[str] = None


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of settings; only `data` matters")
    parser.add_argument("--json", metavar="PATH", help="also write all findings there")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the file's")
    args = parser.parse_intermixed_args()
    config = load_config(args.config, args.overrides)
    data = config.data.model_copy(update={"on_bad_image": "skip"})  # all bad images, not the first

    report, seen, classes = {"splits": {}}, {}, None
    for split in splits_of(data):
        samples = load_samples(data, split, classes)
        classes = classes or samples.classes
        findings = check(samples, split, data.workers)
        report["splits"][split] = report_of(samples, findings)
        for finding in findings:
            seen.setdefault(finding.digest, {}).setdefault(split, []).append(finding.name)
    # What is the same in several splits is leakage; within one it is a duplicate.
    report["duplicates"] = [names for places in seen.values() for names in places.values() if len(names) > 1]
    report["leakage"] = [[*itertools.chain(*places.values())] for places in seen.values() if len(places) > 1]
    print_report(report)
    if args.json:
        write_json(report, args.json)
        print(f"\nwritten: {args.json}")
    sys.exit(1 if report["leakage"] or any(split["bad"] for split in report["splits"].values()) else 0)


def check(samples, split, workers):
    """Return the `Finding` of every image."""
    bar = tqdm(total=len(samples), desc=split, unit=" images", leave=False, disable=not sys.stderr.isatty())
    with ThreadPoolExecutor(workers) as pool, bar:
        findings = []
        images = contents(samples, split)
        while chunk := list(itertools.islice(images, IMAGES_AT_ONCE)):
            findings += pool.map(examine, *zip(*chunk))
            bar.update(len(chunk))
    return findings


def contents(samples, split):
    """Yield (name, path, array or bytes) of each image, of files without the last, which threads read."""
    images = samples.images
    if isinstance(images, list):
        yield from ((path, path, None) for path in images)
        return
    if isinstance(images, Packed):
        rows = images.pipeline(np.arange(len(images)), 1).create_tuple_iterator(num_epochs=1, output_numpy=True)
        images = (row.tobytes() for (row,) in rows)
    yield from ((f"{split} image {number}", None, image) for number, image in enumerate(images))


def examine(name, path, image):
    """Return the `Finding` of one image."""
    if isinstance(image, np.ndarray):
        return Finding(name, hashlib.sha256(image.tobytes()).digest(), size=(image.shape[1], image.shape[0]))
    try:
        content = Path(path).read_bytes() if path else image
    except OSError as error:
        return Finding(name, name.encode(), problem=error.strerror)
    kind, digest = format_of(content[:12]), hashlib.sha256(content).digest()
    ending = Path(name).suffix.lower()
    wrong = path and kind in ENDINGS and ending not in ENDINGS[kind] and any(ending in own for own in ENDINGS.values())
    misnamed = f"is a {kind} image" if wrong else None
    try:
        usable = decodable(content)
        size = size_of(usable)
        if not decoder_takes(usable):
            decode(content)
    except ImageError as problem:
        # Empty and damaged files are not duplicates of each other.
        return Finding(name, name.encode(), problem=str(problem), misnamed=misnamed)
    return Finding(name, digest, size, misnamed=misnamed)


def report_of(samples, findings):
    """Return what a split's findings come to, as a dict."""
    good = [finding for finding in findings if not finding.problem]
    counts = np.bincount(samples.labels, minlength=len(samples.classes)).tolist()
    return {
        "images": len(samples),
        "bad": {finding.name: finding.problem for finding in findings if finding.problem},
        "misnamed": {finding.name: finding.misnamed for finding in findings if finding.misnamed},
        "notes": list(samples.notes),
        "classes": dict(zip(samples.classes, counts)),
        "widths": [min(f.size[0] for f in good), max(f.size[0] for f in good)] if good else None,
        "heights": [min(f.size[1] for f in good), max(f.size[1] for f in good)] if good else None,
    }


def print_report(report):
    for name, split in report["splits"].items():
        counts = collections.Counter(split["classes"])
        (most, highest), (least, lowest) = counts.most_common()[0], counts.most_common()[-1]
        imbalance = f", {highest / lowest:.1f} times as many" if lowest else ""
        print(f"\n{name}: {split['images']:,} images of {len(counts)} classes")
        print(f"  most: {most} ({highest:,}), fewest: {least} ({lowest:,}){imbalance}")
        if split["widths"]:
            (narrow, wide), (low, tall) = split["widths"], split["heights"]
            print(f"  width {narrow} to {wide}, height {low} to {tall} pixels")
        for note in split["notes"]:
            print(f"  note: {note}")
        print_list("bad", [f"{file}: {problem}" for file, problem in split["bad"].items()])
        print_list("of another type than named", [f"{file}: {what}" for file, what in split["misnamed"].items()])
    print()
    print_list("the same image several times", [" = ".join(names) for names in report["duplicates"]])
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
