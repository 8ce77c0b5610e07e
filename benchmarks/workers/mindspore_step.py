"""The worker of train_step.py for MindSpore: native kernels or stock operators, as the setting `kernels` says."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import src  # noqa: F401 - first, because it makes MindSpore quiet

# isort: split

import mindspore as ms
import numpy as np
from answering import serve

from src.config.load import make_config
from src.evaluation.evaluate import make_eval_step
from src.kernels.convert import use_kernels
from src.models import create_model
from src.runtime.device import use_device
from src.training.optimizer import create_optimizer
from src.training.step import TrainStep

MOST_STEPS = 100_000  # for which the training step gets learning rates


def prepare(settings):
    """Return a function that runs one step on random images and waits for its end, and facts about the network."""
    config = make_config(settings["config"], source="command line")
    use_device(config.runtime)
    ms.set_context(runtime_num_threads=settings["threads"])
    classifier = create_model(config.model, config.data, settings["classes"])
    parameters = sum(parameter.size for parameter in classifier.trainable_params())
    use_kernels(classifier, config.runtime)
    facts = {"version": f"MindSpore {ms.__version__}", "parameters": parameters}
    generator = np.random.default_rng(0)
    batch, side = settings["batch"], config.data.image_size
    images = generator.integers(0, 256, (batch, side, side, config.data.channels), dtype=np.uint8)
    classifier.set_train(not settings["forward"])
    if settings["forward"]:
        infer = make_eval_step(classifier, compiled=True)
        return lambda: infer(ms.Tensor(images)).asnumpy(), facts
    labels = generator.integers(0, settings["classes"], batch).astype(np.int32)
    train = TrainStep(classifier, create_optimizer(config, classifier), config)
    train.begin(np.full(MOST_STEPS, settings["lr"], np.float32))

    def train_and_wait():
        train(ms.Tensor(images), ms.Tensor(labels))
        train.results()

    return train_and_wait, facts


if __name__ == "__main__":
    serve(prepare)
