"""The table of networks, zoo.csv: parameters and MACs (1000 classes, 224x224 pixels) and top-1 on ImageNet."""

import csv
from pathlib import Path
from typing import Any


def read_zoo() -> list[dict[str, Any]]:
    """Return a dict per variant: model, width, groups (ShuffleNetV1 only, otherwise None), params, macs and top1.

    `top1` is the percentage that the authors report, or None. We did not measure it.
    """
    with open(Path(__file__).with_name("zoo.csv"), newline="", encoding="utf-8") as file:
        return [
            {
                "model": row["model"],
                "width": float(row["width"]),
                "groups": int(row["groups"]) if row["groups"] else None,
                "params": int(row["params"]),
                "macs": int(row["macs"]),
                "top1": float(row["authors_top1"]) if row["authors_top1"] else None,
            }
            for row in csv.DictReader(file)
        ]
