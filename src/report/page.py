"""The report as one HTML page that needs no other file: what page.html shows, in words and figures."""

import base64
import io
import json
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from src.figures import plot_confusion
from src.report.charts import make_charts
from src.runs.progress import duration

TABLE_CLASSES = 25  # more than these, and the confusion matrix is a picture
CONFUSED_PAIRS = 10
THUMBNAIL = 160  # pixels of its longer side, at most
EXACT = 64  # an image of at most so many pixels a side is embedded without loss


def render(runs, findings, split):
    """Return the HTML of a report on several `Run`s with their `Findings` on `split`."""
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


def summary_rows(runs, findings, split):
    """Return the rows of the table that compares runs: {label, values, best}, `best` numbers the winning runs."""
    rows = []
    # Accuracies on different data are not compared.
    same_data = len({run.checkpoint.config.data.name for run in runs}) == 1

    def add(label, values, form="{}", better=None, comparable=True):
        texts = [form.format(value) for value in values]
        winner = form.format(better(values)) if better and comparable and len(runs) > 1 else None
        rows.append({"label": label, "values": texts, "best": [i for i, text in enumerate(texts) if text == winner]})

    models = [run.checkpoint.config.model for run in runs]
    add("network", [f"{model.name} {model.width}x" for model in models])
    add("data", [run.checkpoint.config.data.name for run in runs])
    add("state", [state(run) for run in runs])
    moments = {
        "best": [run.checkpoint.best for run in runs],
        "final": [run.final for run in runs],
    }
    for moment, metrics in moments.items():
        add(f"{moment} test top-1", [own["top1"] for own in metrics], "{:.2%}", max, same_data)
        add(f"{moment} test top-5", [own["top5"] for own in metrics], "{:.2%}", max, same_data)
        add(f"{moment} test loss", [own["loss"] for own in metrics], "{:.4f}", min, same_data)
    add("best epoch", [run.checkpoint.best["epoch"] for run in runs])
    found = [own.evaluation for own in findings]
    add(f"best.ckpt on the {split} split, top-1", [own.top1 for own in found], "{:.2%}", max, same_data)
    add("images of that split", [own.images for own in found], "{:,}")
    add("parameters", [own.params for own in findings], "{:,}", min)
    add("MACs", [own.macs for own in findings], "{:,}", min)
    add("training, images/s", [run.speed["images_per_second"] for run in runs], "{:.0f}", max)
    add("of it waiting for data", [run.speed["data_wait_fraction"] for run in runs], "{:.1%}", min)
    add("duration", [duration(run.speed["seconds"]) for run in runs])
    add("MindSpore", [run.checkpoint.versions["mindspore"] for run in runs])
    return rows


def state(run):
    epochs = run.checkpoint.config.train.epochs
    if run.finished:
        return f"finished, {len(run.rows)} epochs"
    return f"not finished, {len(run.rows)} of {epochs} epochs"


def setting_rows(configs):
    """Return a dict a setting: its key, its value in each of the configs, and whether these differ."""
    trees = [config.model_dump() for config in configs]
    rows = []
    for section, keys in trees[0].items():
        for key in keys:
            values = [shown(tree[section][key]) for tree in trees]
            rows.append({"key": f"{section}.{key}", "values": values, "differs": len(set(values)) > 1})
    return rows


def shown(value):
    return value if isinstance(value, str) else json.dumps(value)


def detail(run, found):
    """Return what the page shows of one run alone."""
    classes, evaluation = run.checkpoint.classes, found.evaluation
    return {
        "name": run.name,
        "epoch": run.checkpoint.best["epoch"],
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
                "own_probability": mistake.own_probability,
                "source": "/".join(Path(found.sources[mistake.position]).parts[-2:])
                if found.sources
                else f"image {mistake.position}",
            }
            for mistake in found.mistakes
        ],
    }


def confusion_rows(confusion):
    """Return (images, share of the true class) of each cell, by rows."""
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    return [list(zip(counts, own)) for counts, own in zip(confusion.tolist(), shares.tolist())]


def confusion_png(confusion, classes):
    png = io.BytesIO()
    plot_confusion(confusion, classes, png)
    return data_url(png.getvalue(), "png")


def confused_pairs(confusion, classes):
    """Return the pairs of classes that are confused most, with the images and their share of the true class."""
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


def thumbnail(pixels):
    """Return a uint8 image (H, W, C) as a data URL."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    file = io.BytesIO()
    if max(image.size) <= EXACT:
        image.save(file, "PNG")
        return data_url(file.getvalue(), "png")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(file, "JPEG", quality=85)
    return data_url(file.getvalue(), "jpeg")


def data_url(content, kind):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
