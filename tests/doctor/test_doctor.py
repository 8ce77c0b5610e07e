"""tools/doctor.py as a user runs it, and the comparison that it rests on."""

import json
import math
import platform
from pathlib import Path

import pytest

from src.doctor import proof
from src.doctor.machine import OK, WRONG
from src.doctor.training import agrees, differences
from src.errors import UserError
from src.models import NETWORKS

REFERENCE = {"losses": [2.0, 4.0], "evaluation_loss": 1.0, "changes": {"a": 3.0, "b": 4.0}}


@pytest.mark.slow
def test_a_cpu_is_examined_whole(script, tmp_path):
    # The networks are shallow, because most of the doctor's time is compilation. Two ranks train the whole mobilenet_v1
    # in other processes, and the doctor compares it.
    shallow = NETWORKS.keys() - {proof.RANK_FAMILY}
    done = script("tools/doctor.py", "--device", "cpu", "--json", "out/doctor.json", cwd=tmp_path, shallow=shallow)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    report = json.loads((tmp_path / "out" / "doctor.json").read_text())
    facts = {fact["name"]: fact for fact in report["facts"]}
    assert platform.python_version() in facts["Python"]["found"]
    assert facts["Ascend devices"]["found"] == str(len(list(Path("/dev").glob("davinci[0-9]*"))))
    assert facts["GPU devices"]["found"] == str(len(list(Path("/dev").glob("nvidia[0-9]*"))))
    assert facts["mindspore"]["state"] == facts["msrun"]["state"] == OK
    assert all(fact["advice"] for fact in facts.values() if fact["state"] != OK)
    assert [row["family"] for row in report["families"]] == list(NETWORKS)
    for row in report["families"]:
        assert row["state"] == OK
        assert 0 <= row["loss_difference"] <= row["tolerances"][0]
        assert 0 <= row["change_difference"] <= row["tolerances"][1]
        assert row["images_per_second"] > 0
        assert row["plan_images_per_second"] > 0
        assert 0 <= row["data_wait_fraction"] <= 1
    assert report["ranks"]["state"] == OK
    lines = len(report["facts"]) + len(NETWORKS) + 1
    assert f"{lines} lines, 0 wrong; " in done.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize(
    ("change", "float32", "float16"),
    [
        ({}, True, True),
        ({"losses": [2.0, 4.002]}, True, True),
        ({"losses": [2.0, 4.02]}, False, True),
        ({"losses": [2.0, 4.2]}, False, False),
        ({"losses": [2.0, math.nan]}, False, False),
        ({"evaluation_loss": 1.01}, False, True),
        ({"evaluation_loss": math.nan}, False, False),
        ({"changes": {"a": 3.05, "b": 4.0}}, True, True),
        ({"changes": {"a": 3.0, "b": 4.5}}, False, True),
        ({"changes": {"a": 0.0, "b": 4.0}}, False, False),
    ],
)
def test_a_result_agrees_within_the_tolerance_of_its_precision(change, float32, float16):
    result = {**REFERENCE, **change}
    assert (agrees(result, REFERENCE, "float32"), agrees(result, REFERENCE, "float16")) == (float32, float16)


def test_differences_are_relative():
    result = {"losses": [2.1, 4.0], "evaluation_loss": 0.9, "changes": {"a": 3.0, "b": 3.5}}
    assert differences(result, REFERENCE) == (pytest.approx(0.1), pytest.approx(0.5 / 5))


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        ("Ascend910A", 256e12),
        ("Ascend910ProA", 256e12),
        ("Ascend910B2", None),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100-SXM4-80GB", None),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("NVIDIA H100 80GB HBM3", None),
    ],
)
def test_a_device_has_the_peaks_of_its_own_data_sheet_or_none(monkeypatch, name, operations):
    monkeypatch.setattr(proof.ms.hal, "get_device_name", lambda number, target: name)
    peaks = proof.peaks_of("gpu")
    assert (peaks and peaks.operations) == operations


def test_one_accelerator_has_no_two_ranks(monkeypatch):
    monkeypatch.setattr(proof.ms.hal, "device_count", lambda target: 1)
    assert proof.prove_ranks("gpu")["found"] == "not run: this machine has 1 device"


@pytest.mark.parametrize(
    ("shell", "part"),
    [
        ("exec /bin/cat < /dev/zero > /dev/null", "were ended"),
        ("echo RuntimeError: bad luck; exit 3", "exit code 3: RuntimeError: bad luck"),
    ],
)
def test_ranks_that_hang_or_fail_are_reported(tmp_path, monkeypatch, shell, part):
    (tmp_path / "msrun").write_text(f"#!/bin/sh\n{shell}\n")
    (tmp_path / "msrun").chmod(0o755)
    monkeypatch.setattr(proof.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(proof, "RANK_TIMEOUT", 0.2 if "cat" in shell else 60.0)
    assert part in proof.start_ranks(str(tmp_path), "request", "answer")


def test_the_reference_of_another_device_comes_from_a_second_process(monkeypatch):
    model = {"name": "mobilenet_v1", "width": 0.25}
    (elsewhere,) = proof.in_second_process([model])
    assert elsewhere == proof.run({**proof.REFERENCE}, model)
    monkeypatch.setattr(proof, "REFERENCE", {"device": "cpu", "mode": "wrong"})
    with pytest.raises(UserError, match="ended with exit code .+ runtime.mode: 'wrong'"):
        proof.in_second_process([model])


def test_different_weights_on_the_ranks_are_wrong(monkeypatch):
    def write_answers(folder, request, answer):
        for rank in range(2):
            Path(f"{answer}-{rank}.json").write_text(json.dumps([{**REFERENCE, "checksum": str(rank)}]))

    monkeypatch.setattr(proof, "run", lambda runtime, model: REFERENCE)
    monkeypatch.setattr(proof, "start_ranks", write_answers)
    found = proof.prove_ranks("cpu")
    assert (found["state"], found["found"]) == (WRONG, "the ranks ended with different weights")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--json", "here.json"], "here.json"),
        (["--json", "doctor.txt"], "--json doctor.txt: must end with .json"),
        (["--device", "tpu"], "runtime.device: 'tpu' is not one of"),
        (["--device", "gpu", "--overwrite"], "runtime.device: gpu is not available here"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(mistake, tmp_path, arguments, part):
    (tmp_path / "here.json").write_text("mine")
    assert part in mistake("tools/doctor.py", *arguments, cwd=tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("here.json", "mine")]
