"""What a network costs: python tools/profile.py --model shufflenet_v1 --width 1.0 --groups 3 --image-size 224"""

import json
import sys
from pathlib import Path

# In place of this folder, whose profile.py would hide the standard library's from other modules.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from src.config import make_config  # noqa: E402
from src.engine.device import use_device  # noqa: E402
from src.errors import ArgumentParser, run  # noqa: E402
from src.models import create_model  # noqa: E402
from src.models.cost import count_macs, count_params  # noqa: E402


def main():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a network, such as shufflenet_v2")
    parser.add_argument("--width", type=float, default=1.0, help="width multiplier (default: 1.0)")
    parser.add_argument("--groups", type=int, help="shufflenet_v1 only: groups of its 1x1 convolutions (default: 3)")
    parser.add_argument("--layout", help="shufflenet_v2 only: authors (default) or equal_split")
    parser.add_argument("--image-size", type=int, default=224, help="pixels (default: 224)")
    parser.add_argument("--classes", type=int, default=1000, help="outputs (default: 1000)")
    parser.add_argument("--json", metavar="PATH", help="also write the figures there")
    args = parser.parse_args()

    model = {key: getattr(args, key) for key in ("width", "groups", "layout", "classes")}
    model["name"] = args.model
    config = make_config({"model": model, "data": {"image_size": args.image_size}}, source="command line")
    use_device(config.runtime)
    classifier = create_model(config.model, config.data, config.model.classes)
    figures = {
        "model": config.model.name,
        "width": config.model.width,
        "groups": config.model.groups,
        "layout": config.model.layout,
        "image_size": config.data.image_size,
        "classes": config.model.classes,
        "params": count_params(classifier),
        "macs": count_macs(classifier, config.data.image_size, config.data.channels),
    }
    for name, value in figures.items():
        print(f"{name:<10}  {'-' if value is None else value}")
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
