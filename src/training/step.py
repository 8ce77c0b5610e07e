"""The training step: what the device computes for one batch, in graph mode or in PyNative mode (op by op)."""

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
    """Trains on one batch: loss, gradients and, after every `train.accumulate` batches, an update of the weights.

    `step(images, labels, rate, number)` takes the Tensors uint8 (N, H, W, C) and int32 (N), the learning rate, a
    float32 scalar, and the number of the batch in the run, from 0. It returns the loss, a float32 scalar, and the
    logits, float32 (N, classes). Both belong to the images of this rank only.

    A step keeps three things between two batches:

    - `state` maps names to the parameters that a checkpoint stores: the optimizer's parameters and the loss scale.
    - `gradient_sums` are the sums of gradient accumulation. They are zero after each update, and states are saved only
      then, so a checkpoint does not store them. `load` sets them to zero.
    - `shapes` are the image shapes that the step has run on. In graph mode the step is compiled for each shape.
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

        def train_batch(images, labels, rate, *random_numbers):
            (_, loss, logits), gradients = gradients_of(images, labels, *random_numbers)
            return ops.depend(loss, update(gradients, rate)), logits

        self.train_batch: Callable[..., Any] = ms.jit(train_batch) if self.compiled else train_batch
        if self.accumulate == 1:
            return
        sums = self.gradient_sums = optimizer.parameters.clone("gradient_sum", "zeros")
        share = ms.Tensor(1 / self.accumulate, ms.float32)
        each = ops.HyperMap()

        def add_gradients(images, labels, *random_numbers):
            (_, loss, logits), gradients = gradients_of(images, labels, *random_numbers)
            return ops.depend(loss, each(ops.partial(add, share), sums, gradients)), logits

        def apply_sums(rate):
            done = update(each(value_of, sums), rate)
            return ops.depend(rate, each(clear, ops.depend(sums, done)))

        self.add_gradients: Callable[..., Any] = ms.jit(add_gradients) if self.compiled else add_gradients
        self.apply_sums: Callable[..., Any] = ms.jit(apply_sums) if self.compiled else apply_sums

    def updates(self, batches: int) -> int:
        """Return the number of updates in an epoch with this many `batches`; zero updates are a `UserError`."""
        if batches < self.accumulate:
            raise UserError(f"train.accumulate: {self.accumulate} is more than the {batches} batches of an epoch")
        return batches // self.accumulate

    def load(self, tensors: dict[str, Any], path: object) -> None:
        """Set the `state` to the `tensors` of the checkpoint at `path`, and the gradient sums to zero."""
        fill(self.state, tensors, path)
        for total in self.gradient_sums:
            total.set_data(ms.Tensor(np.zeros(total.shape, np.float32)))

    def __call__(
        self, images: ms.Tensor, labels: ms.Tensor, rate: ms.Tensor, number: int = 0
    ) -> tuple[ms.Tensor, ms.Tensor]:
        self.shapes.add(images.shape)
        random_numbers = [ms.Tensor(array) for array in self.random_draws.tensors(number, len(images))]
        if self.accumulate == 1:
            return self.train_batch(images, labels, rate, *random_numbers)
        loss, logits = self.add_gradients(images, labels, *random_numbers)
        if (number + 1) % self.accumulate == 0:
            self.apply_sums(rate)
        return loss, logits


def make_update(optimizer: Optimizer, train: TrainConfig, ranks: Ranks, scaler: Optional[LossScaler]) -> Callable:
    """Return `update(gradients, rate)`: it averages the gradients over the ranks, clips them, and updates the weights.

    With a `scaler`, the gradients belong to the scaled loss. If a gradient is not finite on one of the ranks, then
    on all ranks the weights stay the same and the loss scale is halved. `src/runtime/precision.py` says why the ranks
    have to ask each other.
    """
    mean_over_ranks, all_true = ranks.gradient_mean(optimizer.parameters), ranks.all_true()
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
        if all_true is not None:
            finite = all_true(finite)
        if finite:
            step(gradients, rate)
        return scaler.adjust(finite)

    return update


add, value_of, clear = (ops.MultitypeFuncGraph(name) for name in ("add", "value_of", "clear"))


@add.register("Tensor", "Tensor", "Tensor")
def add_share(share: ms.Tensor, total: ms.Parameter, gradient: ms.Tensor) -> ms.Tensor:
    """Add the gradient times `share` to a gradient sum."""
    return ops.assign_add(total, share * gradient)


@value_of.register("Tensor")
def value_of_sum(total: ms.Parameter) -> ms.Tensor:
    """Return the value of a gradient sum as a new Tensor."""
    return total * 1


@clear.register("Tensor")
def clear_sum(total: ms.Parameter) -> ms.Tensor:
    """Set a gradient sum to zero."""
    return ops.assign(total, ops.zeros_like(total))
