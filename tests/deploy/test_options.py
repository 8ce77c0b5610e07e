"""The options of export.py, and the interval of the measured drop; without MindSpore's time."""

import numpy as np
import pytest
from scipy.stats import multinomial

import export
from src.deploy.description import Description, Verification
from src.deploy.options import options_of
from src.deploy.verify import drop_interval
from src.errors import UserError
from tests.test_older_files import DESCRIPTION

INT8 = ["--precision", "int8"]


def options(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["export.py", "--checkpoint", __file__, "--output", "net.onnx", *arguments])
    return options_of(export.parse())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*INT8, "--verify", "1"], r"too few images .+\(found 1, expected at least 200\); .+ --min-images 1"),
        ([*INT8, "--min-images", "1001"], r"\(found 1000, expected at least 1001\)"),
        ([*INT8, "--min-images", "0"], r"--min-images: must be a whole number from 1 to 10,000,000 \(found 0\)"),
        ([*INT8, "--min-agreement", "nan"], r"--min-agreement: must be a number from 0 to 100 \(found nan\)"),
        ([*INT8, "--max-drop", "nan"], r"--max-drop: must be a number from 0 to 100 \(found nan\)"),
        (["--precision", "float16", "--min-images", "9"], "--min-images 9: is not used with"),
        (["--min-agreement", "99"], "--min-agreement 99.0: is not used with"),
        (["--reduce-range"], "--reduce-range: is not used with --format onnx --precision float32; leave it out"),
        (["--logits", "--keep-right", "90"], "--keep-right 90.0: is not used with --logits; leave it out"),
        (["--no-calibrate", "--keep-right", "0"], "--keep-right 0.0: is not used with --no-calibrate; leave it out"),
        (["--logits", "--no-calibrate"], "--no-calibrate: is not used with --logits"),
        (["--max-drop", "0"], "--max-drop 0.0: is not used with"),
        (["--batch", "257"], r"--batch: must be a whole number from 1 to 256 \(found 257\)"),
        (["--ort-web", "dist"], "--ort-web dist: is not used with --format onnx --precision float32; leave it out"),
        (["--output", "net.html", "--batch", "2"], "--batch 2: is not used with --format web, whose page takes photos"),
        (["--output", "net.html", "--logits"], "--logits: is not used with --format web"),
        (["--output", "net.html", "--format", "onnx"], "--output net.html: must end with .onnx"),
        (["--output", "net.param", "--batch", "2"], "--batch 2: is not used with --format ncnn, which has no batches"),
        (["--output", "net.param", *INT8], "--format ncnn does not support --precision int8; use --format onnx or ms"),
        (["--output", "net.web"], "--output net.web: must end with .mindir, .onnx, .ms, .air, .param, .html"),
        (["--output", "net.html", "--batch", "dynamic"], "--batch dynamic: is not used with --format web, whose page"),
        (["--output", "net.param", "--batch", "dynamic"], "--batch dynamic: is not used with --format ncnn, which has"),
        (["--output", "net.ms", "--batch", "dynamic"], "--batch dynamic: is supported with --format onnx only"),
    ],
)
def test_limits_that_cannot_be(monkeypatch, arguments, message):
    with pytest.raises(UserError, match=message):
        options(monkeypatch, *arguments)


def test_dynamic_batch_is_for_onnx(monkeypatch):
    assert options(monkeypatch, "--batch", "dynamic").dynamic_batch
    with pytest.raises(UserError, match=r"--batch dynamic: is supported with --format onnx only \(found mindir\)"):
        options(monkeypatch, "--batch", "dynamic", "--output", "net.mindir")


def test_limits_of_int8(monkeypatch):
    found = options(monkeypatch, *INT8)
    assert (found.max_drop, found.min_agreement, found.min_images) == (1, 98, 200)
    found = options(monkeypatch, *INT8, "--verify", "1", "--min-images", "1", "--min-agreement", "90")
    assert (found.min_agreement, found.min_images) == (90, 1)


def test_the_interval_of_the_drop_is_the_published_interval():
    # Fagerland, Lydersen and Laake (2014), table V: 1 and 7 discordant pairs of 21.
    assert drop_interval(1, 7, 21) == pytest.approx([-0.508, -0.013], abs=6e-4)


def test_the_interval_covers_the_true_drop_in_95_percent_of_the_cases():
    images, p_lost, p_won = 200, 0.03, 0.01
    counts = np.arange(40)
    lost, won = (grid.ravel() for grid in np.meshgrid(counts, counts))
    chance = multinomial([images], [p_lost, p_won, 1 - p_lost - p_won])
    chance = chance.pmf(np.stack([lost, won, images - lost - won], 1))
    low, high = np.array([drop_interval(int(a), int(b), images) for a, b in zip(lost, won)]).T
    assert chance[(low <= p_lost - p_won) & (p_lost - p_won <= high)].sum() == pytest.approx(0.95, abs=0.02)


def test_the_report_names_the_split_and_the_interval(capsys):
    check = {**DESCRIPTION["verification"]["runtimes"][0], "top1": 0.96, "drop_interval": [0.001, 0.039]}
    verification = Verification(images=1000, split="val", checkpoint_top1=0.98, runtimes=[check])
    description = Description.model_validate({**DESCRIPTION, "precision": "int8"})
    export.report(description.model_copy(update={"verification": verification}), "net.onnx")
    printed = capsys.readouterr().out
    assert "with 1,000 val images: " in printed
    assert "2.00 points lost; 95 % interval, paired: 0.10 to 3.90" in printed
