"""The report as one HTML page that needs no other file. The template page.html shows the values made here."""

import base64
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

import jinja2
import numpy as np
from PIL import Image

from src.config.schema import Config
from src.figures import plot_confusion
from src.report.charts import make_charts
from src.report.runs import Findings, Mistake, Run
from src.runs.progress import duration

TABLE_CLASSES = 25  # with more classes, the confusion matrix is an image and not a table
CONFUSED_PAIRS = 10
THUMBNAIL = 160  # largest side of an embedded image, in pixels
EXACT = 64  # images up to this side, in pixels, are embedded without loss


def render(runs: Sequence[Run], findings: Sequence[Findings], split: str) -> str:
    """Return the HTML of a report on several runs and the findings on `split`, one per run."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        names=[run.name for run in runs],
        split=split,
        summary=summary_rows(runs, findings, split),
        charts=make_charts(runs),
        settings=setting_rows([run.checkpoint.config for run in runs]),
        details=[detail(run, found) for run, found in zip(runs, findings)],
    )


def summary_rows(runs: Sequence[Run], findings: Sequence[Findings], split: str) -> list[dict[str, Any]]:
    """Return the rows of the table that compares the runs: {label, values, best}.

    `values` has a text per run. `best` has the indices of the runs with the best value.
    """
    rows: list[dict[str, Any]] = []
    # Accuracies on different data sets cannot be compared.
    same_data = len({run.checkpoint.config.data.name for run in runs}) == 1

    def add(
        label: str,
        values: Sequence[Any],
        template: str = "{}",
        best_of: Optional[Callable[[Iterable[Any]], Any]] = None,
        comparable: bool = True,
    ) -> None:
        texts = [template.format(value) for value in values]
        best = template.format(best_of(values)) if best_of and comparable and len(runs) > 1 else None
        rows.append({"label": label, "values": texts, "best": [i for i, text in enumerate(texts) if text == best]})

    models = [run.checkpoint.config.model for run in runs]
    add("network", [f"{model.name} {model.width}x" for model in models])
    add("data", [run.checkpoint.config.data.name for run in runs])
    add("state", [state(run) for run in runs])
    metrics_of_runs: dict[str, list[dict[str, Any]]] = {
        "best": [run.best for run in runs],
        "final": [run.final for run in runs],
    }
    for epoch, metrics_of_run in metrics_of_runs.items():
        add(f"{epoch} test top-1", [metrics["top1"] for metrics in metrics_of_run], "{:.2%}", max, same_data)
        add(f"{epoch} test top-5", [metrics["top5"] for metrics in metrics_of_run], "{:.2%}", max, same_data)
        add(f"{epoch} test loss", [metrics["loss"] for metrics in metrics_of_run], "{:.4f}", min, same_data)
    add("best epoch", [run.best["epoch"] for run in runs])
    evaluations = [found.evaluation for found in findings]
    label = f"best.ckpt on the {split} split"
    add(f"{label}, top-1", [evaluation.top1 for evaluation in evaluations], "{:.2%}", max, same_data)
    add(f"{label}, images", [evaluation.images for evaluation in evaluations], "{:,}")
    add("parameters", [found.params for found in findings], "{:,}", min)
    add("MACs", [found.macs for found in findings], "{:,}", min)
    add("training, images/s", [run.speed["images_per_second"] for run in runs], "{:.0f}", max)
    add("training, time waiting for data", [run.speed["data_wait_fraction"] for run in runs], "{:.1%}", min)
    add("duration", [duration(run.speed["seconds"]) for run in runs])
    add("MindSpore", [run.checkpoint.versions["mindspore"] for run in runs])
    return rows


def state(run: Run) -> str:
    epochs = run.checkpoint.config.train.epochs
    if run.finished:
        return f"finished, {len(run.rows)} epochs"
    return f"not finished, {len(run.rows)} of {epochs} epochs"


def setting_rows(configs: Sequence[Config]) -> list[dict[str, Any]]:
    """Return a dict per setting: its key, its value in each config, and whether the values differ."""
    trees = [config.model_dump() for config in configs]
    rows = []
    for section, keys in trees[0].items():
        for key in keys:
            values = [shown(tree[section][key]) for tree in trees]
            rows.append({"key": f"{section}.{key}", "values": values, "differs": len(set(values)) > 1})
    return rows


def shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def detail(run: Run, found: Findings) -> dict[str, Any]:
    """Return what the page's section on a single run shows."""
    classes, evaluation = run.checkpoint.classes, found.evaluation
    return {
        "name": run.name,
        "epoch": run.best["epoch"],
        "images": evaluation.images,
        "top1": evaluation.top1,
        "top5": evaluation.top5,
        "loss": evaluation.loss,
        "rows": run.rows,
        "per_class": evaluation.per_class(classes),
        "classes": classes,
        "confusion": confusion_rows(evaluation.confusion) if len(classes) <= TABLE_CLASSES else None,
        "confusion_png": confusion_png(evaluation.confusion, classes) if len(classes) > TABLE_CLASSES else None,
        "pairs": confused_pairs(evaluation.confusion, classes),
        "mistakes": [
            {
                "image": thumbnail(mistake.image),
                "pixelated": max(mistake.image.shape) <= EXACT,
                "truth": classes[mistake.label],
                "predicted": classes[mistake.predicted],
                "probability": mistake.probability,
                "true_probability": mistake.true_probability,
                "source": source_of(mistake, found.sources),
            }
            for mistake in found.mistakes
        ],
    }


def source_of(mistake: Mistake, sources: Optional[Sequence[Any]]) -> str:
    """Return the last folder and the name of the image's file, or the image's position if it is not from a file."""
    return "/".join(Path(sources[mistake.position]).parts[-2:]) if sources else f"image {mistake.position}"


def confusion_rows(confusion: np.ndarray) -> list[list[tuple[int, float]]]:
    """Return (images, share of the true class) of each cell, row by row."""
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    return [list(zip(*cells)) for cells in zip(confusion.tolist(), shares.tolist())]


def confusion_png(confusion: np.ndarray, classes: Sequence[str]) -> str:
    """Return a picture of the confusion matrix as a data URL."""
    png = io.BytesIO()
    plot_confusion(confusion, classes, png)
    return data_url(png.getvalue(), "png")


def confused_pairs(confusion: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the most confused pairs of classes, with the number of images and their share of the true class."""
    wrong = confusion * (1 - np.eye(len(confusion), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSED_PAIRS]
    pairs = [(true, predicted) for true, predicted in zip(*np.unravel_index(order, wrong.shape))]
    return [
        {
            "truth": classes[true],
            "predicted": classes[predicted],
            "images": int(wrong[true, predicted]),
            "share": float(wrong[true, predicted] / confusion[true].sum()),
        }
        for true, predicted in pairs
        if wrong[true, predicted]
    ]


def thumbnail(pixels: np.ndarray) -> str:
    """Return a uint8 image (H, W, C) as a data URL, made smaller if it is large."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    file = io.BytesIO()
    if max(image.size) <= EXACT:
        image.save(file, "PNG")
        return data_url(file.getvalue(), "png")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(file, "JPEG", quality=85)
    return data_url(file.getvalue(), "jpeg")


def data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
