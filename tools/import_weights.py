"""Convert weights of mindcv, torchvision or timm into a checkpoint of this project.

python tools/import_weights.py mobilenet_v2.safetensors --model mobilenet_v2 --width 1.0 --output mobilenet_v2.ckpt
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import src  # noqa: F401 - first, because from here on a signal ends the script with one line

# isort: split


from src.arguments import above_zero, existing_file, whole
from src.config.load import make_config
from src.config.schema import MOST_CLASSES
from src.errors import ArgumentParser, UserError, run
from src.files import make_parent
from src.outputs import add_overwrite, check_outputs, output_files


def main():
    args = parse()
    model = {key: getattr(args, key) for key in ("width", "groups", "layout", "classes", "norm_epsilon", "padding")}
    data = {"channels": args.channels}
    config = make_config({"model": {"name": args.model, **model}, "data": data}, source="command line")

    from src.models import create_model
    from src.runtime.device import use_device
    from src.weights.checkpoint import save_checkpoint
    from src.weights.pretrained import load_pretrained

    use_device(config.runtime)
    classifier = create_model(config.model, config.data, args.classes)
    imported = load_pretrained(classifier, config.model, args.source)
    if imported.fresh_head:
        raise UserError(f"--classes {args.classes}: is not the number of outputs of {args.source}")
    config.model.norm_epsilon, config.model.padding = imported.norm_epsilon, imported.padding
    names = [str(i) for i in range(args.classes)]
    save_checkpoint(make_parent(args.output), classifier.parameters_dict(), config, names, epoch=0, best=None)
    print(
        f"{args.output}: {args.model} {args.width}x with {args.classes} outputs, all weights from {imported.origin()}"
    )


def parse():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "source", type=existing_file, help="a .ckpt of mindcv, or a .safetensors or .pth of torchvision or timm"
    )
    parser.add_argument("--model", required=True, help="this project's name of the network, such as mobilenet_v2")
    parser.add_argument("--width", type=above_zero(100), default=1.0, help="width multiplier (default: 1.0)")
    parser.add_argument("--groups", type=whole(1, 1000), help="shufflenet_v1 only (default: 3)")
    parser.add_argument("--layout", help="shufflenet_v2 only: authors (default; mindcv) or equal_split (torchvision)")
    parser.add_argument(
        "--classes", type=whole(2, MOST_CLASSES), default=1000, help="number of classes of the weights (default: 1000)"
    )
    parser.add_argument(
        "--channels",
        type=int,
        choices=(1, 3),
        default=3,
        help="channels of the network's input: 3 (default), or 1 for gray images",
    )
    parser.add_argument(
        "--norm-epsilon", type=above_zero(1), help="epsilon of BatchNorm, if it is not the source's default"
    )
    parser.add_argument("--padding", help="symmetric or same, if it is not the source's default")
    parser.add_argument("--output", required=True, metavar="PATH", help="the checkpoint to write, a .ckpt")
    add_overwrite(parser)
    args = parser.parse_args()
    check_outputs(output_files("--output", args.output, ".ckpt"), {"SOURCE": args.source}, args.overwrite)
    return args


if __name__ == "__main__":
    run(main)
