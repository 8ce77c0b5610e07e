"""The evaluation at an epoch's end, of the weights as they would be shipped."""

import contextlib
from typing import Optional

import numpy as np

from src.config.schema import Config
from src.data.loading import Loader, eval_loader
from src.data.samples import Samples
from src.evaluation.evaluate import Evaluation, evaluate, make_eval_step
from src.models.classifier import Classifier
from src.runtime.parallel import Ranks
from src.training.moving_average import MovingAverage
from src.training.recalibration import Recalibration


class Validation:
    """Evaluates a network on the test images: its moving average where the run keeps one, with recalibrated BatchNorm.

    Make it before the native kernels take the places of layers: recalibration looks for BatchNorm.
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
        if config.train.recalibrate:
            batches = eval_loader(config, train_samples)
            self.recalibration = Recalibration(classifier, batches, config.train.recalibrate, compiled)

    def __call__(self) -> tuple[Evaluation, dict[str, np.ndarray], dict[str, float]]:
        """Return the `Evaluation` of the weights to ship, these weights by name, and their part of metrics.csv's row.

        The weights that training continues with stay as they are.
        """
        row = {}
        if self.average is not None:
            row = columns("test", self.evaluate())
        with contextlib.ExitStack() as changed:
            for change in (self.average, self.recalibration):
                if change is not None:
                    changed.enter_context(change.in_place())
            result = self.evaluate()
            shipped = {name: value.asnumpy().copy() for name, value in self.classifier.parameters_dict().items()}
        return result, shipped, {**row, **columns("test" if self.average is None else "average", result)}

    def evaluate(self) -> Evaluation:
        return evaluate(self.classifier, self.step, self.test_batches, self.ranks)


def columns(name: str, result: Evaluation) -> dict[str, float]:
    return {f"{name}_{key}": getattr(result, key) for key in ("loss", "top1", "top5")}
