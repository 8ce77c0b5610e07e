"""The table of networks, zoo.csv: parameters and MACs (1000 classes, 224x224) and top-1 accuracy on ImageNet."""

import csv
from pathlib import Path


def read_zoo():
    """Return a dict a variant: model, width, groups (None but for ShuffleNetV1), params, macs and top1.

    `top1` is what the authors report (percent), or None; it was not measured here.
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
