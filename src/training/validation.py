"""The evaluation at the end of each epoch, with the weights that `best.ckpt` would contain."""

import contextlib
from typing import Callable, Optional

import numpy as np

from src.config.schema import Config
from src.data.loading import Loader, eval_loader
from src.data.samples import Samples
from src.evaluation.evaluate import Evaluation, evaluate, make_eval_step
from src.models.classifier import Classifier
from src.runtime.parallel import Ranks
from src.training.moving_average import MovingAverage
from src.training.recalibration import Recalibration, batches_of_auto, polled


class Validation:
    """Evaluates a network on the test images, with the weights to ship.

    These are the moving average of the weights if the run keeps one, with recalibrated BatchNorm statistics if
    `train.recalibrate` asks for it. With a moving average, the raw weights are evaluated too. Create the `Validation`
    before `use_kernels`: recalibration looks for BatchNorms, and the native kernels replace them.
    """

    def __init__(
        self,
        config: Config,
        classifier: Classifier,
        train_samples: Samples,
        test_batches: Loader,
        ranks: Ranks,
        average: Optional[MovingAverage] = None,
    ) -> None:
        self.classifier, self.test_batches, self.ranks, self.average = classifier, test_batches, ranks, average
        compiled = config.runtime.mode == "graph"
        self.step = make_eval_step(classifier, compiled)
        self.recalibration = None
        batches = config.train.recalibrate
        if batches:
            loader = eval_loader(config, train_samples, rank=ranks.rank, ranks=ranks.count, seed=config.train.seed)
            if batches == "auto":
                batches = batches_of_auto(classifier, len(loader), loader.batch_size * ranks.count)
            if batches:
                self.recalibration = Recalibration(classifier, loader, batches, compiled, ranks)

    def __call__(self, poll: Callable[[], None]) -> tuple[Evaluation, dict[str, np.ndarray], dict[str, float]]:
        """Return the `Evaluation` of the weights to ship, these weights by name, and their columns of metrics.csv.

        `poll` is called before each batch and may raise an exception. The weights that training continues with do not
        change, with or without an exception.
        """
        row = {}
        if self.average is not None:
            row = columns("test", self.evaluate(poll))
        with contextlib.ExitStack() as changed:
            if self.average is not None:
                changed.enter_context(self.average.in_place())
            if self.recalibration is not None:
                changed.enter_context(self.recalibration.in_place(poll))
            result = self.evaluate(poll)
            shipped = {name: value.asnumpy().copy() for name, value in self.classifier.parameters_dict().items()}
        return result, shipped, {**row, **columns("test" if self.average is None else "average", result)}

    def evaluate(self, poll: Callable[[], None]) -> Evaluation:
        """Return the `Evaluation` of the network's current weights."""
        return evaluate(self.classifier, polled(self.step, poll), self.test_batches, self.ranks)


def columns(name: str, result: Evaluation) -> dict[str, float]:
    """Return the columns of metrics.csv for a result; `name` is `test` or `average`."""
    return {f"{name}_{key}": getattr(result, key) for key in ("loss", "top1", "top5")}
