"""The loss of a batch: cross-entropy with label smoothing, mixup or cutmix, and knowledge distillation."""

from typing import Any, Callable, Optional

import mindspore as ms
from mindspore import ops
from mindspore.amp import LossScaler

from src.config.schema import Config
from src.models.classifier import Classifier
from src.training.distillation import Teacher


def make_loss(
    classifier: Classifier,
    config: Config,
    teacher: Optional[Teacher] = None,
    scaler: Optional[LossScaler] = None,
) -> Callable[..., tuple[ms.Tensor, ms.Tensor, ms.Tensor]]:
    """Return the function `loss_of(images, labels, *random_numbers) -> (scaled loss, loss, logits)`.

    images: uint8 (N, H, W, C), labels: int32 (N), random_numbers: the Tensors of `RandomDraws`; loss: float32 scalar,
    logits: float32 (N, classes). With a `teacher`, the loss is (1 - weight) * cross-entropy + weight * distillation
    (arXiv 1503.02531, section 2). The gradients are computed of the scaled loss: the loss times the scale of `scaler`.
    """
    smoothing = config.train.label_smoothing
    mixes, drops = config.augment.mixup > 0 or config.augment.cutmix > 0, config.model.dropout > 0
    weight: Any = config.distill.weight  # with a teacher, the schema sets weight and temperature
    temperature: Any = config.distill.temperature

    def loss_of(images, labels, *random_numbers):
        pixels = classifier.preprocess(images)
        share, partners = 0.0, labels
        if mixes:
            pixels, share = mix(pixels, random_numbers[0])
            partners = ops.flip(labels, (0,))
        logits = classifier.classify(pixels, random_numbers[-1] if drops else None)
        scores = ops.log_softmax(logits, -1)
        loss = cross_entropy(scores, labels, smoothing)
        if mixes:
            loss = (1 - share) * loss + share * cross_entropy(scores, partners, smoothing)
        if teacher is not None:
            loss = (1 - weight) * loss + weight * distillation(logits, teacher(pixels), temperature)
        return (loss if scaler is None else scaler.scale(loss)), loss, logits

    return loss_of


def cross_entropy(scores: ms.Tensor, labels: ms.Tensor, smoothing: float) -> ms.Tensor:
    """Return the mean cross-entropy of log-probabilities (N, classes) with label smoothing over all classes.

    Label smoothing as in arXiv 1512.00567, section 7.
    """
    label_scores = ops.gather_elements(scores, 1, ops.expand_dims(labels, 1))
    return -((1 - smoothing) * label_scores.mean() + smoothing * scores.mean())


def mix(pixels: ms.Tensor, box: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
    """Mix each image of a batch (N, C, H, W) with its partner: image i with image N - 1 - i.

    `box` is (weight, top, bottom, left, right), as `RandomDraws` draws it. Return the mixed images, and the share of
    the partner in the area, a float32 scalar.
    """
    height, width = pixels.shape[-2:]
    weight, top, bottom, left, right = box[0], box[1], box[2], box[3], box[4]
    rows, columns = ops.arange(height) + 0.5, ops.arange(width) + 0.5
    rows = ops.logical_and(rows > top * height, rows < bottom * height).astype(pixels.dtype)
    columns = ops.logical_and(columns > left * width, columns < right * width).astype(pixels.dtype)
    mask = weight * ops.expand_dims(rows, 1) * ops.expand_dims(columns, 0)
    return pixels + mask * (ops.flip(pixels, (0,)) - pixels), mask.mean()


def distillation(logits: ms.Tensor, teacher_logits: ms.Tensor, temperature: float) -> ms.Tensor:
    """Return T² * KL(teacher || student), the mean over images, of logits divided by the temperature T."""
    target = ops.log_softmax(ops.stop_gradient(teacher_logits) / temperature, -1)
    scores = ops.log_softmax(logits / temperature, -1)
    return temperature**2 * ops.reduce_sum(ops.exp(target) * (target - scores), -1).mean()
