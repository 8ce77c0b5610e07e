"""Measure the images per second of a training step on this machine, and compare it with other implementations.

python benchmarks/train_step.py --model mobilenet_v2 --width 1.0 --batch 16 --size 224 \
    --kernels native,stock,torch,torch-compile --torch-python /path/to/bin/python

native and stock are this project with its native kernels and with MindSpore's operators. torch and torch-compile are
torchvision's network in PyTorch, eager and compiled. With --forward, onnxruntime is the exported file in ONNX Runtime.
PyTorch needs an environment of its own: pip install torch==2.13.0 torchvision==0.28.0 numpy pillow (--no-deps for
torchvision if its PyTorch is another build).

Each of them runs in a process of its own. The processes take turns, step by step, and only steps of the same turn are
compared.
"""

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import src  # noqa: F401 - first, because it makes MindSpore quiet

# isort: split

import mindspore as ms
import numpy as np

from src.arguments import above_zero, whole
from src.config.load import make_config
from src.deploy.export import Deployed, deployment_graph
from src.deploy.graph.onnx_format import write_onnx
from src.deploy.options import Options
from src.deploy.runtimes.process import RuntimeProcess
from src.errors import ArgumentParser, UserError, did_you_mean, run
from src.files import write_json
from src.models import create_model
from src.outputs import add_overwrite, check_outputs, output_files
from src.processors import model_name, usable
from src.runtime.device import use_device

WORKERS = Path(__file__).resolve().parent / "workers"
MINDSPORE, TORCH, ONNX = ("native", "stock"), ("torch", "torch-compile"), "onnxruntime"
KINDS = (*MINDSPORE, *TORCH, ONNX)
# For our networks, the function of torchvision.models with its arguments for a width; None: it has not this width.
SHUFFLENETS = {0.5: "x0_5", 1.0: "x1_0", 1.5: "x1_5", 2.0: "x2_0"}
IN_TORCHVISION = {
    "mobilenet_v2": lambda width: ("mobilenet_v2", {"width_mult": width}),
    "mobilenet_v3_small": lambda width: ("mobilenet_v3_small", {}) if width == 1 else None,
    "mobilenet_v3_large": lambda width: ("mobilenet_v3_large", {}) if width == 1 else None,
    "mnasnet": lambda width: ("MNASNet", {"alpha": width}),
    "shufflenet_v2": lambda width: (f"shufflenet_v2_{SHUFFLENETS[width]}", {}) if width in SHUFFLENETS else None,
}
CLASSES = 10
LEARNING_RATE = 0.01
WARM_UP = 3  # steps before the first turn; the first step compiles
# Threads of the process before may still wait for work in a loop for some milliseconds.
PAUSE = 0.02  # seconds between two turns
UNTIMED_IMAGES = 32  # with --forward, at the beginning of each turn
# The environment variables that keep other software from using AVX-512, and our compiler from generating it.
ISAS = {"avx2": {"CXXFLAGS": "-mno-avx512f", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}}


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mobilenet_v2", help="as model.name in a config (default: mobilenet_v2)")
    parser.add_argument("--width", type=above_zero(100), default=1.0, help="width multiplier (default: 1.0)")
    parser.add_argument("--groups", type=whole(1, 1000), help="shufflenet_v1 only: groups of its 1x1 convolutions")
    parser.add_argument("--layout", help="shufflenet_v2 only: authors or equal_split; torchvision has equal_split")
    parser.add_argument("--stem-stride", type=int, choices=(1, 2), default=2, help="1 for small images (default: 2)")
    parser.add_argument("--batch", type=whole(1, 16_384), default=16, help="images per batch (default: 16)")
    parser.add_argument("--size", type=whole(8, 1024), default=224, help="side of the images in pixels (default: 224)")
    parser.add_argument("--steps", type=whole(2, 90_000), default=20, help="timed steps of each kind (default: 20)")
    parser.add_argument(
        "--kernels",
        help=f"kinds to compare with the first of them, from {', '.join(KINDS)} (default: native,stock; with --forward "
        f"also {ONNX})",
    )
    parser.add_argument("--torch-python", metavar="PATH", help="the Python that has PyTorch and torchvision")
    parser.add_argument("--isa", choices=ISAS, help="avx2: use no AVX-512 (default: all instructions of the processor)")
    parser.add_argument("--forward", action="store_true", help="measure inference instead of training")
    parser.add_argument(
        "--json", metavar="PATH", help="also write the figures to this file; -: as the last line of stdout"
    )
    add_overwrite(parser)
    args = parser.parse_args()
    check_outputs([] if args.json == "-" else output_files("--json", args.json, ".json"), {}, args.overwrite)
    kinds = check_kinds(args)
    config = config_of(args, "auto")
    use_device(config.runtime)

    figures = measure(kinds, args, config)
    print_figures(figures)
    if args.json == "-":
        print(json.dumps(figures))
    elif args.json is not None:
        write_json(figures, args.json)


def check_kinds(args):
    """Return the kinds of --kernels; kinds that are not known, or that do not fit other options, are a `UserError`."""
    default = [*MINDSPORE, ONNX] if args.forward and args.isa is None else [*MINDSPORE]
    kinds = args.kernels.split(",") if args.kernels is not None else default
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"--kernels {kind}: is not one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
        if kinds.count(kind) > 1:
            raise UserError(f"--kernels {args.kernels}: has {kind} more than once; leave it out")
    torch_kinds = [kind for kind in kinds if kind in TORCH]
    if torch_kinds and args.torch_python is None:
        raise UserError(f"--kernels {torch_kinds[0]}: needs --torch-python, the path of a Python that has PyTorch")
    if not torch_kinds and args.torch_python is not None:
        raise UserError(f"--torch-python: is used with --kernels {' or '.join(TORCH)} only; leave it out")
    if torch_kinds and (args.model not in IN_TORCHVISION or IN_TORCHVISION[args.model](args.width) is None):
        raise UserError(f"--kernels {torch_kinds[0]}: torchvision does not have {args.model} {args.width:g}x")
    if ONNX in kinds and not args.forward:
        raise UserError(f"--kernels {ONNX}: needs --forward, because an exported file cannot be trained")
    if ONNX in kinds and args.isa is not None:
        raise UserError(f"--isa {args.isa}: is not supported by ONNX Runtime; leave out --kernels {ONNX}")
    if args.batch == 1 and not args.forward:
        raise UserError("--batch: must be at least 2 without --forward (found 1)")
    return kinds


def config_of(args, kernels):
    return make_config(settings_of(args, kernels), source="command line")


def settings_of(args, kernels):
    options = {key: getattr(args, key) for key in ("groups", "layout") if getattr(args, key) is not None}
    return {
        "model": {"name": args.model, "width": args.width, "stem_stride": args.stem_stride, **options},
        "data": {"image_size": args.size, "channels": 3},
        "runtime": {"device": "cpu", "kernels": kernels},
    }


def measure(kinds, args, config):
    """Return the benchmark's figures; times are medians over the steps."""
    threads = usable()
    seconds = {kind: [] for kind in kinds}
    # A step of inference may take a millisecond, so a turn begins with steps that are not timed: they meet cold caches.
    untimed = math.ceil(UNTIMED_IMAGES / args.batch) if args.forward else 0
    with contextlib.ExitStack() as stack:
        workers = {}
        for kind in kinds:
            # One after the other, because a process that compiles would slow down the others.
            workers[kind] = stack.enter_context(start(kind, args, config, threads))
            workers[kind].step(untimed=WARM_UP)
        for _ in range(args.steps):
            for kind, worker in workers.items():
                time.sleep(PAUSE)
                seconds[kind].append(worker.step(untimed))
        results = {
            kind: {**worker.facts, **summary(seconds[kind], args.batch), "peak_mib": worker.peak_mib()}
            for kind, worker in workers.items()
        }
    torches = [kind for kind in kinds if kind in TORCH]
    return {
        **{key: getattr(args, key) for key in ("model", "width", "groups", "layout", "stem_stride", "batch", "size")},
        "forward": args.forward,
        "processor": model_name(),
        "threads": threads,
        "isa": args.isa or "native",
        "steps": args.steps,
        "results": results,
        "ratios": {kind: paired_ratio(seconds[kinds[0]], seconds[kind]) for kind in kinds[1:]},
        "faster_torch": min(torches, key=lambda kind: results[kind]["step_ms"]) if len(torches) == 2 else None,
    }


def start(kind, args, config, threads):
    """Return the started `Worker` or `OnnxWorker` of a kind, which has its network and is ready for steps."""
    if kind == ONNX:
        return OnnxWorker(config, args.batch, threads)
    settings = {"classes": CLASSES, "lr": LEARNING_RATE, "threads": threads}
    settings |= {key: getattr(args, key) for key in ("batch", "forward", "size")}
    if kind in MINDSPORE:
        settings |= {"config": settings_of(args, kind)}
        command = [sys.executable, str(WORKERS / "mindspore_step.py")]
    else:
        sgd = {key: getattr(config.optimizer, key) for key in ("momentum", "nesterov", "weight_decay")}
        network, arguments = IN_TORCHVISION[args.model](args.width)
        settings |= {"network": network, "arguments": arguments, "stem_stride": args.stem_stride}
        settings |= {"sgd": sgd, "compile": kind == "torch-compile"}
        command = [args.torch_python, str(WORKERS / "pytorch_step.py")]
    return Worker(kind, command, ISAS.get(args.isa, {}), settings)


class Worker:
    """A process that runs steps on request; `answering.py` is its other end and describes the requests."""

    def __init__(self, kind, command, environment, settings):
        self.kind = kind
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C reaches this process only, which ends the others
            )
        except OSError as error:
            raise UserError(f"--torch-python {command[0]}: cannot be started ({error.strerror})") from None
        try:
            self.facts = self.ask(settings)
        except BaseException:
            self.process.kill()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def step(self, untimed):
        return self.ask({"untimed": untimed})["seconds"]

    def peak_mib(self):
        return self.ask({})["peak_mib"]

    def ask(self, request):
        with contextlib.suppress(BrokenPipeError):  # the missing answer reports that the process has ended
            print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"--kernels {self.kind}: its process ended (exit code {self.process.wait()})")
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(f"--kernels {self.kind}: {answer['error']}")
        return answer


class OnnxWorker:
    """The network as the file that export.py would write, in ONNX Runtime. It takes uint8 images, as ours."""

    def __init__(self, config, batch, threads):
        classifier = create_model(config.model, config.data, CLASSES)
        options = Options(format="onnx", batch=batch, logits=True)
        side = config.data.image_size
        self.images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            plain, path = Path(folder) / "plain.mindir", Path(folder) / "network.onnx"
            deployed = Deployed(classifier, options).set_train(False)
            ms.export(deployed, ms.Tensor(self.images), file_name=str(plain), file_format="MINDIR")
            write_onnx(deployment_graph(plain, options), path)
            self.process = RuntimeProcess("ONNX Runtime", "onnxruntime", sys.executable)
            self.process.load(path, threads)
        parameters = sum(parameter.size for parameter in classifier.trainable_params())
        self.facts = {"version": f"ONNX Runtime {self.process.version}", "parameters": parameters}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.close()

    def step(self, untimed):
        return self.process.time(self.images, untimed + 1)[1][-1] / 1e3

    def peak_mib(self):
        return self.process.peak_memory() / 2**20


def summary(seconds, batch):
    """Return the median and the middle half of the times of steps, given in seconds."""
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {
        "images_per_second": batch / median,
        "step_ms": median * 1e3,
        "step_ms_low": low * 1e3,
        "step_ms_high": high * 1e3,
    }


def paired_ratio(first, second):
    """Return how many times as fast the first kind is: median and middle half over the turns, from times in seconds."""
    low, median, high = statistics.quantiles([b / a for a, b in zip(first, second)], n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def print_figures(figures):
    what = "inference" if figures["forward"] else "training"
    print(
        f"{what} of {figures['model']} {figures['width']}x, batch {figures['batch']}, "
        f"{figures['size']}x{figures['size']}, stem stride {figures['stem_stride']}, {figures['steps']} steps"
    )
    print(f"{figures['processor']}, {figures['threads']} threads, instruction set: {figures['isa']}")
    first = next(iter(figures["results"]))
    for kind, row in figures["results"].items():
        print(
            f"{kind:14}{row['images_per_second']:8.1f} images/s{row['step_ms']:9.1f} ms per step "
            f"(middle half {row['step_ms_low']:.1f} to {row['step_ms_high']:.1f}), peak {row['peak_mib']:,.0f} MiB, "
            f"{row['parameters']:,} parameters, {row['version']}"
        )
    for kind, ratio in figures["ratios"].items():
        faster = ", the faster of PyTorch's two ways" if kind == figures["faster_torch"] else ""
        print(
            f"{first} : {kind}{faster}: {ratio['median']:.2f} times the images/s (median of paired ratios, middle half "
            f"{ratio['low']:.2f} to {ratio['high']:.2f})"
        )


if __name__ == "__main__":
    run(main)
