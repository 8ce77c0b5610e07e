"""The proof: a few training steps and an evaluation on a device, compared with a reference on the CPU.

The reference runs MindSpore's own operators, operator by operator (PyNative), in float32.
"""

import hashlib
import itertools
import time
from collections.abc import Iterator
from typing import Any, Optional

import mindspore as ms
import numpy as np

from src.config.load import make_config
from src.config.schema import Config
from src.data.datasets import load_samples
from src.data.loading import Loader, eval_loader, train_loader
from src.evaluation.evaluate import evaluate, make_eval_step
from src.kernels.convert import use_kernels
from src.models import NETWORKS, create_model
from src.models.classifier import Classifier
from src.runs.progress import Clock
from src.runtime.parallel import Ranks, synchronise_norms
from src.runtime.precision import set_precision
from src.training.optimizer import create_optimizer
from src.training.step import TrainStep
from src.training.window import Window

STEPS, TEST_IMAGES = 5, 32
TIMED_STEPS = 10
RATES = TIMED_STEPS + 1  # learning rates of both; a table of another length would compile the step again
SIDE, BATCH = 32, 16  # of the compared steps
# On an accelerator, the speed is measured with images and batches of the usual size.
TIMED_SIDE, TIMED_BATCH = 224, 64
LOSS_SCALE = 128.0  # of float16, small enough that no step overflows
# Largest relative differences from the reference: of the losses, and of the weights' changes. On a CPU, the networks
# differ by at most 1e-4 and 3e-3.
TOLERANCES = {"float32": (1e-3, 2e-2), "float16": (2e-2, 2e-1), "bfloat16": (5e-2, 2e-1)}
REFERENCE = {"device": "cpu", "mode": "pynative", "kernels": "stock"}


def families(device: str) -> Iterator[dict[str, Any]]:
    """Yield the section `model` of each family of networks: width 1.0, or on a CPU the smallest width."""
    for name, network in NETWORKS.items():
        yield {"name": name, "width": min(network.variants) if device == "cpu" else 1.0}


def make_proof_config(model: dict[str, Any], runtime: dict[str, Any], side: int = SIDE, batch: int = BATCH) -> Config:
    """Return the config of the proof for these sections `model` and `runtime`."""
    return make_config(
        {
            # The large epsilon, and `condition`, keep the rounding of one step from growing in the next steps. Without
            # momentum of the statistics, the evaluation depends on the statistics of the last step.
            "model": {**model, "norm_epsilon": 0.01, "norm_momentum": 0.0},
            "data": {"name": "digits", "image_size": side, "crop_fraction": 1.0, "workers": 1},
            "augment": {"crop": "none", "flip": 0.0},
            "train": {"batch_size": batch},
            "optimizer": {"lr": 0.002},
            "runtime": runtime,
        }
    )


def condition(classifier: Classifier) -> None:
    """Set the scale and shift of all BatchNorms so that few activations are near the kink of a ReLU.

    There, a rounding error switches a gradient on or off, and BatchNorm multiplies it layer by layer.
    """
    for parameter in classifier.get_parameters():
        for ending, value in ((".gamma", 0.25), (".beta", 1.0)):
            if parameter.name.endswith(ending):
                parameter.set_data(ms.Tensor(np.full(parameter.shape, value, np.float32)))


def train(config: Config, ranks: Optional[Ranks] = None, timed: Optional[Config] = None) -> dict[str, Any]:
    """Train STEPS steps and evaluate; the device is set already. With `timed`, measure the speed of this config too.

    Return the losses of the steps, the loss of the evaluation, the norm of each weight's change, and a checksum of all
    weights. With `timed`, also the images per second and the share of the time that waits for images.
    """
    ranks = ranks or Ranks()
    samples = load_samples(config.data, "train")
    tests = load_samples(config.data, "eval", samples.classes).take(np.arange(TEST_IMAGES))
    classifier = create_model(config.model, config.data, len(samples.classes))
    condition(classifier)
    if config.runtime.sync_norm:
        synchronise_norms(classifier, ranks.count)
    scaler = set_precision(classifier, config.runtime)
    if scaler is not None:
        scaler.scale_value.set_data(ms.Tensor(LOSS_SCALE, ms.float32))
    ranks.broadcast(classifier.get_parameters())
    use_kernels(classifier, config.runtime)
    step = TrainStep(classifier, create_optimizer(config, classifier), config, ranks, scaler=scaler)
    before = values(classifier)

    classifier.set_train(True)
    step.begin(np.full(RATES, config.optimizer.lr, np.float32))
    loader = train_loader(config, samples, ranks.rank, ranks.count)
    for images, labels in itertools.islice(loader.epoch(1), STEPS):
        step(ms.Tensor.from_numpy(images), ms.Tensor.from_numpy(labels))
    losses = step.results()[:, 0].tolist()
    after = values(classifier)
    evaluated = evaluate(
        classifier,
        make_eval_step(classifier, step.compiled),
        eval_loader(config, tests, rank=ranks.rank, ranks=ranks.count),
        ranks,
    )
    result = {
        "losses": losses,
        "evaluation_loss": evaluated.loss,
        "changes": {name: float(np.linalg.norm(after[name] - before[name])) for name in sorted(after)},
        "checksum": hashlib.sha256(b"".join(after[name].tobytes() for name in sorted(after))).hexdigest(),
    }
    if timed is not None:
        clock = measure(step, classifier, train_loader(timed, samples))
        result["images_per_second"], result["data_wait_fraction"] = clock.images_per_second, clock.data_wait_fraction
    return result


def values(classifier: Classifier) -> dict[str, np.ndarray]:
    """Return the values of the trainable parameters by name."""
    return {parameter.name: parameter.asnumpy().copy() for parameter in classifier.trainable_params()}


def measure(step: TrainStep, classifier: Classifier, loader: Loader) -> Clock:
    """Return the `Clock` of TIMED_STEPS steps, after a step that compiles. The learning rate is 0."""
    classifier.set_train(True)
    step.begin(np.zeros(RATES, np.float32))
    batches = loader.epoch(1)
    step(*map(ms.Tensor.from_numpy, next(batches)))
    step.results()
    window = Window(TIMED_STEPS)
    window.begin(loader.batch_size)
    asked = time.perf_counter()
    for images, labels in itertools.islice(batches, TIMED_STEPS):
        window.add(time.perf_counter() - asked)
        step(ms.Tensor.from_numpy(images), ms.Tensor.from_numpy(labels))
        asked = time.perf_counter()
    step.results()
    window.close(compiled=False)
    return window.clock


def differences(result: dict[str, Any], reference: dict[str, Any]) -> tuple[float, float]:
    """Return the largest relative difference of the losses, and the relative difference of the weights' changes."""
    found, expected = ([*one["losses"], one["evaluation_loss"]] for one in (result, reference))
    loss = np.max(np.abs(np.subtract(found, expected)) / np.abs(expected))  # NaN if a loss is NaN, unlike `max`
    names = reference["changes"]
    change = np.array([result["changes"][name] - names[name] for name in names])
    return float(loss), float(np.linalg.norm(change) / np.linalg.norm(list(names.values())))


def agrees(result: dict[str, Any], reference: dict[str, Any], precision: str) -> bool:
    """Return whether a result is as close to the reference as the precision allows; NaN is never close."""
    return all(found <= most for found, most in zip(differences(result, reference), TOLERANCES[precision]))
