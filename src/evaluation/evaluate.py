"""Evaluate a classifier on every image of a split once; sums are in float64."""

import collections
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

import mindspore as ms
import numpy as np

from src.data.loading import Loader
from src.evaluation.reliability import BINS, Reliability, reliability_of
from src.models.classifier import Classifier
from src.runtime.device import compile_graph
from src.runtime.parallel import Ranks

TOP_K = 5
STARTED = 4  # batches that the device gets before the host waits for their logits

Step = Callable[[ms.Tensor], ms.Tensor]  # uint8 images (N, H, W, C) -> logits
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # images, labels, logits


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a split. Accuracies are fractions of 1."""

    loss: float
    top1: float
    top5: float  # 1 if there are at most five classes and no logit is NaN
    images: int
    confusion: np.ndarray  # number of images by (true class, predicted class), int64 (classes, classes)
    reliability: Reliability

    def per_class(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Return a dict per class: name, precision, recall and number of images.

        Precision is None if the class was never predicted, recall is None if the class has no images.
        """
        hits, images, predicted = self.confusion.diagonal(), self.confusion.sum(1), self.confusion.sum(0)
        return [
            {
                "class": name,
                "precision": float(hits[i] / predicted[i]) if predicted[i] else None,
                "recall": float(hits[i] / images[i]) if images[i] else None,
                "images": int(images[i]),
            }
            for i, name in enumerate(classes)
        ]


def make_eval_step(classifier: Classifier, compiled: bool) -> Step:
    """Return `step(images) -> logits` for uint8 images (N, H, W, C); the classifier must be in evaluation mode."""

    def step(images):
        return classifier(images)

    return compile_graph(step) if compiled else step


def predict(step: Step, loader: Loader) -> Iterator[Batch]:
    """Yield (images uint8 (N, H, W, C), labels int32 (N), logits float32 (N, classes)) for each batch.

    `step` comes from `make_eval_step`.
    """
    started: list[tuple[np.ndarray, np.ndarray, ms.Tensor]] = []
    finished: collections.deque[Batch] = collections.deque()
    for images, labels in loader.epoch():
        started.append((images, labels, step(ms.Tensor.from_numpy(filled(images, loader.batch_size)))))
        # The caller works on an earlier batch while the device computes.
        if finished:
            yield finished.popleft()
        if len(started) == STARTED:
            finished.extend(results(started))
            started = []
    yield from finished
    yield from results(started)


def filled(images: np.ndarray, batch_size: int) -> np.ndarray:
    """Return images (N, H, W, C) with copies of the last image up to the full batch size.

    Another shape would compile the network again.
    """
    missing = batch_size - len(images)
    return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images


def results(started: list[tuple[np.ndarray, np.ndarray, ms.Tensor]]) -> list[Batch]:
    """Return the batches with their logits; this waits for the device, once for all of them."""
    return [(images, labels, logits.asnumpy()[: len(images)]) for images, labels, logits in started]


def evaluate(classifier: Classifier, step: Step, loader: Loader, ranks: Optional[Ranks] = None) -> Evaluation:
    """Return the `Evaluation` of a split, of which each rank's `loader` has a part.

    Afterwards the classifier is in evaluation mode.
    """
    classifier.set_train(False)
    return summarize(predict(step, loader), ranks)


def summarize(batches: Iterable[Batch], ranks: Optional[Ranks] = None) -> Evaluation:
    """Return the `Evaluation` of the batches that `predict` yields on all ranks."""
    ranks = ranks or Ranks()
    loss, top5 = 0.0, 0
    confusion: Any = None  # the first logits give its size
    bins = np.zeros((3, BINS))  # sums of the fields of Reliability
    for _, labels, logits in batches:
        classes = logits.shape[1]
        confusion = np.zeros((classes, classes), np.int64) if confusion is None else confusion
        label_logits = logits[np.arange(len(labels)), labels][:, None]
        loss += cross_entropy(logits, labels).sum()
        # Number of classes before the label: larger logits, and of equal logits the lower index, as in argmax.
        equal_before = (logits == label_logits) & (np.arange(classes) < labels[:, None])
        before = (logits > label_logits).sum(1) + equal_before.sum(1)
        # Comparisons with NaN are false. Logits with a NaN count as wrong, so as the class after the label.
        valid = ~np.isnan(logits).any(1)
        top5 += int((valid & (before < TOP_K)).sum())
        predicted = np.where(valid, logits.argmax(1), (labels + 1) % classes)
        np.add.at(confusion, (labels, predicted), 1)
        part = reliability_of(softmax(logits).max(1), predicted == labels)
        bins += np.stack([part.images, part.hits, part.confidence])
    loss, confusion = ranks.sum(np.array([loss], np.float64))[0], ranks.sum(confusion)
    top5, images = ranks.sum(np.array([top5], np.int64))[0], int(confusion.sum())
    bins = ranks.sum(bins)
    reliability = Reliability(bins[0].astype(np.int64), bins[1].astype(np.int64), bins[2])
    top1 = float(confusion.trace() / images)
    return Evaluation(float(loss / images), top1, float(top5 / images), images, confusion, reliability)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return -log softmax(logits)[label], float64 (N)."""
    return -log_softmax(logits)[np.arange(len(labels)), labels]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithms of the probabilities of logits (N, classes), float64."""
    with np.errstate(invalid="ignore"):  # the result of an infinite logit is NaN, without a warning
        shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits (N, classes), float64."""
    with np.errstate(invalid="ignore"):  # as in log_softmax
        exponentials = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)
