"""The HTML report on runs, read back with the parser of the standard library."""

import base64
import csv
import html.parser
import io
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from src.config.load import make_config
from src.errors import UserError
from src.models import create_model
from src.report.charts import make_chart
from src.report.page import confused_pairs, render
from src.report.runs import Run, examine, keep_worst, read_run
from src.runs.folder import COLUMNS
from src.weights.checkpoint import load_checkpoint, save_checkpoint
from tools.report import main

UNDEFINED = "\N{EN DASH}"  # the precision of a class that was never predicted
PLAIN = [name for name in COLUMNS if not name.startswith("average_")]  # columns without a moving average
CLASSES = ["<i>Größe", "&amp;", "\"q\" 'r'"]


class Page(html.parser.HTMLParser):
    """The tables, list items, images and links of a page. Also asserts that elements are closed in the right order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.items, self.pictures, self.lines = [], {}, [], [], {}
        self.addresses, self.tags, self.differing, self.texts = [], set(), [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.add(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href", "action", "data")]
        if tag == "table":
            self.rows = self.tables.setdefault(given["class"].split()[0], [])
            self.rows.append([])
        elif tag == "tr":
            self.rows[-1].append([])
            self.differing.append("differs" in given.get("class", ""))
        elif tag in ("td", "th"):
            self.rows[-1][-1].append("")
        elif tag == "li":
            self.items.append("")
        elif tag == "img":
            self.pictures.append(given["src"])
        elif tag == "polyline":
            self.lines.setdefault(given["data-line"], []).append(given["points"])
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if "li" in self.open:
            self.items[-1] += data
        elif self.open[-1:] and {"td", "th"} & set(self.open):
            self.rows[-1][-1][-1] += data


def rows_of(page, table, number=0):
    """Return the rows of a table's body as a dict by their first cell."""
    return {row[0]: row[1:] for row in page.tables[table][number][1:]}


def read_csv(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def report(quickstart, script, tmp_path_factory):
    """A report on the quickstart run and on a copy of it with only two of the three epochs: (run folder, page)."""
    cwd = tmp_path_factory.mktemp("report")
    _, folder, _ = quickstart
    shutil.copytree(folder, cwd / "whole")
    shutil.copytree(folder, cwd / "cut")
    (cwd / "cut" / "summary.json").unlink()
    lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (cwd / "cut" / "metrics.csv").write_text("".join(lines[:3]))
    arguments = ["whole", "cut", "--mistakes", "999", "--output", "out/r.html", "runtime.mode=pynative"]
    done = script("tools/report.py", *arguments, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in cwd.iterdir()) == ["cut", "out", "whole"]
    return folder, Page((cwd / "out" / "r.html").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_page_needs_no_other_file(report):
    _, page = report
    assert {re.split("[:#]", address)[0] for address in page.addresses} == {"", "data"}
    assert not page.tags & {"script", "link", "iframe", "object"}


@pytest.mark.slow
def test_summary_agrees_with_the_run_folder(report):
    folder, page = report
    summary = json.loads((folder / "summary.json").read_text())
    rows = rows_of(page, "summary")
    assert page.tables["summary"][0][0] == ["", "whole", "cut"]
    assert rows["state"] == ["finished, 3 epochs", "not finished, 2 of 3 epochs"]
    assert rows["best test top-1"] == [f"{summary['best']['top1']:.2%}"] * 2
    assert rows["best.ckpt on the evaluation split, top-1"] == rows["best test top-1"]
    losses = summary["final"]["loss"], float(read_csv(folder)[1]["test_loss"])
    assert rows["final test loss"] == [f"{loss:.4f}" for loss in losses]
    assert rows["parameters"] == [f"{summary['params']:,}"] * 2
    assert rows["MACs"] == [f"{summary['macs']:,}"] * 2
    assert rows["training, images/s"][0] == f"{summary['images_per_second']:.0f}"
    assert rows["best.ckpt on the evaluation split, images"] == ["364", "364"]


@pytest.mark.slow
def test_tables_and_curves_show_every_epoch(report):
    folder, page = report
    expected = read_csv(folder)
    header, *rows = page.tables["epochs"][0]
    assert len(rows) == len(expected) == 3
    for row, expected_row in zip(rows, expected):
        assert dict(zip(header, map(float, row))) == pytest.approx(
            {name: float(expected_row[name]) for name in header}, rel=1e-5
        )
    # A curve shows the values of a column, shifted and scaled. So two points of the curve determine the third.
    for chart, column in enumerate(["test_loss", "test_top1"]):
        points = [tuple(map(float, point.split(","))) for point in page.lines["whole test"][chart].split()]
        (x1, y1), (x2, y2), (x3, y3) = points
        v1, v2, v3 = (float(row[column]) for row in expected)
        assert x2 - x1 == pytest.approx(x3 - x2)
        # The coordinates are rounded to 0.01.
        assert (y3 - y1) * (v2 - v1) == pytest.approx((y2 - y1) * (v3 - v1), abs=0.02 * (abs(v2 - v1) + abs(v3 - v1)))
        assert (y2 - y1) * (v2 - v1) < 0


@pytest.mark.slow
def test_confusion_matrix_classes_and_mistakes_agree(report, digit_images):
    folder, page = report
    confusion = np.array([[int(cell) for cell in row[1:]] for row in page.tables["confusion"][0][1:]])
    best = json.loads((folder / "summary.json").read_text())["best"]
    assert confusion.sum() == 364
    assert confusion.trace() / 364 == best["top1"]
    # The rule of the test split, computed independently: every fifth image of a class.
    labels = digit_images[1]
    chosen = sorted(i for digit in range(10) for i in np.flatnonzero(labels == digit)[::5])
    truth = labels[chosen]
    assert confusion.sum(1).tolist() == np.bincount(truth).tolist()
    for digit, (precision, recall, images) in rows_of(page, "classes").items():
        label = int(digit)
        assert int(images) == (truth == label).sum()
        assert recall == f"{confusion[label, label] / confusion[label].sum() * 100:.1f}%"
        predicted = confusion[:, label].sum()
        assert precision == (f"{confusion[label, label] / predicted * 100:.1f}%" if predicted else UNDEFINED)

    wrong = 364 - confusion.trace()
    assert len(page.items) == len(page.pictures) == 2 * wrong  # the run and its copy have the same mistakes
    pattern = r"predicted (\d) ([\d.]+)%true (\d) ([\d.]+)%image (\d+)"
    mistakes = [re.fullmatch(pattern, item).groups() for item in page.items[:wrong]]
    pairs = Counter((int(true), int(predicted)) for predicted, _, true, _, _ in mistakes)
    assert pairs == {(i, j): confusion[i, j] for i, j in zip(*np.nonzero(confusion)) if i != j}
    probabilities = [float(probability) for _, probability, *_ in mistakes]
    assert probabilities == sorted(probabilities, reverse=True)
    for (_, probability, true, true_probability, position), picture in zip(mistakes, page.pictures):
        assert int(true) == truth[int(position)]
        assert float(true_probability) <= float(probability)
        image = Image.open(io.BytesIO(base64.b64decode(picture.removeprefix("data:image/png;base64,"))))
        # The 8x8 image is shown at 16x16. Reduced to 8x8 again, it must be nearest to the image at its position.
        small = np.asarray(image.resize((8, 8), Image.BOX), float)
        distances = np.abs(digit_images[0][chosen].astype(float) - small).sum((1, 2))
        assert distances.argmin() == int(position)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A folder with a made-up run on image files. HTML would misread the class names if they were not escaped."""
    root = tmp_path_factory.mktemp("made_up")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in CLASSES:
            (root / "photos" / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = generator.integers(0, 256, (100, 90, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "photos" / split / name / f"{i}<b>.png")
    config = make_config(
        {
            "model": {"width": 0.5},
            "data": {"name": "image_folder", "root": "photos", "image_size": 72},
            "train": {"batch_size": 4},
            "runtime": {"mode": "pynative", "kernels": "stock"},
            "run": {"dir": "<script>"},
        }
    )
    path = root / "<u>&run"
    path.mkdir()
    rows = [dict.fromkeys(PLAIN, 0.5) | {"epoch": epoch, "train_loss": 1 / epoch} for epoch in (1, 2)]
    with open(path / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, PLAIN)
        writer.writeheader()
        writer.writerows(rows)
    ms.set_seed(1)
    classifier = create_model(config.model, config.data, len(CLASSES))
    best = {"epoch": 1, "top1": 0.5, "top5": 1.0, "loss": 1.0}
    save_checkpoint(path / "best.ckpt", classifier.parameters_dict(), config, sorted(CLASSES), 1, best)
    return root


@pytest.fixture
def folder_run(made_up, tmp_path, monkeypatch):
    """A copy of the made-up run in the working folder; its path there."""
    shutil.copytree(made_up, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("<u>&run")


def test_names_are_escaped(folder_run):
    run = read_run(folder_run)
    found = examine(run, "test", 4, [])
    page = Page(render([run], [found], "test"))
    assert not page.tags & {"u", "i", "script", "amp"}
    assert [row[0] for row in page.tables["classes"][0][1:]] == sorted(CLASSES)
    assert page.tables["confusion"][0][0][1:] == sorted(CLASSES)
    assert "<u>&run" in page.texts
    assert rows_of(page, "settings")["run.dir"] == ["<script>"]
    assert len(page.items) == len(page.pictures) == 4
    for item, mistake, picture in zip(page.items, found.mistakes, page.pictures):
        assert item.endswith(f"{sorted(CLASSES)[mistake.label]}/{mistake.position % 3}<b>.png")
        image = Image.open(io.BytesIO(base64.b64decode(picture.removeprefix("data:image/jpeg;base64,"))))
        assert image.size == (72, 72)


def test_settings_that_differ_are_marked(folder_run):
    run = read_run(folder_run)
    found = examine(run, "test", 0, [])
    other = make_config(run.checkpoint.config.model_dump(), ["optimizer.lr=0.3", "model.width=1.0"])
    twin = replace(run, name="other", checkpoint=replace(run.checkpoint, config=other))
    page = Page(render([run, twin], [found, found], "test"))
    rows = rows_of(page, "settings")
    assert rows["optimizer.lr"] == ["0.1", "0.3"]
    assert rows["model.width"] == ["0.5", "1.0"]
    assert sum(page.differing) == 2
    assert page.items == []


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("best.ckpt", lambda content: content[: len(content) // 2], "best.ckpt: is truncated"),
        ("metrics.csv", lambda content: b"", "metrics.csv: is damaged: the column epoch is missing"),
        ("metrics.csv", lambda content: content[: content.index(b"\n") + 1], "metrics.csv: has no finished epoch yet"),
        ("metrics.csv", lambda content: content[:-30], "metrics.csv: line 3 is truncated or damaged"),
        ("metrics.csv", lambda content: content.replace(b"0.5", b"half", 1), "metrics.csv: line 2 is truncated or"),
        ("metrics.csv", lambda content: b"\xff\xfe" + content, "metrics.csv: is damaged"),
        ("metrics.csv", lambda content: content.replace(b"test_top1", b"top"), "the column test_top1 is missing"),
    ],
)
def test_damaged_files_are_reported(folder_run, name, change, part):
    (folder_run / name).write_bytes(change((folder_run / name).read_bytes()))
    with pytest.raises(UserError, match=re.escape(part)):
        read_run(folder_run)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"final": {"top1": "x"}}', '{"final": null}'])
def test_a_damaged_summary_is_reported(folder_run, content):
    (folder_run / "summary.json").write_text(content)
    with pytest.raises(UserError, match="summary.json: is damaged"):
        read_run(folder_run)


def test_the_moving_average_is_shown(folder_run):
    """With a moving average, best.ckpt holds the averaged weights. Curves and final metrics must be about them too."""
    rows = [dict.fromkeys(COLUMNS, 0.5) | {"epoch": epoch, "average_top1": epoch / 10} for epoch in (1, 2)]
    with open(folder_run / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    run = read_run(folder_run)
    assert (run.finished, run.final["top1"]) == (False, 0.2)
    chart = make_chart("Top-1", [run], {"test": "test_top1"}, "{:.2%}")
    assert [text for _, _, text in chart.lines[0].dots] == ["epoch 1: 10.00%", "epoch 2: 20.00%"]


def test_a_summary_of_fewer_epochs_belongs_to_a_resumed_run(folder_run):
    content = {"final": {"epoch": 1, "top1": 0.1, "top5": 1, "loss": 1}}
    content.update({"images_per_second": 1, "data_wait_fraction": 0, "seconds": 1})
    (folder_run / "summary.json").write_text(json.dumps(content))
    assert (read_run(folder_run).finished, read_run(folder_run).final["top1"]) == (False, 0.5)
    content["final"]["epoch"] = 2
    (folder_run / "summary.json").write_text(json.dumps(content))
    assert (read_run(folder_run).finished, read_run(folder_run).final["top1"]) == (True, 0.1)


@pytest.mark.parametrize("name", ["best.ckpt", "metrics.csv"])
def test_a_run_without_a_finished_epoch_is_reported(folder_run, name):
    (folder_run / name).unlink()
    with pytest.raises(UserError, match=f"<u>&run: is not a run folder .* {name} is missing"):
        read_run(folder_run)


def test_imported_weights_in_place_of_best_ckpt_are_an_error(folder_run):
    imported = load_checkpoint(folder_run / "best.ckpt")
    save_checkpoint(folder_run / "best.ckpt", imported.weights, imported.config, imported.classes, epoch=0, best=None)
    with pytest.raises(UserError, match="best.ckpt: has no metrics"):
        read_run(folder_run)


def test_a_missing_run_folder_is_one_line(mistake, tmp_path):
    assert "nowhere: no such run folder" in mistake("tools/report.py", "nowhere", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--mistakes", "-1"], "--mistakes: must be a whole number from 0 to 1,000 (found -1)"),
        (["--output", "best.ckpt"], "--output best.ckpt: must end with .html"),
        (["--split", "vale"], "--split: invalid choice: 'vale'"),
        (["model.width=1.0"], "model.width=1.0: cannot be changed for a trained network"),
        (["data.root=gone"], "gone/val: no such folder"),
    ],
)
def test_mistakes_in_arguments(folder_run, monkeypatch, arguments, part):
    monkeypatch.setattr("sys.argv", ["report.py", str(folder_run), *arguments])
    with pytest.raises(UserError, match=re.escape(part)):
        main()
    assert not Path("report.html").exists()


def test_the_worst_mistakes_are_the_most_confident():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(60, 4)).astype(np.float32) * 2
    logits[40] = logits[20]  # equally confident
    labels = generator.integers(0, 4, 60)
    labels[40] = labels[20] = (logits[20].argmax() + 1) % 4
    images = np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1)
    batches = [(images[i : i + 7], labels[i : i + 7], logits[i : i + 7]) for i in range(0, 60, 7)]
    mistakes = []
    passed = list(keep_worst(iter(batches), 10, mistakes))
    assert all(given is out for arrays, outputs in zip(batches, passed) for given, out in zip(arrays, outputs))

    every = []
    for i in range(60):
        chances = np.exp(np.float64(logits[i])) / np.exp(np.float64(logits[i])).sum()
        if chances.argmax() != labels[i]:
            every.append((-chances.max(), i, int(chances.argmax()), chances[labels[i]]))
    expected = sorted(every)[:10]
    assert [found.position for found in mistakes] == [position for _, position, _, _ in expected]
    assert [found.predicted for found in mistakes] == [predicted for _, _, predicted, _ in expected]
    assert [found.probability for found in mistakes] == pytest.approx([-chance for chance, *_ in expected])
    assert [found.true_probability for found in mistakes] == pytest.approx([chance for *_, chance in expected])
    assert all(found.image[0, 0, 0] == found.position for found in mistakes)


def test_confused_pairs():
    confusion = np.array([[5, 0, 3], [1, 9, 0], [2, 0, 0]])
    pairs = confused_pairs(confusion, ["a", "b", "c"])
    assert [(row["truth"], row["predicted"], row["images"]) for row in pairs] == [
        ("a", "c", 3),
        ("c", "a", 2),
        ("b", "a", 1),
    ]
    assert [row["share"] for row in pairs] == [3 / 8, 1.0, 0.1]


def test_charts_of_odd_values():
    """A single epoch, equal values, and values that are not finite or outside the plotted area."""
    rows = [{"epoch": 1.0, "a": 2.0}]
    chart = make_chart("one", [Run("r", None, rows, {}, {}, True)], {"": "a"}, "{:.1f}")
    assert len(chart.lines[0].dots) == 1
    rows = [{"epoch": float(i), "a": value} for i, value in enumerate([1.0, float("nan"), 500.0, 3.0], 1)]
    chart = make_chart("odd", [Run("r", None, rows, {}, {}, True)], {"": "a"}, "{:.1f}", highest=4.0)
    assert [text for _, _, text in chart.lines[0].dots] == ["epoch 1: 1.0", "epoch 3: 500.0", "epoch 4: 3.0"]
    heights = [top for _, top, _ in chart.lines[0].dots]
    assert heights[1] < 0 <= heights[2] < heights[0] <= chart.height
    assert all(0 <= position <= chart.height for position, _ in chart.y_ticks)
