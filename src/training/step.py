"""What the device does with one batch, compiled or op by op."""

from typing import Any, Callable, Optional

import mindspore as ms
import numpy as np
from mindspore import ops
from mindspore.amp import LossScaler, all_finite

from src.config.schema import Config, TrainConfig
from src.errors import UserError
from src.models.classifier import Classifier
from src.runtime.parallel import Ranks
from src.training.distillation import Teacher
from src.training.loss import make_loss
from src.training.optimizer import Optimizer
from src.training.random_draws import RandomDraws
from src.weights.checkpoint import OPTIMIZER, fill


class TrainStep:
    """The training on one batch: loss, gradients and, with every `train.accumulate`-th batch, an update of the weights.

    `step(images, labels, rate, number)` takes the Tensors uint8 (N, H, W, C) and int32 (N), the learning rate, a
    float32 scalar, and the batch's number in the run, from 0. It returns the loss, a float32 scalar, and the logits,
    float32 (N, classes), both for the images of this rank alone.

    Between two batches a step keeps three things. `state` maps names to the parameters that checkpoints hold: the
    optimizer's and the loss scale. `gradient_sums` are zero after every update, when states are saved; `load` sets
    them to zero. `shapes` are the shapes of images that the step was run on, and so compiled for.
    """

    def __init__(
        self,
        classifier: Classifier,
        optimizer: Optimizer,
        config: Config,
        ranks: Optional[Ranks] = None,
        teacher: Optional[Teacher] = None,
        scaler: Optional[LossScaler] = None,
    ) -> None:
        ranks = ranks or Ranks()
        self.random_draws = RandomDraws(config, classifier.features, ranks.rank)
        self.accumulate = config.train.accumulate
        self.compiled = config.runtime.mode == "graph"
        self.shapes: set[tuple[int, ...]] = set()
        self.state = {parameter.name: parameter for parameter in optimizer.state}
        if scaler is not None:
            self.state[f"{OPTIMIZER}loss_scale"] = scaler.scale_value
            self.state[f"{OPTIMIZER}loss_scale_counter"] = scaler.counter
        self.gradient_sums: Any = ()

        loss_of = make_loss(classifier, config, teacher, scaler)
        gradients_of = ms.value_and_grad(loss_of, None, optimizer.parameters, has_aux=True)
        update = make_update(optimizer, config.train, ranks, scaler)

        def whole(images, labels, rate, *drawn):
            (_, loss, logits), gradients = gradients_of(images, labels, *drawn)
            return ops.depend(loss, update(gradients, rate)), logits

        self.whole = ms.jit(whole) if self.compiled else whole
        if self.accumulate == 1:
            return
        sums = self.gradient_sums = optimizer.parameters.clone("gradient_sum", "zeros")
        share = ms.Tensor(1 / self.accumulate, ms.float32)
        each = ops.HyperMap()

        def collect(images, labels, *drawn):
            (_, loss, logits), gradients = gradients_of(images, labels, *drawn)
            return ops.depend(loss, each(ops.partial(add, share), sums, gradients)), logits

        def finish(rate):
            done = update(each(value_of, sums), rate)
            return ops.depend(rate, each(clear, ops.depend(sums, done)))

        self.collect, self.finish = (ms.jit(f) if self.compiled else f for f in (collect, finish))

    def updates(self, batches: int) -> int:
        """Return how many updates so many batches make; too few batches for one update are a `UserError`."""
        if batches < self.accumulate:
            raise UserError(f"train.accumulate: {self.accumulate} is more than the {batches} batches of an epoch")
        return batches // self.accumulate

    def load(self, tensors: dict[str, Any], path: object) -> None:
        """Take the `state` from the tensors of the checkpoint at `path`, and begin a new update."""
        fill(self.state, tensors, path)
        for total in self.gradient_sums:
            total.set_data(ms.Tensor(np.zeros(total.shape, np.float32)))

    def __call__(self, images: ms.Tensor, labels: ms.Tensor, rate: ms.Tensor, number: int = 0):
        self.shapes.add(images.shape)
        drawn = [ms.Tensor(array) for array in self.random_draws.tensors(number, len(images))]
        if self.accumulate == 1:
            return self.whole(images, labels, rate, *drawn)
        loss, logits = self.collect(images, labels, *drawn)
        if (number + 1) % self.accumulate == 0:
            self.finish(rate)
        return loss, logits


def make_update(optimizer: Optimizer, train: TrainConfig, ranks: Ranks, scaler: Optional[LossScaler]) -> Callable:
    """Return `update(gradients, rate)`: average over the ranks, clip, and let the optimizer act.

    With a scaler the gradients belong to the scaled loss. Where a gradient is not finite, the weights stay and the
    loss scale shrinks.
    """
    mean_over_ranks = ranks.gradient_mean(optimizer.parameters)
    clip_norm, clip_value = train.clip_norm, train.clip_value

    def step(gradients, rate):
        if clip_norm is not None:
            gradients = ops.clip_by_global_norm(gradients, clip_norm)
        if clip_value is not None:
            gradients = ops.clip_by_value(gradients, -clip_value, clip_value)
        return optimizer(gradients, rate)

    def update(gradients, rate):
        if mean_over_ranks is not None:
            gradients = mean_over_ranks(gradients)
        if scaler is None:
            return step(gradients, rate)
        gradients = scaler.unscale(gradients)
        finite = all_finite(gradients)
        if finite:
            step(gradients, rate)
        return scaler.adjust(finite)

    return update


add, value_of, clear = (ops.MultitypeFuncGraph(name) for name in ("add", "value_of", "clear"))


@add.register("Tensor", "Tensor", "Tensor")
def add_share(share, total, gradient):
    return ops.assign_add(total, share * gradient)


@value_of.register("Tensor")
def value_of_one(total):
    return total * 1


@clear.register("Tensor")
def clear_one(total):
    return ops.assign(total, ops.zeros_like(total))
