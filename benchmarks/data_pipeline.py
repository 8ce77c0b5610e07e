"""Measure the images per second of the data pipeline on this machine, by augmentation and number of workers.

python benchmarks/data_pipeline.py --json data.json

Files: JPEGs of 500x375 pixels, the average size in ImageNet, resized to 224x224. They are cut from scikit-learn's two
photographs. Packed: the same JPEGs, packed by tools/make_mindrecord.py --short-side 256. Arrays: scikit-learn's digits,
resized to 32x32. The cases take turns, epoch by epoch, so that other load on the machine affects all cases alike.
"mindspore alone" is the lower limit for a resized crop and flip with MindSpore: its reader of image folders and its two
operators, without any code of this project.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import src  # noqa: F401 - imported before MindSpore, so that JPEGs are decoded as in training

# isort: split

import mindspore as ms
import numpy as np
from mindspore.dataset import ImageFolderDataset, vision
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from src.arguments import whole
from src.config.load import make_config
from src.data.datasets import load_samples
from src.data.loading import Loader, eval_loader, train_loader
from src.data.samples import Samples
from src.data.transforms import View
from src.errors import ArgumentParser, UserError, run
from src.files import write_json
from src.outputs import add_overwrite, check_outputs, output_files

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 500, 375
SHORT_SIDE = 256  # of the packed images
EPOCHS = 20  # for --memory
USUAL = {"files": "resized crop, flip", "packed": "resized crop, flip", "arrays": "pad and crop, flip"}
PLAIN, PADDED = {"crop": "resized", "flip": 0.5}, {"crop": "pad", "flip": 0.5}
# Settings of the section `augment`; None: evaluation; for texts see `loader_of`.
CASES = {
    "files": {
        "decode alone": "decode",
        "mindspore alone": "mindspore",
        "resized crop, flip": PLAIN,
        "+ color_jitter 0.4": {**PLAIN, "color_jitter": 0.4},
        "+ randaugment": {**PLAIN, "auto": "randaugment"},
        "+ trivialaugment": {**PLAIN, "auto": "trivialaugment"},
        "+ autoaugment": {**PLAIN, "auto": "autoaugment"},
        "+ erasing 0.25": {**PLAIN, "erasing": 0.25},
        "pad and crop, flip": PADDED,
        "evaluation": None,
        "+ antialias=false": "aliased",
    },
    "packed": {
        "decode alone": "decode",
        "resized crop, flip": PLAIN,
        "evaluation": None,
        "+ antialias=false": "aliased",
    },
    "arrays": {
        "pad and crop, flip": PADDED,
        "+ erasing 0.25": {**PADDED, "erasing": 0.25},
        "resized crop, flip": PLAIN,
        "evaluation": None,
        "+ antialias=false": "aliased",
    },
}


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images",
        type=whole(2, 1_000_000),
        default=2048,
        help="number of files; the arrays are 8 times as many (default: 2048)",
    )
    parser.add_argument("--rounds", type=whole(1, 10_000), default=5, help="timed epochs of each case (default: 5)")
    parser.add_argument("--batch", type=whole(2, 16_384), default=64)
    parser.add_argument(
        "--workers", default=str(min(os.cpu_count() or 1, 8)), help="such as 1,2 (default: one per core, at most 8)"
    )
    parser.add_argument("--source", choices=CASES, help="measure only this source (default: all)")
    parser.add_argument("--memory", action="store_true", help="measure the memory after each of 20 epochs instead")
    parser.add_argument("--json", metavar="PATH", help="also write all figures to this file")
    add_overwrite(parser)
    args = parser.parse_args()
    check_outputs(output_files("--json", args.json, ".json"), {}, args.overwrite)
    if args.batch > args.images:
        raise UserError(f"--batch: must be at most --images (found {args.batch}, expected at most {args.images})")

    figures = {"mindspore": ms.__version__, "cores": os.cpu_count(), "batch": args.batch, "images": args.images}
    with tempfile.TemporaryDirectory() as folder:
        make = {"files": file_samples, "packed": packed_samples, "arrays": array_samples}
        for source in [args.source] if args.source else CASES:
            cases, samples = CASES[source], make[source](args.images, Path(folder))
            for workers in (int(count) for count in args.workers.split(",")):
                name = f"{source}, {workers} worker{'s' if workers > 1 else ''}"
                loaders = {case: loader_of(samples, augment, args.batch, workers) for case, augment in cases.items()}
                if args.memory:
                    figures[name] = memory_over_epochs(loaders[USUAL[source]])
                    print(f"{name}, MiB after each epoch: {', '.join(map(str, figures[name]))}")
                else:
                    figures[name] = measure(loaders, args.rounds)
                    print_figures(name, figures[name])
    if args.json is not None:
        write_json(figures, args.json)


def file_samples(count, folder):
    """Return samples of JPEG files in a folder; write the files if they do not exist yet."""
    files = [folder / "photos" / "train" / "any" / f"{i}.jpg" for i in range(count)]
    if not files[0].exists():
        files[0].parent.mkdir(parents=True)
        size = (WIDTH * 7 // 5, HEIGHT * 7 // 5)
        photos = [Image.fromarray(photo).resize(size) for photo in load_sample_images().images]
        generator = np.random.default_rng(0)
        for i, file in enumerate(files):
            left, top = generator.integers(WIDTH * 2 // 5), generator.integers(HEIGHT * 2 // 5)
            photos[i % 2].crop((left, top, left + WIDTH, top + HEIGHT)).save(file, quality=90)
        print(f"{count} JPEGs of {WIDTH}x{HEIGHT}, {sum(map(os.path.getsize, files)) / count / 1000:.0f} kB on average")
    return Samples([*map(str, files)], np.zeros(count, np.int32), ["any"])


def packed_samples(count, folder):
    """Return samples of the same JPEGs, shrunk and packed."""
    file_samples(count, folder)
    tool, packed = ROOT / "tools" / "make_mindrecord.py", folder / "packed"
    command = [sys.executable, tool, folder / "photos", packed, "--short-side", str(SHORT_SIDE)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return load_samples(make_config({"data": {"name": "mindrecord", "root": str(packed)}}).data, "train")


def array_samples(count, folder):
    """Return samples of scikit-learn's digits, 8x8 gray, repeated as often as needed."""
    bunch = load_digits()
    chosen = np.arange(8 * count) % len(bunch.target)
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[chosen, ..., None]
    return Samples(images, bunch.target[chosen].astype(np.int32), [str(i) for i in range(10)])


class MindSporeAlone:
    """A loader made only of MindSpore's folder reader and operators."""

    def __init__(self, samples, batch_size, workers):
        self.folder = Path(samples.images[0]).parents[1]
        self.batch_size = batch_size
        self.workers = workers

    def epoch(self, epoch):
        operations = [vision.RandomCropDecodeResize(224), vision.RandomHorizontalFlip()]
        images = ImageFolderDataset(str(self.folder), num_parallel_workers=self.workers, shuffle=True)
        images = images.map(operations, "image", num_parallel_workers=self.workers).batch(self.batch_size)
        return images.create_tuple_iterator(num_epochs=1, output_numpy=True)


def loader_of(samples, augment, batch_size, workers):
    """Return the loader of a case; `augment` is its value in CASES."""
    data = {"workers": workers}
    if not samples.are_files:
        data.update(image_size=32, channels=1, crop_fraction=1.0)
    tree = {"data": data, "train": {"batch_size": batch_size}}
    if augment == "decode":
        view = View([vision.Decode(), vision.Crop((0, 0), (224, 224))], [], decoding=1)
        return Loader(samples, view, batch_size, workers, seed=0)
    if augment == "mindspore":
        return MindSporeAlone(samples, batch_size, workers)
    if augment == "aliased":
        data["antialias"] = False
    if augment in (None, "aliased"):
        return eval_loader(make_config(tree), samples)
    return train_loader(make_config({**tree, "augment": augment}), samples)


def measure(loaders, rounds):
    """Return a dict per case: images/s, CPU time per image, and the speed as a share of the first case's speed.

    Images/s are the median, lowest and highest round, and the first epoch. The CPU time depends least on other load.
    """
    first_epochs = {name: time_epoch(loader, 0)[0] for name, loader in loaders.items()}
    speeds, costs = {name: [] for name in loaders}, {name: [] for name in loaders}
    for epoch in range(1, rounds + 1):
        for name, loader in loaders.items():
            speed, cost = time_epoch(loader, epoch)
            speeds[name].append(speed)
            costs[name].append(cost)
    first_case = next(iter(speeds.values()))
    return {
        name: {
            "images_per_second": statistics.median(rounds_of_case),
            "lowest": min(rounds_of_case),
            "highest": max(rounds_of_case),
            "first_epoch": first_epochs[name],
            "cpu_us_per_image": statistics.median(costs[name]) * 1e6,
            "share_of_first_case": statistics.median(speed / base for speed, base in zip(rounds_of_case, first_case)),
        }
        for name, rounds_of_case in speeds.items()
    }


def memory_over_epochs(loader):
    """Return this process's memory in MiB after each of EPOCHS epochs."""
    sizes = []
    for epoch in range(EPOCHS):
        time_epoch(loader, epoch)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        sizes.append(pages * resource.getpagesize() // 2**20)
    return sizes


def time_epoch(loader, epoch):
    """Return images/s, and CPU seconds of all threads per image."""
    began, cpu, count = time.perf_counter(), time.process_time(), 0
    for _, labels in loader.epoch(epoch):
        count += len(labels)
    return count / (time.perf_counter() - began), (time.process_time() - cpu) / count


def print_figures(title, rows):
    print(f"\n{title:<22}{'images/s':>10}{'lowest':>9}{'highest':>9}{'first epoch':>13}{'share':>8}{'CPU us':>8}")
    for name, row in rows.items():
        print(
            f"{name:<22}{row['images_per_second']:>10,.0f}{row['lowest']:>9,.0f}{row['highest']:>9,.0f}"
            f"{row['first_epoch']:>13,.0f}{row['share_of_first_case']:>8.0%}{row['cpu_us_per_image']:>8,.0f}"
        )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    run(main)
