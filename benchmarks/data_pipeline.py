"""Images per second of the data pipeline on this machine, by augmentation and workers.

python benchmarks/data_pipeline.py --json data.json

Files: JPEGs of 500x375 pixels, as ImageNet's are on average, cut from scikit-learn's two photographs, to 224x224.
Arrays: scikit-learn's digits, to 32x32. The cases take turns, epoch by epoch, so that other load hits all alike.
"""

import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mindspore as ms
import numpy as np
from mindspore.dataset import vision
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from src.config import make_config
from src.data.loading import Loader, eval_loader, train_loader
from src.data.samples import Samples
from src.data.transforms import View
from src.engine.files import write_json
from src.errors import ArgumentParser, UserError, run

WIDTH, HEIGHT = 500, 375
EPOCHS = 20  # of --memory
PLAIN = {"crop": "resized", "flip": 0.5}
FILE_CASES = {  # settings of augment; None: evaluation; "decode": decoding alone
    "decode alone": "decode",
    "resized crop, flip": PLAIN,
    "+ color_jitter 0.4": {**PLAIN, "color_jitter": 0.4},
    "+ randaugment": {**PLAIN, "auto": "randaugment"},
    "+ trivialaugment": {**PLAIN, "auto": "trivialaugment"},
    "+ autoaugment": {**PLAIN, "auto": "autoaugment"},
    "+ erasing 0.25": {**PLAIN, "erasing": 0.25},
    "pad and crop, flip": {"crop": "pad", "flip": 0.5},
    "evaluation": None,
}
ARRAY_CASES = {
    "pad and crop, flip": {"crop": "pad", "flip": 0.5},
    "+ erasing 0.25": {"crop": "pad", "flip": 0.5, "erasing": 0.25},
    "resized crop, flip": PLAIN,
    "evaluation": None,
}


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512, help="files; of arrays 32 times as many (default: 512)")
    parser.add_argument("--rounds", type=int, default=5, help="timed epochs of each case (default: 5)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", default=str(min(os.cpu_count() or 1, 8)), help="such as 1,2 (default: one a core)")
    parser.add_argument("--source", choices=("files", "arrays", "both"), default="both")
    parser.add_argument("--memory", action="store_true", help="instead: memory after each of 20 epochs")
    parser.add_argument("--json", metavar="PATH", help="also write all figures there")
    args = parser.parse_args()
    if not 2 <= args.batch <= args.images or args.rounds < 1:
        raise UserError("--batch must be at least 2, --images at least as many, and --rounds at least 1")

    figures = {"mindspore": ms.__version__, "cores": os.cpu_count(), "batch": args.batch, "images": args.images}
    with tempfile.TemporaryDirectory() as folder:
        sources = {"files": file_samples, "arrays": array_samples}
        for source, make in sources.items():
            if args.source not in (source, "both"):
                continue
            samples = make(args.images, Path(folder))
            for workers in (int(count) for count in args.workers.split(",")):
                name = f"{source}, {workers} worker{'s' if workers > 1 else ''}"
                cases = FILE_CASES if source == "files" else ARRAY_CASES
                loaders = {case: loader_of(samples, augment, args.batch, workers) for case, augment in cases.items()}
                if args.memory:
                    figures[name] = memory_over_epochs(
                        loaders["resized crop, flip" if source == "files" else "pad and crop, flip"]
                    )
                    print(f"{name}, MiB after each epoch: {', '.join(map(str, figures[name]))}")
                else:
                    figures[name] = measure(loaders, args.rounds)
                    print_figures(name, figures[name])
    if args.json:
        write_json(figures, args.json)


def file_samples(count, folder):
    """Return samples of JPEG files that are written to a folder."""
    photos = [Image.fromarray(photo).resize((WIDTH * 7 // 5, HEIGHT * 7 // 5)) for photo in load_sample_images().images]
    generator, files = np.random.default_rng(0), []
    for i in range(count):
        left, top = generator.integers(WIDTH * 2 // 5), generator.integers(HEIGHT * 2 // 5)
        files.append(str(folder / f"{i}.jpg"))
        photos[i % 2].crop((left, top, left + WIDTH, top + HEIGHT)).save(files[-1], quality=90)
    print(f"{count} JPEGs of {WIDTH}x{HEIGHT}, {sum(map(os.path.getsize, files)) / count / 1000:.0f} kB on average")
    return Samples(files, np.zeros(count, np.int32), ["any", "other"])


def array_samples(count, folder):
    """Return samples of scikit-learn's digits, 8x8 gray, over and over."""
    bunch = load_digits()
    chosen = np.arange(32 * count) % len(bunch.target)
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[chosen, ..., None]
    return Samples(images, bunch.target[chosen].astype(np.int32), [str(i) for i in range(10)])


def loader_of(samples, augment, batch_size, workers):
    """Return the loader of a case."""
    data = {"workers": workers}
    if not samples.are_files:
        data.update(image_size=32, channels=1, crop_fraction=1.0)
    tree = {"data": data, "train": {"batch_size": batch_size}}
    if augment == "decode":
        view = View([vision.Decode(), vision.Crop((0, 0), (224, 224))], [])
        return Loader(samples, view, batch_size, workers, seed=0)
    if augment is None:
        return eval_loader(make_config(tree), samples)
    return train_loader(make_config({**tree, "augment": augment}), samples)


def measure(loaders, rounds):
    """Return each case's images/s (median, lowest and highest round, first epoch), its share of the first case's, and
    the processor time an image, which other load disturbs least.
    """
    first = {name: time_epoch(loader, 0)[0] for name, loader in loaders.items()}
    speeds, costs = {name: [] for name in loaders}, {name: [] for name in loaders}
    for epoch in range(1, rounds + 1):
        for name, loader in loaders.items():
            speed, cost = time_epoch(loader, epoch)
            speeds[name].append(speed)
            costs[name].append(cost)
    base = next(iter(speeds.values()))
    return {
        name: {
            "images_per_second": statistics.median(own),
            "lowest": min(own),
            "highest": max(own),
            "first_epoch": first[name],
            "cpu_us_per_image": statistics.median(costs[name]) * 1e6,
            "share_of_first_case": statistics.median(mine / others for mine, others in zip(own, base)),
        }
        for name, own in speeds.items()
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
    """Return images/s, and the processor seconds of all threads an image."""
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
