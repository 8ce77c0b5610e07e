"""benchmarks/train_step.py: the kinds that it compares, their processes, and the ratios that it reports."""

import json
import sys

import numpy as np
import pytest

from benchmarks import train_step
from src.errors import UserError


def measured(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["train_step.py", *options])
    train_step.main()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kernels", "native,trch"], "--kernels trch: is not one of native, stock, torch, .*; did you mean torch?"),
        (["--kernels", "native,native"], "--kernels native,native: has native more than once; leave it out"),
        (["--kernels", "native,torch"], "--kernels torch: needs --torch-python"),
        (["--torch-python", "python"], "--torch-python: is used with --kernels torch or torch-compile only"),
        (["--kernels", "onnxruntime"], "--kernels onnxruntime: needs --forward"),
        (["--forward", "--kernels", "onnxruntime", "--isa", "avx2"], "--isa avx2: is not supported by ONNX Runtime"),
        (["--batch", "1"], "--batch: must be at least 2 without --forward (found 1)"),
        (
            ["--kernels", "torch", "--torch-python", "x", "--model", "ghostnet"],
            "--kernels torch: torchvision does not have ghostnet 1x",
        ),
        (["--kernels", "torch", "--torch-python", "/nowhere"], "--torch-python /nowhere: cannot be started"),
        # This Python has no PyTorch, so its worker answers with an error.
        (["--kernels", "torch", "--torch-python", sys.executable], "--kernels torch: No module named 'torch'"),
    ],
)
def test_options_that_do_not_fit(monkeypatch, options, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace(")", r"\)")):
        measured(monkeypatch, *options)


def test_the_ratio_is_the_median_of_steps_of_the_same_turn():
    # A disturbance that slows down whole turns does not change their ratios.
    first = np.array([1.0, 1.0, 5.0, 1.0, 9.0])
    ratio = train_step.paired_ratio(first, first * [2, 2.1, 1.9, 8, 2])
    assert ratio == pytest.approx({"median": 2.0, "low": 2.0, "high": 2.1})


@pytest.mark.slow
def test_inference_is_compared_with_onnx_runtime(monkeypatch, capsys):
    options = ["--model", "shufflenet_v2", "--width", "0.5", "--size", "32", "--batch", "2", "--steps", "2"]
    measured(monkeypatch, *options, "--forward", "--kernels", "native,onnxruntime", "--json", "-")
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    results = figures["results"]
    assert [*results] == ["native", "onnxruntime"]
    assert {row["parameters"] for row in results.values()} == {352042}
    assert results["onnxruntime"]["version"].startswith("ONNX Runtime")
    assert figures["threads"] >= 1
    assert figures["processor"]
    assert figures["ratios"]["onnxruntime"]["median"] > 0
