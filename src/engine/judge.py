"""The evaluation at an epoch's end: of the weights as they would be shipped."""

import contextlib

from src.data.loading import eval_loader
from src.engine.average import MovingAverage
from src.engine.evaluate import evaluate
from src.engine.norms import Recalibration
from src.engine.step import make_eval_step


class Judge:
    """Evaluates a network: its weights' moving average where the run keeps one, BatchNorms recalibrated where asked.

    To be made before the native kernels are put into the classifier.
    """

    def __init__(self, config, classifier, train_samples, test_batches, ranks):
        self.classifier, self.test_batches, self.ranks = classifier, test_batches, ranks
        decay = config.train.ema_decay
        self.average = MovingAverage(classifier, decay) if decay is not None else None
        compiled = config.runtime.mode == "graph"
        self.step = make_eval_step(classifier, compiled)
        self.recalibration = None
        if config.train.recalibrate:
            batches = eval_loader(config, train_samples)
            self.recalibration = Recalibration(classifier, batches, config.train.recalibrate, compiled)

    def __call__(self):
        """Return the `Evaluation` of the weights as they would be shipped, these, and the part of metrics.csv's row.

        The weights are {name: array}; those that training goes on with stay what they are.
        """
        row = {}
        if self.average is not None:
            row = self.columns("test", self.evaluate())
        with contextlib.ExitStack() as changed:
            for change in (self.average, self.recalibration):
                if change is not None:
                    changed.enter_context(change.in_place())
            result = self.evaluate()
            shipped = {name: value.asnumpy().copy() for name, value in self.classifier.parameters_dict().items()}
        return result, shipped, {**row, **self.columns("average" if self.average is not None else "test", result)}

    def evaluate(self):
        return evaluate(self.classifier, self.step, self.test_batches, self.ranks)

    def columns(self, name, result):
        return {f"{name}_{key}": getattr(result, key) for key in ("loss", "top1", "top5")}
