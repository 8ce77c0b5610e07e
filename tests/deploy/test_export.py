"""Export the quickstart's network, and compare each file in its runtime with the outputs of the checkpoint."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import onnx
import onnxruntime
import pytest
from mindspore import nn
from onnx import numpy_helper
from PIL import Image
from sklearn.metrics import log_loss

from src.data.datasets import load_samples
from src.data.loading import eval_loader
from src.deploy.confidence import drawn_halves
from src.deploy.description import Description, RuntimeCheck, Verification, read_description
from src.deploy.export import check_target, export_with_mindspore
from src.deploy.options import Options
from src.deploy.runtimes.lite import Lite
from src.deploy.runtimes.runtimes import open_runtime
from src.deploy.trained import open_trained
from src.deploy.verify import Expected, LossError, Verifier, check_limits
from src.errors import UserError
from src.evaluation.evaluate import predict, softmax, summarize
from tests.conftest import ROOT
from tests.deploy.conftest import KINDS, LITE

pytestmark = pytest.mark.slow
needs_lite = pytest.mark.skipif(LITE is None, reason="MindSpore Lite is not installed: run tools/setup_lite.sh")


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def test_mindir_gives_the_checkpoints_probabilities_in_mindspore(case, exported):
    network = nn.GraphCell(ms.load(str(exported["mindir"])))
    seen = []
    for images, logits in case.batches():
        out = network(ms.Tensor(images)).asnumpy()
        np.testing.assert_allclose(out, softmax(logits), atol=1e-5)
        seen.append(out.argmax())
    assert len(set(seen)) > 5  # a file that ignores its input would always output one class


def test_onnx_takes_batches_of_tensors_and_gives_logits(case, tmp_path):
    path = tmp_path / "out" / "net.onnx"
    description = case.export(path, input="tensor", logits=True, batch=3)
    assert (description.input.shape, description.input.dtype) == ([3, 1, 16, 16], "float32")
    assert sorted(file.name for file in path.parent.iterdir()) == ["net.onnx", "net.onnx.json"]
    data = case.checkpoint.config.data
    for images, logits in case.batches(3):
        tensor = np.float32((images / 255 - data.mean) / data.std).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(run_onnx(path, tensor), logits, atol=1e-4)


@needs_lite
def test_lite_gives_the_checkpoints_probabilities_for_ms_and_mindir(case, exported):
    images, logits = next(case.batches())
    for path in (exported["ms"], exported["mindir"]):
        with Lite(LITE) as lite:
            lite.load(path)
            np.testing.assert_allclose(lite.run(images), softmax(logits), atol=1e-5)
            with pytest.raises(UserError, match="MindSpore Lite: .+"):
                lite.run(images[:, :8])
    checked = [check.runtime for check in read_description(exported["mindir"]).verification.runtimes]
    assert checked == ["MindSpore", "MindSpore Lite"]


@pytest.mark.skipif("ncnn" not in KINDS, reason="ncnn is not installed: run pip install ncnn")
def test_ncnn_gives_the_checkpoints_logits_for_pixels_and_tensors(case, tmp_path):
    import ncnn

    data = case.checkpoint.config.data
    for precision, tolerance in (("float32", 1e-4), ("float16", 0.02)):
        path = tmp_path / f"{precision}.param"
        description = case.export(path, input="tensor", logits=True, precision=precision)
        assert description.weights.size == path.with_suffix(".bin").stat().st_size
        net = ncnn.Net()
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        assert (net.load_param(str(path)), net.load_model(str(path.with_suffix(".bin")))) == (0, 0)
        for images, logits in case.batches():
            # ncnn's own steps from pixels to a tensor.
            mat = ncnn.Mat.from_pixels(images[0], ncnn.Mat.PixelType.PIXEL_GRAY, 16, 16)
            mat.substract_mean_normalize(
                [255 * value for value in data.mean], [1 / (255 * value) for value in data.std]
            )
            extractor = net.create_extractor()
            extractor.input("tensor", mat)
            np.testing.assert_allclose(np.array(extractor.extract("logits")[1]), logits[0], atol=tolerance)
    sizes = [(tmp_path / f"{precision}.bin").stat().st_size for precision in ("float16", "float32")]
    assert sizes[0] / sizes[1] == pytest.approx(0.5, abs=0.03)
    weights = tmp_path / "float32.bin"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"float32\.bin: checksum mismatch: the file is damaged"):
        read_description(tmp_path / "float32.param")
    weights.unlink()
    with pytest.raises(UserError, match=r"float32\.param: its weights float32\.bin are missing"):
        read_description(tmp_path / "float32.param")


def test_descriptions_match_the_files(case, exported):
    data = case.checkpoint.config.data
    for kind, path in exported.items():
        described = json.loads(Path(f"{path}.json").read_text())
        assert described["format"] == kind
        assert described["size"] == path.stat().st_size
        assert described["input"]["shape"] == [1, 16, 16, 1]
        assert described["classes"] == [str(i) for i in range(10)]
        assert described["preprocessing"]["mean"] == data.mean
        assert described["verification"]["images"] == 20
        right = (case.logits.argmax(1) == case.samples.labels).sum()
        assert described["verification"]["checkpoint_top1"] == right / 20
        for check in described["verification"]["runtimes"]:
            assert check["top1"] == right / 20
            assert check["max_difference"] <= 1e-4


def test_schema_in_docs_matches_the_code():
    assert json.loads((ROOT / "docs" / "export.schema.json").read_text()) == Description.model_json_schema()


def test_exported_files_evaluate_as_the_checkpoint(case, exported, monkeypatch):
    # Only a new process can set the device.
    monkeypatch.setattr("src.weights.checkpoint.use_device", lambda runtime: None)
    results = []
    for path in (case.source, *exported.values()):
        overrides = ["runtime.mode=pynative", "runtime.kernels=stock"] if path == case.source else []
        trained = open_trained(path, overrides)
        loader = eval_loader(trained.config, case.samples, trained.batch_size)
        results.append(summarize(predict(trained.step, loader)))
    for result in results[1:]:
        assert (result.confusion == results[0].confusion).all()
        assert (result.top1, result.top5) == (results[0].top1, results[0].top5)
        assert result.loss == pytest.approx(results[0].loss, abs=1e-4)


def int8_weights(path):
    """Return {name: int8 weights} of a quantised file, and its model; weights have the zero point 0."""
    model = onnx.load(path)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = {name: array for name, array in arrays.items() if array.dtype == np.int8 and array.ndim > 1}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            assert not arrays[node.input[2]].any()
            assert arrays[node.input[1]].shape == weights[node.input[0]].shape[:1]  # a scale per channel
    return weights, model


def test_int8_is_smaller_and_loses_little(case, exported, tmp_path):
    path = tmp_path / "net.onnx"
    # The batch is larger than the number of calibration images, as with --calibration 256 --batch 300.
    limits = {"max_drop": 10.0, "min_agreement": 90.0, "min_images": 20}
    description = case.export(path, precision="int8", batch=32, **limits)
    assert path.stat().st_size < 0.45 * exported["onnx"].stat().st_size
    drop = description.verification.checkpoint_top1 - description.verification.runtimes[0].top1
    assert drop <= 0.1
    weights, model = int8_weights(path)
    assert max(array.max() for array in weights.values()) == 127
    assert [entry.key for entry in model.metadata_props].count("classes") == 1
    # Activations are part of the quantised operators behind the stem, and the channels of depthwise convolutions are
    # multiples of 16.
    assert [node.op_type for node in model.graph.node if node.op_type in ("Relu", "Clip")] == ["Relu"]
    depthwise = [array.shape[0] for array in weights.values() if array.shape[1] == 1 and array.ndim == 4]
    assert {24, 32} & set(depthwise)
    quantization = description.quantization
    losses = [layer.loss for layer in quantization.lose_most]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] > 0
    assert {layer.layer for layer in quantization.lose_most} <= {node.name for node in model.graph.node}
    assert (quantization.reduce_range, quantization.float_layers) == (False, [])


def test_layers_stay_float_where_int8_loses_too_much(case, tmp_path, monkeypatch):
    """The verification refuses the first three files."""
    path, files = tmp_path / "net.onnx", []

    def refuse(verifier, path):
        files.append(int8_weights(path)[0])
        if len(files) < 4:
            raise LossError("int8 loses too much")
        return verify(verifier, path)

    verify = Verifier.verify
    monkeypatch.setattr(Verifier, "verify", refuse)
    limits = {"max_drop": 100.0, "min_agreement": 0.0, "min_images": 20, "reduce_range": True}
    quantization = case.export(path, precision="int8", **limits).quantization
    assert [len(files[0]) - len(weights) for weights in files] == [0, 1, 2, 4]
    worst = [layer.layer for layer in quantization.lose_most]
    assert quantization.float_layers == worst[:4]
    weights, _ = int8_weights(path)
    assert max(np.abs(array.astype(int)).max() for array in weights.values()) == 64  # 7 bits
    assert quantization.reduce_range


def test_probabilities_are_calibrated_inside_the_file(case, tmp_path):
    """The temperature is in the last layer: the file has no operator more than without it."""
    everything = load_samples(case.checkpoint.config.data, "test", case.checkpoint.classes).take(np.arange(208))
    whole = dataclasses.replace(case, samples=everything)
    found = whole.export(tmp_path / "net.onnx", batch=52).confidence
    plain = whole.export(tmp_path / "plain.onnx", batch=52, calibrate=False)
    assert (plain.confidence, found.fitted_images, found.tested_images) == (None, 104, 104)
    ((images, labels),) = eval_loader(case.checkpoint.config, everything, batch_size=208).epoch()
    logits = np.concatenate([case.classifier(ms.Tensor(images[i : i + 52])).asnumpy() for i in range(0, 208, 52)])
    probabilities = np.concatenate([run_onnx(tmp_path / "net.onnx", images[i : i + 52]) for i in range(0, 208, 52)])
    np.testing.assert_allclose(probabilities, softmax(logits / found.temperature), atol=1e-5)
    nodes = [[node.op_type for node in onnx.load(tmp_path / name).graph.node] for name in ("net.onnx", "plain.onnx")]
    assert nodes[0] == nodes[1]
    _, half = drawn_halves(208)
    tested, labels = probabilities[half], labels[half]
    assert found.nll_after == pytest.approx(log_loss(labels, tested, labels=range(10)), rel=1e-4)
    right, sure = tested.argmax(1) == labels, tested.max(1) >= found.threshold
    assert found.tested_kept_right == pytest.approx(sure[right].mean())
    assert abs(found.temperature - 1) > 0.01


@pytest.mark.skipif("ncnn" not in KINDS, reason="ncnn is not installed: run pip install ncnn")
def test_ncnn_files_are_calibrated_without_another_layer(case, tmp_path):
    everything = load_samples(case.checkpoint.config.data, "test", case.checkpoint.classes).take(np.arange(200))
    found = dataclasses.replace(case, samples=everything).export(tmp_path / "net.param").confidence
    case.export(tmp_path / "plain.param", calibrate=False)
    runtime = open_runtime(tmp_path / "net.param")
    probabilities = np.concatenate([runtime.run(images) for images, _ in case.batches()])
    runtime.close()
    np.testing.assert_allclose(probabilities, softmax(case.logits / found.temperature), atol=1e-5)
    layers = [[line.split()[0] for line in (tmp_path / name).open()] for name in ("net.param", "plain.param")]
    assert layers[0] == layers[1]


def test_onnx_files_take_any_number_of_images_and_describe_themselves(case, tmp_path):
    path = tmp_path / "net.onnx"
    description = case.export(path, batch=8, dynamic_batch=True)
    assert description.input.shape == [None, 16, 16, 1]
    for count in (1, 3, 20):
        np.testing.assert_allclose(run_onnx(path, case.images[:count]), softmax(case.logits[:count]), atol=1e-5)
    metadata = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == description.classes
    assert json.loads(metadata["preprocessing"]) == json.loads(Path(f"{path}.json").read_text())["preprocessing"]
    assert metadata["checkpoint_sha256"] == hashlib.sha256(case.source.read_bytes()).hexdigest()
    assert metadata["pocketspore"] == description.made_by["pocketspore"]


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_verifies_with_both_precisions(case, tmp_path):
    checks = case.export(tmp_path / "net.onnx").verification.runtimes
    assert [check.runtime for check in checks] == ["ONNX Runtime", "OpenVINO, f32", "OpenVINO, default precision"]
    assert checks[1].max_difference <= 1e-4


def test_int8_needs_many_images_to_verify(case, tmp_path):
    message = r"too few images for the verification \(found 20, expected at least 200\); .+ --min-images 20"
    with pytest.raises(UserError, match=message):
        case.export(tmp_path / "net.onnx", precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_imported_weights_without_metrics_are_exported(case, tmp_path):
    imported = dataclasses.replace(case, checkpoint=dataclasses.replace(case.checkpoint, best=None))
    assert imported.export(tmp_path / "net.onnx").checkpoint.top1 is None


def test_precision_that_loses_too_much_top1_is_an_error(case, tmp_path):
    message = r"float16 loses too much top-1 \(found .+ points, expected at most -100\); no file was written"
    with pytest.raises(UserError, match=message):
        case.export(tmp_path / "net.onnx", precision="float16", max_drop=-100.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("found", "options", "part"),
    [
        ({"max_difference": 2e-4}, {}, "differ too much from the checkpoint's (found 0.0002, expected at most 0.0001)"),
        ({"agreement": 0.997}, {}, "another top-1 class than with the checkpoint (found 0.30%, expected at most 0.1%)"),
        ({"top1": 0.88}, {"precision": "int8"}, "int8 loses too much top-1 (found 2.00 points, expected at most 1)"),
        ({"max_difference": 1e-4, "agreement": 0.999}, {}, None),
        (
            {"agreement": 0.975},
            {"precision": "int8"},
            "int8 gives too many images another top-1 class than the checkpoint (found 97.50% with the same class, "
            "expected at least 98 %)",
        ),
        ({"agreement": 0.975}, {"precision": "float16"}, "float16 gives too many images another top-1 class"),
        ({}, {"precision": "int8", "min_images": 1001}, "too few images for the verification (found 1000, expected"),
        ({"top1": 0.895, "max_difference": 3.0, "agreement": 0.98}, {"precision": "int8"}, None),
    ],
)
def test_limits_of_the_difference_from_the_checkpoint(found, options, part):
    check = {"runtime": "ONNX Runtime", "version": "1", "max_difference": 0.0, "agreement": 1.0, "top1": 0.9, **found}
    check = RuntimeCheck(**check)
    verification = Verification(images=1000, checkpoint_top1=0.9, runtimes=[check])
    options = Options(format="onnx", **options)
    if part is None:
        check_limits(check, verification, options, 1e-4)
        return
    with pytest.raises(UserError, match="1000.+no file was written|min-images") as error:
        check_limits(check, verification, options, 1e-4)
    assert part in str(error.value)


@pytest.mark.parametrize(("largest", "added", "refused"), [(0.5, 2e-4, True), (90.0, 2e-4, False), (90.0, 2e-3, True)])
def test_the_allowed_difference_grows_with_logits_above_ten(case, monkeypatch, largest, added, refused):
    """The runtime's logits differ by `added` from the checkpoint's, whose largest logit is `largest`."""
    logits = np.float32([[largest, -largest / 2, 0.0]])
    loader = SimpleNamespace(epoch=lambda: [(np.zeros((1, 1, 1, 1), np.uint8), np.zeros(1, np.int32))])
    found = logits + np.float32([[0.0, added, 0.0]])
    runtime = SimpleNamespace(name="ONNX Runtime", version="1", run=lambda x: found, close=lambda: None)
    monkeypatch.setattr("src.deploy.verify.runtimes", lambda path, options: [runtime])
    options = Options(format="onnx", logits=True)
    with pytest.raises(UserError, match="the outputs differ too much") if refused else contextlib.nullcontext():
        Verifier(Expected(np.zeros(1, np.int32), logits), None, loader, "test", options).verify(None)


@pytest.mark.parametrize("folder", ["my photos", "l'été", "数字", 'a"b', "a\\b"])
def test_the_graph_of_a_network_is_written_into_any_folder(tmp_path, folder):
    """MindSpore refuses such paths, also to load from."""
    path = tmp_path / folder / "plain.mindir"
    path.parent.mkdir()
    network, example = nn.Dense(2, 3), ms.Tensor(np.float32([[1, 2]]))
    export_with_mindspore(network, example, path)
    assert [file.name for file in path.parent.iterdir()] == ["plain.mindir"]
    loaded = nn.GraphCell(ms.load(str(path.rename(tmp_path / "plain.mindir"))))
    np.testing.assert_allclose(loaded(example).asnumpy(), network(example).asnumpy(), rtol=1e-6)


def test_mindir_version_3_runs_in_mindspore_only(case, tmp_path):
    description = case.export(tmp_path / "net.mindir", mindir_version=3)
    assert description.mindir_version == 3
    assert [check.runtime for check in description.verification.runtimes] == ["MindSpore"]


def test_the_script_exports_another_size_with_a_golden_image(quickstart, script, digit_images, tmp_path):
    _, folder, _ = quickstart
    Image.fromarray(digit_images[0][4]).save(tmp_path / "digit.png")
    arguments = ["--verify", 20, "--golden", "digit.png", "data.image_size=24", "runtime.mode=pynative"]
    done = script("export.py", "--checkpoint", folder / "best.ckpt", "--output", "net.onnx", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "with 20 test images: " in done.stdout
    assert "golden image: net.onnx.golden.json" in done.stdout
    description = read_description(tmp_path / "net.onnx")
    assert description.input.shape == [1, 24, 24, 1]
    assert description.preprocessing.image_size == description.checkpoint.config["data"]["image_size"] == 24
    golden = json.loads((tmp_path / "net.onnx.golden.json").read_text())
    pixels = np.asarray(Image.open(tmp_path / golden["pixels"])).reshape(1, 24, 24, 1)
    assert run_onnx(tmp_path / "net.onnx", pixels)[0] == pytest.approx(golden["probabilities"], abs=1e-4)


def test_bad_exported_files_are_one_line_errors(exported, mistake, tmp_path):
    good = exported["onnx"]

    def copy(name, path=good, sidecar=None):
        target = tmp_path / name
        shutil.copy(path, target)
        content = sidecar if sidecar is not None else Path(f"{path}.json").read_text()
        Path(f"{target}.json").write_text(content)
        return target

    def error_of(path, *arguments):
        return mistake("eval.py", "--checkpoint", path, *arguments, cwd=tmp_path)

    damaged = copy("damaged.onnx")
    damaged.write_bytes(damaged.read_bytes()[:-100])
    message = error_of(damaged)
    assert f"{damaged}: checksum mismatch (found " in message
    assert "the file is damaged, or damaged.onnx.json describes another file" in message
    alone = tmp_path / "alone.onnx"
    shutil.copy(good, alone)
    assert f"{alone}: its description alone.onnx.json is missing" in error_of(alone)
    assert "of.json.onnx.json: is damaged (not JSON)" in error_of(copy("of.json.onnx", sidecar="{"))
    assert "short.onnx.json: format: Field required" in error_of(copy("short.onnx", sidecar='{"version": 1}'))
    message = error_of(copy("other.mindir"))
    assert "describes another file than other.mindir (found format onnx, expected mindir)" in message
    assert "nowhere.onnx: no such file" in error_of(tmp_path / "nowhere.onnx")
    assert "data.image_size=24: cannot be changed for a trained network" in error_of(good, "data.image_size=24")
    assert "runtime.mode=pynative: cannot be changed" in error_of(good, "runtime.mode=pynative")


def test_missing_lite_is_a_one_line_error(monkeypatch):
    monkeypatch.setattr("src.deploy.runtimes.lite.has_lite", lambda python: False)
    with pytest.raises(UserError, match=r"MindSpore Lite was not found; run tools/setup_lite.sh"):
        check_target(Options(format="ms"))
    check_target(Options(format="mindir"))
    with pytest.raises(UserError, match="--lite-python nowhere: is not a Python that has mindspore_lite"):
        check_target(Options(format="mindir", lite_python="nowhere"))


@needs_lite
def test_latency_of_all_runtimes(exported, command, tmp_path):
    arguments = [*exported.values(), "--rounds", "1", "--json", "latency.json"]
    done = command("benchmarks/exported_files.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "latency.json").read_text())["results"]
    kinds = [(Path(row["path"]).suffix, row["runtime"]) for row in rows]
    assert kinds == [
        (".mindir", "MindSpore"),
        (".mindir", "MindSpore Lite"),
        (".onnx", "ONNX Runtime"),
        (".ms", "MindSpore Lite"),
        *([(".param", "ncnn")] if "ncnn" in KINDS else []),
    ]
    for row in rows:
        assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert row["peak_memory"] > 10**7
