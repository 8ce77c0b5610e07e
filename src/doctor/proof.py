"""Prove that training on the device of this machine computes what the CPU computes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import mindspore as ms
import numpy as np

from src.config.schema import Config
from src.cost.devices import DEVICES, Device
from src.cost.plan import per_image
from src.doctor.machine import MISSING, OK, WRONG
from src.doctor.training import (
    BATCH,
    REFERENCE,
    SIDE,
    TIMED_BATCH,
    TIMED_SIDE,
    TOLERANCES,
    agrees,
    differences,
    families,
    make_proof_config,
    train,
)
from src.errors import UserError
from src.models import create_model
from src.runtime.device import TARGETS, use_device

WORKER = Path(__file__).with_name("worker.py")
TIMEOUT = 600.0  # seconds for the reference in a second process
RANK_TIMEOUT = 180.0  # seconds for two ranks
RANK_FAMILY = "mobilenet_v1"  # it compiles in the shortest time
# Names of devices, as MindSpore gives them, for which DEVICES has the data sheet.
NAMES = {"ascend910": r"Ascend910(Pro|Premium)?A?", "a100": r".*A100.*40GB.*", "v100": r".*V100.*32GB.*"}


def prove(device: str) -> Iterator[dict[str, Any]]:
    """Yield a dict for each family and precision on this `device`: ascend, gpu or cpu.

    The keys are `family`, `width`, `precision`, `state` (OK or WRONG), `loss_difference`, `change_difference`,
    `tolerances`, `images_per_second`, `data_wait_fraction`, and `plan_images_per_second`, which can be None.
    """
    models = list(families(device))
    # MindSpore cannot change its device after the first computation.
    results = in_second_process(models) if device != "cpu" else None
    peaks = peaks_of(device)
    for number, model in enumerate(models):
        reference = results[number] if results else run({**REFERENCE}, model)
        for precision in ("float32",) if device == "cpu" else ("float32", "float16"):
            runtime = {"device": device, "precision": precision}
            side, batch = (SIDE, BATCH) if device == "cpu" else (TIMED_SIDE, TIMED_BATCH)
            timed = make_proof_config(model, runtime, side, batch)
            result = run(runtime, model, timed)
            loss, change = differences(result, reference)
            yield {
                "family": model["name"],
                "width": model["width"],
                "precision": precision,
                "state": OK if agrees(result, reference, precision) else WRONG,
                "loss_difference": loss,
                "change_difference": change,
                "tolerances": TOLERANCES[precision],
                "image_size": side,
                "batch_size": batch,
                "images_per_second": result["images_per_second"],
                "data_wait_fraction": result["data_wait_fraction"],
                "plan_images_per_second": planned(timed, peaks),
            }


def run(runtime: dict[str, Any], model: dict[str, Any], timed: Optional[Config] = None) -> dict[str, Any]:
    """Return the result of `train` in this process."""
    config = make_proof_config(model, runtime)
    use_device(config.runtime, config.train.seed)
    return train(config, timed=timed)


def planned(config: Config, peaks: Optional[Device]) -> Optional[float]:
    """Return the images per second that the plan's arithmetic gives for a device with these peaks."""
    return None if peaks is None else per_image(config, create_model(config.model, config.data, 10), peaks).rate


def peaks_of(device: str) -> Optional[Device]:
    """Return the peaks of the device, or None if DEVICES has no data sheet of it.

    A CPU keeps small feature maps in its caches. So only its arithmetic is counted, by the speed of a matrix product.
    """
    if device == "cpu":
        return Device(product_speed(), float("inf"), float("inf"))
    name = ms.hal.get_device_name(0, TARGETS[device])
    return next((DEVICES[key] for key, pattern in NAMES.items() if re.fullmatch(pattern, name)), None)


def product_speed(side: int = 1024, repeats: int = 3) -> float:
    """Return the operations per second of NumPy's product of two float32 matrices: the best of some repeats."""
    matrix = np.ones((side, side), np.float32)
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def in_second_process(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the reference results of the networks, computed on the CPU by another process.

    A process that fails is a `UserError`.
    """
    with tempfile.TemporaryDirectory() as folder:
        request, answer = write_request(folder, models, REFERENCE)
        command = [sys.executable, str(WORKER), request, answer]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            raise UserError(
                f"the reference on the CPU did not end in {TIMEOUT:.0f} seconds; end other programs"
            ) from None
        if done.returncode:
            raise UserError(
                f"the reference on the CPU ended with exit code {done.returncode}: {last_line(done.stdout)}"
            )
        return json.loads(Path(f"{answer}-0.json").read_text())


def write_request(folder: str, models: list[dict[str, Any]], runtime: dict[str, Any]) -> tuple[str, str]:
    """Write the request of `worker.py` into a folder; return its path and the path of the answer without its end."""
    request = Path(folder) / "request.json"
    request.write_text(json.dumps({"models": models, "runtime": runtime}))
    return str(request), str(Path(folder) / "answer")


def prove_ranks(device: str) -> dict[str, Any]:
    """Train with two ranks that msrun starts, and compare with one process that has both batches together.

    BatchNorm uses the images of both ranks, so the losses must agree, and the ranks must end with the same weights.
    Return a dict: `state`, and `found`, which says what was found. A machine with one accelerator has no two ranks.
    """
    count = 2 if device == "cpu" else ms.hal.device_count(TARGETS[device])
    if count < 2:
        return {"state": MISSING, "found": f"not run: this machine has {count} device"}
    model = next(model for model in families(device) if model["name"] == RANK_FAMILY)
    reference = run({**REFERENCE}, model) if device == "cpu" else in_second_process([model])[0]
    with tempfile.TemporaryDirectory() as folder:
        request, answer = write_request(folder, [model], {"device": device, "sync_norm": True})
        problem = start_ranks(folder, request, answer)
        if problem:
            return {"state": WRONG, "found": problem}
        results = [json.loads(Path(f"{answer}-{rank}.json").read_text())[0] for rank in range(2)]
    if results[0]["checksum"] != results[1]["checksum"]:
        return {"state": WRONG, "found": "the ranks ended with different weights"}
    loss, change = differences(results[0], reference)
    good = agrees(results[0], reference, "float32")
    found = f"same weights; losses differ by {loss:.1e} and weights' changes by {change:.1e} from one process"
    return {"state": OK if good else WRONG, "found": found, "loss_difference": loss, "change_difference": change}


def start_ranks(folder: str, request: str, answer: str) -> Optional[str]:
    """Run `worker.py` in two ranks until both end; return what went wrong, or None."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(sys.executable).parent
    command = [str(here / "msrun"), "--worker_num=2", "--local_worker_num=2", f"--master_port={port}", "--join=True"]
    # msrun runs the first `python` in PATH.
    environment = {**os.environ, "PATH": f"{here}{os.pathsep}{os.environ.get('PATH', '')}"}
    process = subprocess.Popen(
        [*command, f"--log_dir={folder}", str(WORKER), request, answer],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that msrun and its ranks can be ended together
    )
    try:
        log = process.communicate(timeout=RANK_TIMEOUT)[0]
    except subprocess.TimeoutExpired:
        return f"the ranks did not end in {RANK_TIMEOUT:.0f} seconds and were ended"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        return f"msrun ended with exit code {process.returncode}: {last_line(log)}"
    return None


def last_line(log: str) -> str:
    """Return the last line of a process's output that names an error, or else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "no output")
