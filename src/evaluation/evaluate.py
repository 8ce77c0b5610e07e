"""Evaluation: every image once, sums in float64."""

from dataclasses import dataclass
from typing import Callable

import mindspore as ms
import numpy as np

from src.models.classifier import Classifier
from src.runtime.parallel import Ranks

TOP_K = 5


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a split; accuracies are fractions of 1, `confusion` counts images by (true class, predicted class)."""

    loss: float
    top1: float
    top5: float  # where there are fewer than five classes, top-all
    images: int
    confusion: np.ndarray

    def per_class(self, classes):
        """Return a dict a class: name, precision, recall (None where nothing was predicted or shown) and images."""
        hits, shown, predicted = self.confusion.diagonal(), self.confusion.sum(1), self.confusion.sum(0)
        return [
            {
                "class": name,
                "precision": float(hits[i] / predicted[i]) if predicted[i] else None,
                "recall": float(hits[i] / shown[i]) if shown[i] else None,
                "images": int(shown[i]),
            }
            for i, name in enumerate(classes)
        ]


def make_eval_step(classifier: Classifier, compiled: bool) -> Callable[[ms.Tensor], ms.Tensor]:
    """Return `step(images) -> logits` for uint8 images (N, H, W, C); the classifier must be in evaluation mode."""

    def step(images):
        return classifier(images)

    return ms.jit(step) if compiled else step


def predict(step, loader):
    """Yield (images uint8 (N, H, W, C), labels int32 (N), logits float32 (N, classes)) a batch.

    `step` is `make_eval_step`'s.
    """
    for images, labels in loader.epoch():
        count = len(images)
        # Filled up to the full size: another shape would compile the network once more.
        filled = np.concatenate([images, np.repeat(images[-1:], loader.batch_size - count, axis=0)])
        yield images, labels, step(ms.Tensor(filled)).asnumpy()[:count]


def evaluate(classifier, step, loader, ranks=None):
    """Return the `Evaluation` of the split that the loaders of all ranks share.

    The classifier is left in evaluation mode.
    """
    classifier.set_train(False)
    return summarize(predict(step, loader), ranks)


def summarize(batches, ranks=None):
    """Return the `Evaluation` of what `predict` yields on all ranks."""
    ranks = ranks or Ranks()
    loss, top5, confusion = 0.0, 0, None
    for _, labels, logits in batches:
        classes = logits.shape[1]
        confusion = np.zeros((classes, classes), np.int64) if confusion is None else confusion
        own = logits[np.arange(len(labels)), labels][:, None]
        loss += cross_entropy(logits, labels).sum()
        # Better ones come first, and of equals the lower index, as argmax has it.
        ahead = (logits > own).sum(1) + ((logits == own) & (np.arange(classes) < labels[:, None])).sum(1)
        top5 += int((ahead < TOP_K).sum())
        np.add.at(confusion, (labels, logits.argmax(1)), 1)
    loss, confusion = ranks.sum(np.float64([loss]))[0], ranks.sum(confusion)
    top5, images = ranks.sum(np.int64([top5]))[0], int(confusion.sum())
    return Evaluation(float(loss / images), float(confusion.trace() / images), float(top5 / images), images, confusion)


def cross_entropy(logits, labels):
    """Return -log softmax(logits)[label], float64 (N)."""
    return -log_softmax(logits)[np.arange(len(labels)), labels]


def log_softmax(logits):
    """Return the logarithms of the probabilities of logits (N, classes), float64."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def softmax(logits):
    """Return the probabilities of logits (N, classes), float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)
