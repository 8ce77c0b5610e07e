"""The training step: what the device computes for one batch, in graph mode or in PyNative mode (op by op)."""

from typing import Any, Callable, Optional

import mindspore as ms
import numpy as np
from mindspore import ops
from mindspore.amp import LossScaler, all_finite

from src.config.schema import Config, TrainConfig
from src.errors import UserError
from src.models.classifier import Classifier
from src.runtime.device import compile_graph
from src.runtime.parallel import Ranks
from src.runtime.setter import Setter
from src.training.distillation import Teacher
from src.training.loss import make_loss
from src.training.optimizer import Optimizer
from src.training.random_draws import RandomDraws
from src.training.recalibration import moving_statistics
from src.weights.checkpoint import OPTIMIZER, matching

ROWS = 1024  # batches whose results stay on the device, at most; a window has no more steps
DRAWS = 64  # batches whose random numbers are drawn at once


class TrainStep:
    """Trains on the batches of an epoch: loss, gradients and, after every `train.accumulate` batches, an update.

    `begin` names the next batch of an epoch. Each `step(images, labels)` then trains on a batch: the Tensors uint8
    (N, H, W, C) and int32 (N). It starts the work of the device and does not wait for it. Losses and hits stay on the
    device until `results` fetches them.

    A step keeps these things between two batches:

    - `state` maps names to the parameters that a checkpoint stores: the optimizer's parameters and the loss scale.
    - `gradient_sums` are the sums of gradient accumulation. They are zero after each update, and states are saved only
      then, so a checkpoint does not store them. `load` sets them to zero.
    - `position` is the number of the next batch in its epoch. On the device, it selects the learning rate and the
      random numbers from tables of many batches.
    - `record` has a row for each of the last ROWS batches: the mean loss, and the number of hits, over all ranks.
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
        self.accumulate = accumulate = config.train.accumulate
        self.shapes: set[tuple[int, ...]] = set()
        self.state = {parameter.name: parameter for parameter in optimizer.state}
        if scaler is not None:
            self.state[f"{OPTIMIZER}loss_scale"] = scaler.scale_value
            self.state[f"{OPTIMIZER}loss_scale_counter"] = scaler.counter
        self.position = position = ms.Parameter(ms.Tensor(0, ms.int32), name="position", requires_grad=False)
        self.record = ms.Parameter(ms.Tensor(np.zeros((ROWS, 2), np.float32)), name="record", requires_grad=False)
        self.set_state, self.set_position, self.set_sums = Setter(self.state.values()), Setter([position]), Setter([])
        self.epoch = self.batches = self.batch = self.fetched = 0
        self.tables: Optional[tuple[ms.Tensor, ...]] = None

        self.compiled = config.runtime.mode == "graph"
        compile = compile_graph if self.compiled else lambda function: function
        loss_of = make_loss(classifier, config, teacher, scaler)
        gradients_of = ms.value_and_grad(loss_of, None, optimizer.parameters, has_aux=True)
        update = make_update(optimizer, config.train, ranks, scaler)
        write = make_writer(self.record, position, ranks)

        def train_batch(images, labels, rates, *tables):
            (_, loss, logits), gradients = gradients_of(images, labels, *rows_at(position, tables))
            return write(loss, logits, labels, update(gradients, ops.gather(rates, position, 0)))

        self.train_batch: Callable[..., Any] = compile(train_batch)
        # Each rank's BatchNorms saw other images. Every state and every evaluation needs the same statistics on all
        # ranks, and a state may be saved after each update.
        average = ranks.averaging(moving_statistics(classifier))
        self.average_statistics: Optional[Callable[[], Any]] = None if average is None else compile(average)
        self.gradient_sums: Any = ()
        if accumulate == 1:
            return
        sums = self.gradient_sums = optimizer.parameters.clone("gradient_sum", "zeros")
        self.set_sums = Setter(sums)
        share = ms.Tensor(1 / accumulate, ms.float32)
        each = ops.HyperMap()

        def add_gradients(images, labels, *tables):
            (_, loss, logits), gradients = gradients_of(images, labels, *rows_at(position, tables))
            return write(loss, logits, labels, each(ops.partial(add, share), sums, gradients))

        def apply_sums(rates):
            rate = ops.gather(rates, position // accumulate - 1, 0)
            done = update(each(value_of, sums), rate)
            return ops.depend(rate, each(clear, ops.depend(sums, done)))

        self.add_gradients: Callable[..., Any] = compile(add_gradients)
        self.apply_sums: Callable[..., Any] = compile(apply_sums)

    def updates(self, batches: int) -> int:
        """Return the number of updates in an epoch with this many `batches`; zero updates are a `UserError`."""
        if batches < self.accumulate:
            raise UserError(f"train.accumulate: {self.accumulate} is more than the {batches} batches of an epoch")
        return batches // self.accumulate

    def load(self, tensors: dict[str, Any], path: object) -> None:
        """Set the `state` to the `tensors` of the checkpoint at `path`, and the gradient sums to zero."""
        self.set_state(matching(self.state, tensors, path))
        self.set_sums([np.zeros(total.shape, np.float32) for total in self.gradient_sums])

    def begin(self, rates: np.ndarray, epoch: int = 0, batch: int = 0) -> None:
        """Continue with this `batch` of an `epoch`, both counted from 0.

        `rates` has the learning rate of each update of the epoch, float32.
        """
        self.rates = ms.Tensor(rates)
        self.epoch, self.batches, self.batch, self.fetched = epoch, len(rates) * self.accumulate, batch, batch
        self.tables = None
        self.set_position([np.array(batch, np.int32)])

    def __call__(self, images: ms.Tensor, labels: ms.Tensor) -> None:
        self.shapes.add(images.shape)
        if self.tables is None or self.batch % DRAWS == 0:
            self.tables = self.draw(len(images))
        self.batch += 1
        if self.accumulate == 1:
            self.train_batch(images, labels, self.rates, *self.tables)
        else:
            self.add_gradients(images, labels, *self.tables)
            if self.batch % self.accumulate == 0:
                self.apply_sums(self.rates)
        if self.average_statistics is not None and self.batch % self.accumulate == 0:
            self.average_statistics()

    def draw(self, batch_size: int) -> tuple[ms.Tensor, ...]:
        """Return the tables of the random numbers for the next batches; row i belongs to batch i modulo DRAWS."""
        first = self.epoch * self.batches + self.batch // DRAWS * DRAWS
        numbers = range(first, first + min(DRAWS, self.batches))
        rows = [self.random_draws.tensors(number, batch_size) for number in numbers]
        return tuple(ms.Tensor(np.stack(arrays)) for arrays in zip(*rows))

    def results(self) -> np.ndarray:
        """Return the mean loss and the hits, over all ranks, of each batch since the last call: float64 (batches, 2).

        It waits for the device. At most ROWS batches may have passed.
        """
        rows = self.record.asnumpy().astype(np.float64)[np.arange(self.fetched, self.batch) % ROWS]
        self.fetched = self.batch
        return rows


def make_writer(record: ms.Parameter, position: ms.Parameter, ranks: Ranks) -> Callable:
    """Return `write(loss, logits, labels, done)`: it writes a row of the `record` and moves the `position` on.

    `done` is what has to be computed too. The result is a Tensor that depends on all of this.
    """
    total = ranks.total()
    shares = ms.Tensor([1 / ranks.count, 1], ms.float32)
    largest = ops.Argmax(-1, ms.int32)

    def write(loss, logits, labels, done):
        hits = ops.reduce_sum(ops.cast(ops.equal(largest(logits), labels), ms.float32))
        row = ops.stack((loss, hits))
        if total is not None:
            row = total(row) * shares
        # `%` would become an operator that MindSpore does not have on a GPU.
        place = ops.reshape(ops.floor_mod(position, ROWS), (1,))
        written = ops.scatter_update(record, place, ops.reshape(row, (1, 2)))
        return ops.depend(loss, (done, written, ops.assign(position, position + 1)))

    return write


def rows_at(position: ms.Parameter, tables: tuple[ms.Tensor, ...]) -> tuple[ms.Tensor, ...]:
    """Return the rows of the `tables` for the batch at this `position` of the epoch."""
    rows: tuple[ms.Tensor, ...] = ()
    for table in tables:
        rows += (ops.gather(table, ops.floor_mod(position, DRAWS), 0),)
    return rows


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
