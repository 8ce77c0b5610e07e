"""Measure the images per second of a training step on this machine, with native kernels and stock operators.

python benchmarks/train_step.py --model mobilenet_v2 --width 1.0 --batch 16 --size 224 --kernels native,stock

Each kind of kernels runs in a process of its own. The processes take turns, step by step.
"""

import json
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mindspore as ms
import numpy as np

from src.arguments import above_zero, whole
from src.config.load import make_config
from src.errors import ArgumentParser, UserError, run
from src.evaluation.evaluate import make_eval_step
from src.files import write_json
from src.kernels.convert import use_kernels
from src.models import create_model
from src.outputs import add_overwrite, check_outputs, output_files
from src.runtime.device import use_device
from src.training.optimizer import create_optimizer
from src.training.step import TrainStep

KERNELS = ("native", "stock")
CLASSES = 10
MOST_STEPS = 100_000  # for which the training step gets learning rates
WARM_UP = 2  # steps that are not timed; the first step compiles


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mobilenet_v2", help="as model.name in a config (default: mobilenet_v2)")
    parser.add_argument("--width", type=above_zero(100), default=1.0, help="width multiplier (default: 1.0)")
    parser.add_argument("--groups", type=whole(1, 1000), help="shufflenet_v1 only: groups of its 1x1 convolutions")
    parser.add_argument("--layout", help="shufflenet_v2 only: authors or equal_split")
    parser.add_argument("--stem-stride", type=int, choices=(1, 2), default=2, help="1 for small images (default: 2)")
    parser.add_argument("--batch", type=whole(1, 16_384), default=16, help="images per batch (default: 16)")
    parser.add_argument("--size", type=whole(8, 1024), default=224, help="side of the images in pixels (default: 224)")
    parser.add_argument(
        "--steps", type=whole(1, 100_000), default=10, help="timed steps with each kind of kernels (default: 10)"
    )
    parser.add_argument("--kernels", default="native,stock", help="kinds to compare (default: native,stock)")
    parser.add_argument("--forward", action="store_true", help="measure inference instead of training")
    parser.add_argument(
        "--json", metavar="PATH", help="also write the figures to this file; -: as the last line of stdout"
    )
    add_overwrite(parser)
    args = parser.parse_args()
    check_outputs([] if args.json == "-" else output_files("--json", args.json, ".json"), {}, args.overwrite)

    kinds = args.kernels.split(",")
    for kind in kinds:
        if kind not in KERNELS:
            raise UserError(f"--kernels {kind}: is not one of {', '.join(KERNELS)}")
    if args.batch == 1 and not args.forward:
        raise UserError("--batch: must be at least 2 without --forward (found 1)")
    configs = {kind: config_of(args, kind) for kind in kinds}

    figures = measure(configs, args)
    print(f"{args.model} {args.width}x, batch {args.batch}, {args.size}x{args.size}, MindSpore {ms.__version__}")
    for kind, row in figures["results"].items():
        print(
            f"{kind:8}{row['images_per_second']:8.1f} images/s{row['step_ms']:9.1f} ms per step "
            f"(middle half {row['step_ms_low']:.1f} to {row['step_ms_high']:.1f}), peak {row['peak_rss_mib']:,.0f} MiB"
        )
    if "speedup" in figures:
        print(f"{kinds[0]} / {kinds[1]}: {figures['speedup']:.2f} times the images/s")
    if args.json == "-":
        print(json.dumps(figures))
    elif args.json is not None:
        write_json(figures, args.json)


def config_of(args, kernels):
    options = {key: getattr(args, key) for key in ("groups", "layout") if getattr(args, key) is not None}
    return make_config(
        {
            "model": {"name": args.model, "width": args.width, "stem_stride": args.stem_stride, **options},
            "data": {"image_size": args.size, "channels": 3},
            "runtime": {"device": "cpu", "kernels": kernels},
        },
        source="command line",
    )


def measure(configs, args):
    """Return the benchmark's figures; times are medians over the steps."""
    context = multiprocessing.get_context("spawn")
    workers, processes = {}, []
    for kind, config in configs.items():
        here, there = context.Pipe()
        process = context.Process(target=work, args=(there, config, args.batch, args.forward), daemon=True)
        process.start()
        processes.append(process)
        there.close()
        workers[kind] = here
        here.recv()  # wait for "ready": a process that compiles would slow down the others
    seconds = {kind: [] for kind in configs}
    for _ in range(args.steps):
        for kind, worker in workers.items():
            worker.send("step")
            seconds[kind].append(worker.recv())
    results = {}
    for kind, worker in workers.items():
        worker.send("peak")
        low, median, high = statistics.quantiles(seconds[kind], n=4) if args.steps > 1 else seconds[kind] * 3
        results[kind] = {
            "images_per_second": args.batch / median,
            "step_ms": median * 1e3,
            "step_ms_low": low * 1e3,
            "step_ms_high": high * 1e3,
            "peak_rss_mib": worker.recv(),
        }
    for process in processes:
        process.join()
    figures = {
        "model": args.model,
        "width": args.width,
        "batch": args.batch,
        "size": args.size,
        "forward": args.forward,
        "mindspore": ms.__version__,
        "results": results,
    }
    if len(results) == 2:
        first, second = results.values()
        figures["speedup"] = first["images_per_second"] / second["images_per_second"]
    return figures


def work(pipe, config, batch, forward):
    """Run the process of one kind of kernels: answer the message `step` with the seconds of a step, `peak` with MiB."""
    step = run(lambda: make_step(config, batch, forward))
    for _ in range(WARM_UP):
        step()
    pipe.send("ready")
    while True:
        if pipe.recv() == "peak":
            pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            return
        began = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - began)


def make_step(config, batch, forward):
    """Return a function that runs one step on random images and waits for its end."""
    use_device(config.runtime)
    classifier = create_model(config.model, config.data, CLASSES)
    use_kernels(classifier, config.runtime)
    generator = np.random.default_rng(0)
    side = config.data.image_size
    images = generator.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    labels = generator.integers(0, CLASSES, batch).astype(np.int32)
    classifier.set_train(not forward)
    if forward:
        infer = make_eval_step(classifier, compiled=True)
        return lambda: infer(ms.Tensor(images)).asnumpy()
    train = TrainStep(classifier, create_optimizer(config, classifier), config)
    train.begin(np.full(MOST_STEPS, 0.01, np.float32))

    def train_and_wait():
        train(ms.Tensor(images), ms.Tensor(labels))
        train.results()

    return train_and_wait


if __name__ == "__main__":
    run(main)
