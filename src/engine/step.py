"""What the device does with one batch, compiled or op by op."""

import mindspore as ms
from mindspore import ops
from mindspore.amp import all_finite

from src.engine.draws import Draws
from src.engine.loss import make_loss
from src.engine.parallel import Ranks
from src.errors import UserError


class TrainStep:
    """A batch's part in the training: loss, gradients and, with every `train.accumulate`-th batch, an update.

    `step(images, labels, rate, number)` takes the Tensors uint8 (N, H, W, C), int32 (N) and the learning rate, a
    float32 scalar, and the batch's number in the run, from 0. It returns the loss, a float32 scalar, and logits,
    float32 (N, classes), both of this rank's images alone. `teacher` is a `Teacher`, `scaler` a
    `mindspore.amp.LossScaler`.
    """

    def __init__(self, classifier, optimizer, config, ranks=None, teacher=None, scaler=None):
        ranks = ranks or Ranks()
        self.draws = Draws(config, classifier.features, ranks.rank)
        self.every = config.train.accumulate
        loss_of = make_loss(classifier, config, teacher, scaler)
        gradients_of = ms.value_and_grad(loss_of, None, optimizer.parameters, has_aux=True)
        update = make_update(optimizer, config.train, ranks, scaler)

        def whole(images, labels, rate, *drawn):
            (_, loss, logits), gradients = gradients_of(images, labels, *drawn)
            return ops.depend(loss, update(gradients, rate)), logits

        self.compiled = config.runtime.mode == "graph"
        self.shapes = set()  # of the images that it was run on
        self.whole = ms.jit(whole) if self.compiled else whole
        if self.every == 1:
            return
        sums = optimizer.parameters.clone("gradient_sum", "zeros")
        share = ms.Tensor(1 / self.every, ms.float32)
        each = ops.HyperMap()

        def collect(images, labels, *drawn):
            (_, loss, logits), gradients = gradients_of(images, labels, *drawn)
            return ops.depend(loss, each(ops.partial(add, share), sums, gradients)), logits

        def finish(rate):
            done = update(each(value_of, sums), rate)
            return ops.depend(rate, each(clear, ops.depend(sums, done)))

        self.collect, self.finish = (ms.jit(f) if self.compiled else f for f in (collect, finish))

    def updates(self, batches):
        """Return how many updates so many batches make; none is a `UserError`."""
        if batches < self.every:
            raise UserError(f"train.accumulate: {self.every} is more than the {batches} batches of an epoch")
        return batches // self.every

    def __call__(self, images, labels, rate, number=0):
        self.shapes.add(images.shape)
        drawn = [ms.Tensor(array) for array in self.draws.tensors(number, len(images))]
        if self.every == 1:
            return self.whole(images, labels, rate, *drawn)
        loss, logits = self.collect(images, labels, *drawn)
        if (number + 1) % self.every == 0:
            self.finish(rate)
        return loss, logits


def make_update(optimizer, train, ranks, scaler):
    """Return `update(gradients, rate)`: average over the ranks, clip, and let the optimizer act.

    With a scaler, gradients are of the scaled loss; where one is not finite the weights stay and the scale shrinks.
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


def make_eval_step(classifier, compiled):
    """Return `step(images) -> logits` for uint8 images (N, H, W, C); the classifier must be in evaluation mode."""

    def step(images):
        return classifier(images)

    return ms.jit(step) if compiled else step
