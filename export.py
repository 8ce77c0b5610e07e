"""Export a checkpoint for a device: python export.py --checkpoint runs/quickstart/best.ckpt --output digits.mindir"""

from pathlib import Path

import numpy as np

from src.data.datasets import load_samples
from src.data.loading import eval_loader
from src.deploy.mindir import INPUTS, export_mindir
from src.engine.checkpoint import adapt_config, load_checkpoint, restore
from src.engine.device import use_device
from src.errors import ArgumentParser, UserError, run


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="a best.ckpt or last.ckpt of train.py")
    parser.add_argument("--format", choices=("mindir",), default="mindir")
    parser.add_argument("--output", required=True, metavar="PATH", help="the file to write; PATH.json describes it")
    parser.add_argument(
        "--input", choices=INPUTS, default="image", help="uint8 image (default), or float32 tensor normalised outside"
    )
    parser.add_argument("--logits", action="store_true", help="put out logits instead of probabilities")
    parser.add_argument(
        "--verify", type=int, default=1000, metavar="N", help="verify on N test images, evenly spread (default: 1000)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="such as data.root of the test images"
    )
    args = parser.parse_intermixed_args()
    if Path(args.output).suffix != f".{args.format}":
        raise UserError(f"--output {args.output}: must end with .{args.format}")
    if args.verify < 1:
        raise UserError(f"--verify {args.verify}: must be at least 1 image")
    for override in args.overrides:
        if override.startswith("runtime.kernels="):
            raise UserError(f"{override}: an export always has MindSpore's own operators, leave it out")

    checkpoint = load_checkpoint(args.checkpoint)
    config = adapt_config(checkpoint.config, args.overrides)
    use_device(config.runtime)
    classifier = restore(checkpoint, args.checkpoint)
    samples = load_samples(config.data, "eval", checkpoint.classes)
    spread = np.linspace(0, len(samples) - 1, min(args.verify, len(samples))).round().astype(int)
    images = eval_loader(config, samples.take(spread), batch_size=1)

    description = export_mindir(
        checkpoint, classifier, images, args.output, args.checkpoint, args.input, logits=args.logits
    )
    verified, taken = description["verification"], description["input"]
    print(
        f"{args.output}: {Path(args.output).stat().st_size / 1e6:.2f} MB, takes {taken['dtype']} "
        f"{'x'.join(map(str, taken['shape']))} ({taken['layout']})\n"
        f"verified on {verified['images']:,} test images: outputs differ by at most {verified['max_difference']:.1e}, "
        f"top-1 {verified['top1']:.2%} (checkpoint {verified['checkpoint_top1']:.2%})\n"
        f"described in {args.output}.json"
    )


if __name__ == "__main__":
    run(main)
