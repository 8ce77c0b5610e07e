"""Run tools/check_data.py and tools/show_batch.py on photos with known defects."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from benchmarks import data_pipeline
from src.errors import UserError
from tools import check_data, show_batch


@pytest.fixture
def config(photos, tmp_path):
    path = tmp_path / "photos.yaml"
    path.write_text(f"data: {{name: image_folder, root: {photos}, image_size: 32}}\ntrain: {{batch_size: 8}}\n")
    return path


@pytest.fixture
def run_tool(monkeypatch, tmp_path):
    """Run a tool's main() in a working folder; return its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(tool, *arguments):
        monkeypatch.setattr("sys.argv", [tool.__name__, *map(str, arguments)])
        try:
            tool.main()
        except SystemExit as left:
            return left.code
        return 0

    return run


def test_a_missing_folder_is_an_error_and_not_a_data_set_without_findings(config, run_tool):
    with pytest.raises(UserError, match="nowhere/train: no such folder"):
        run_tool(check_data, "--config", config, "data.name=image_folder", "data.root=nowhere")


def test_a_data_set_without_defects_has_no_findings(config, run_tool, capsys):
    assert run_tool(check_data, "--config", config, "--json", "report.json") == 0
    printed = capsys.readouterr().out
    assert "train: 24 images of 2 classes" in printed
    assert "width 120 to 120, height 120 to 120 pixels" in printed
    assert "no duplicates, no leakage" in printed


def test_every_defect_is_found(photos, config, run_tool, tmp_path, capsys):
    china, flower = photos / "train" / "china", photos / "train" / "flower"
    (china / "0.jpg").write_bytes((china / "0.jpg").read_bytes()[:1500])
    (china / "1.jpg").write_bytes(b"")
    (china / "2.jpg").write_text("not an image")
    (china / "notes.txt").write_text("not an image, and not meant to be an image")
    Image.open(china / "3.jpg").save(china / "3.jpg", "PNG")
    Image.open(china / "4.jpg").save(china / "moving.gif")
    Image.open(china / "5.jpg").resize((300, 90)).save(china / "5.jpg")
    shutil.copy(flower / "0.jpg", flower / "again.jpg")
    shutil.copy(flower / "1.jpg", photos / "val" / "flower" / "leaked.jpg")
    shutil.copy(china / "1.jpg", photos / "val" / "china" / "empty.jpg")
    assert run_tool(check_data, "--config", config, "--json", "report.json") == 1
    report = json.loads((tmp_path / "report.json").read_text())
    train = report["splits"]["train"]
    assert train["bad"].keys() == {str(china / name) for name in ("0.jpg", "1.jpg", "2.jpg", "moving.gif")}
    assert train["bad"][str(china / "1.jpg")] == "is empty"
    assert train["misnamed"] == {str(china / "3.jpg"): "is a PNG image"}
    assert train["notes"] == [f"{photos}/train: ignored files, hidden or not images: 1"]
    assert train["classes"] == {"china": 13, "flower": 13}
    assert (train["widths"], train["heights"]) == ([120, 300], [90, 120])
    assert report["splits"]["val"]["bad"] == {str(photos / "val" / "china" / "empty.jpg"): "is empty"}
    assert report["duplicates"] == [[str(flower / "0.jpg"), str(flower / "again.jpg")]]
    assert report["leakage"] == [[str(flower / "1.jpg"), str(photos / "val" / "flower" / "leaked.jpg")]]
    printed = capsys.readouterr().out
    assert f"{china / '1.jpg'}: is empty" in printed
    assert "leakage, the same image in several splits: 1" in printed


def test_arrays_are_checked(run_tool, tmp_path):
    (tmp_path / "digits.yaml").write_text("data: {name: digits}\n")
    assert run_tool(check_data, "--config", "digits.yaml", "--json", "report.json") == 0
    splits = json.loads((tmp_path / "report.json").read_text())["splits"]
    assert {name: split["images"] for name, split in splits.items()} == {"train": 1433, "test": 364}
    assert splits["train"]["widths"] == [8, 8]


def test_a_batch_is_shown_as_the_network_sees_it(config, photos, run_tool, tmp_path):
    for file in (photos / "train").rglob("*.jpg"):
        Image.new("RGB", (40, 40), (250, 0, 0)).save(file)
    for file in (photos / "val").rglob("*.jpg"):
        Image.new("RGB", (40, 40), (0, 0, 250)).save(file)
    assert run_tool(show_batch, "--config", config, "--output", "out/batch.png", "--images", "4") == 0
    picture = np.asarray(Image.open(tmp_path / "out" / "batch.png").convert("RGB")).astype(int)
    red, blue = ((picture[..., high] > 200) & (picture[..., low] < 60) for high, low in ((0, 2), (2, 0)))
    assert red.nonzero()[0].max() < blue.nonzero()[0].min()  # The training images are above the evaluation images.
    assert 0.8 < red.sum() / blue.sum() < 1.2


def test_the_benchmark_measures_each_case(run_tool, tmp_path):
    small = ["--images", "8", "--batch", "4", "--rounds", "1", "--workers", "1,2", "--json", "speed.json"]
    assert run_tool(data_pipeline, *small) == 0
    figures = json.loads((tmp_path / "speed.json").read_text())
    for source, cases in data_pipeline.CASES.items():
        for name in (f"{source}, 1 worker", f"{source}, 2 workers"):
            assert figures[name].keys() == cases.keys()
            assert all(row["images_per_second"] > 0 for row in figures[name].values())
            assert next(iter(figures[name].values()))["share_of_first_case"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--output", "batch.jpg"], "--output batch.jpg: must end with .png"),
        (["--images", "0"], "--images and --epoch must be at least 1"),
        (["data.root=nowhere"], "data.root: nowhere/train: no such folder"),
    ],
)
def test_wrong_arguments_of_show_batch_are_reported(config, monkeypatch, arguments, said):
    monkeypatch.setattr("sys.argv", ["show_batch.py", "--config", str(config), *arguments])
    with pytest.raises(UserError, match=said):
        show_batch.main()
