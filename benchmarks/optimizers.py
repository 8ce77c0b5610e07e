"""Measure each optimizer: seconds of the first step, which compiles, and milliseconds of the following steps.

python benchmarks/optimizers.py --model mobilenet_v2 --width 0.25 --size 32 --batch 8

The optimizers run one after the other, each in a new process. "CPU s" are CPU seconds of the first step. Other load on
the machine affects them less than the wall time.
"""

import multiprocessing
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mindspore as ms
import numpy as np

from src.arguments import above_zero, whole
from src.config.load import make_config
from src.config.schema import OPTIMIZERS
from src.errors import ArgumentParser, run
from src.kernels.convert import use_kernels
from src.models import create_model
from src.runtime.device import use_device
from src.training.optimizer import create_optimizer
from src.training.step import TrainStep

CLASSES = 10
STEPS = 20


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mobilenet_v2", help="as model.name in a config (default: mobilenet_v2)")
    parser.add_argument("--width", type=above_zero(100), default=0.25, help="width multiplier (default: 0.25)")
    parser.add_argument("--size", type=whole(8, 1024), default=32, help="side of the images in pixels (default: 32)")
    parser.add_argument("--batch", type=whole(1, 16_384), default=8, help="images per batch (default: 8)")
    args = parser.parse_args()
    configs = {
        name: make_config(
            {
                "model": {"name": args.model, "width": args.width},
                "data": {"image_size": args.size},
                "train": {"batch_size": args.batch},
                "optimizer": {"name": name},
            },
            source="command line",
        )
        for name in OPTIMIZERS
    }
    print(f"{args.model} {args.width}x, batch {args.batch}, {args.size}x{args.size}, MindSpore {ms.__version__}")
    print(f"{'':8}{'first step, s':>16}{'CPU s':>8}{'next, ms':>10}{'state':>14}")
    for name, config in configs.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            first, cpu, following, state = pool.apply(measure, (config,))
        print(f"{name:8}{first:16.1f}{cpu:8.1f}{following * 1e3:10.1f}{state:14,}", flush=True)


def measure(config):
    """Return (wall seconds and CPU seconds of the first step, median seconds of the next steps, size of the state)."""
    use_device(config.runtime)
    classifier = create_model(config.model, config.data, CLASSES)
    use_kernels(classifier, config.runtime)
    classifier.set_train(True)
    optimizer = create_optimizer(config, classifier)
    step = TrainStep(classifier, optimizer, config)
    generator = np.random.default_rng(0)
    side = config.data.image_size
    images = generator.integers(0, 256, (config.train.batch_size, side, side, 3), dtype=np.uint8)
    labels = generator.integers(0, CLASSES, config.train.batch_size).astype(np.int32)
    step.begin(np.full(STEPS + 1, config.optimizer.lr, np.float32))

    def seconds_of_step(clock):
        began = clock()
        step(ms.Tensor(images), ms.Tensor(labels))
        step.results()
        return clock() - began

    began, cpu = time.perf_counter(), seconds_of_step(time.process_time)
    first = time.perf_counter() - began
    following = statistics.median(seconds_of_step(time.perf_counter) for _ in range(STEPS))
    return first, cpu, following, sum(parameter.size for parameter in optimizer.state)


if __name__ == "__main__":
    run(main)
