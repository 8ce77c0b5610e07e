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
    assert "no duplicates, no leakage, no near-duplicates" in printed


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


def test_copies_that_differ_in_bytes_are_near_duplicates(photos, config, run_tool, tmp_path, capsys):
    china, flower = photos / "train" / "china", photos / "train" / "flower"
    with Image.open(china / "3.jpg") as photo:
        photo.save(photos / "val" / "china" / "again.jpg", quality=70)
        photo.resize((60, 60)).save(photos / "val" / "flower" / "small.png")
        turned = photo.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6  # "rotate by 90 degrees clockwise to see it upright"
        turned.save(photos / "val" / "china" / "turned.jpg", exif=exif, quality=95)
    shutil.copy(flower / "1.jpg", photos / "val" / "flower" / "leaked.jpg")
    with Image.open(flower / "2.jpg") as photo:  # near-duplicates within a split are not reported
        photo.save(flower / "again.jpg", quality=70)
    assert run_tool(check_data, "--config", config, "--json", "report.json") == 1  # by the leaked image
    pairs = json.loads((tmp_path / "report.json").read_text())["near_duplicates"]
    assert {pair["images"][1]["name"].rpartition("/")[2] for pair in pairs} == {"again.jpg", "small.png", "turned.jpg"}
    for pair in pairs:
        assert pair["images"][0] == {"name": str(china / "3.jpg"), "split": "train", "class": "china"}
        assert (pair["images"][1]["split"], pair["bits"] <= 24) == ("val", True)
    printed = capsys.readouterr().out
    assert "near-duplicates in several splits: 3" in printed
    assert f"{china / '3.jpg'} (train, china) ~ {photos / 'val' / 'flower' / 'small.png'} (val, flower), " in printed
    assert "what to do: look at each pair" in printed
    (photos / "val" / "flower" / "leaked.jpg").unlink()
    assert run_tool(check_data, "--config", config) == 0  # a person must decide about near-duplicates


def test_the_nearest_hashes_are_those_of_a_comparison_of_all_pairs(monkeypatch):
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 256, (400, 32), np.uint8)
    bits = np.unpackbits(hashes, axis=1)
    changed = bits[generator.integers(0, 400, 300)]
    for row in changed:
        row[generator.choice(256, generator.integers(0, 60), replace=False)] ^= 1
    others = np.unique(np.packbits(changed, axis=1), axis=0)
    distances = np.array([[np.sum(a != b) for a in bits] for b in np.unpackbits(others, axis=1)])
    near = distances.min(1) <= check_data.NEAR_BITS
    assert 50 < near.sum() < len(others) - 50
    for pairs in (check_data.PAIRS_AT_ONCE, 7):
        monkeypatch.setattr(check_data, "PAIRS_AT_ONCE", pairs)
        nearest, fewest = check_data.nearest_hashes(hashes, others)
        np.testing.assert_array_equal(fewest[near], distances.min(1)[near])
        np.testing.assert_array_equal(nearest[near], distances.argmin(1)[near])
        assert (fewest[~near] > check_data.NEAR_BITS).all()


def test_what_to_do_about_imbalance_is_said(photos, config, run_tool, capsys):
    for i in range(1, 11):
        (photos / "train" / "flower" / f"{i}.jpg").unlink()
    run_tool(check_data, "--config", config)
    assert "what to do" not in capsys.readouterr().out  # 12 to 2
    (photos / "train" / "flower" / "11.jpg").unlink()
    run_tool(check_data, "--config", config)
    printed = capsys.readouterr().out
    assert "smallest class: flower (1), imbalance 12.0 to 1\n  what to do: add images of the small classes" in printed


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
        (["--images", "0"], "--images: must be a whole number from 1 to 256"),
        (["data.root=nowhere"], "data.root: nowhere/train: no such folder"),
    ],
)
def test_wrong_arguments_of_show_batch_are_reported(config, monkeypatch, arguments, said):
    monkeypatch.setattr("sys.argv", ["show_batch.py", "--config", str(config), *arguments])
    with pytest.raises(UserError, match=said):
        show_batch.main()
