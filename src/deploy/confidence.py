"""Calibrate the probabilities of an exported file: fit a temperature, and a threshold below which it is not sure."""

from typing import Optional

import numpy as np

from src.deploy.description import Confidence
from src.deploy.verify import Expected
from src.evaluation.calibration import fit_temperature, fit_threshold
from src.evaluation.evaluate import cross_entropy, softmax
from src.evaluation.reliability import reliability_of

MIN_IMAGES = 100  # a temperature that is fitted on fewer images says little


def fit_confidence(expected: Expected, kept_right: float) -> Optional[Confidence]:
    """Return the `Confidence` of a checkpoint with the outputs `expected`, or None if there are too few images.

    Half of the images, drawn at random, is for the fit, and the other half is for the test. `kept_right` is the share
    of the right answers that the threshold shall keep.
    """
    halves = drawn_halves(len(expected.labels))
    fitted, tested = (Expected(expected.labels[half], expected.logits[half]) for half in halves)
    if len(tested.labels) < MIN_IMAGES or fitted.top1 == 0:
        return None
    temperature = fit_temperature(fitted.logits, fitted.labels)
    confidence, right = answers(fitted, temperature)
    threshold = fit_threshold(confidence, right, kept_right)
    before, _ = answers(tested, 1.0)
    confidence, right = answers(tested, temperature)
    return Confidence(
        temperature=temperature,
        fitted_images=len(fitted.labels),
        tested_images=len(tested.labels),
        nll_before=float(cross_entropy(tested.logits, tested.labels).mean()),
        nll_after=float(cross_entropy(tested.logits / temperature, tested.labels).mean()),
        ece_before=reliability_of(before, right).ece,
        ece_after=reliability_of(confidence, right).ece,
        threshold=threshold,
        kept_right=kept_right,
        tested_kept_right=float((confidence[right] >= threshold).mean()) if right.any() else None,
        tested_refused_wrong=float((confidence[~right] < threshold).mean()) if not right.all() else None,
    )


def drawn_halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of two halves of `count` images, always the same; images that alternate get no pattern."""
    drawn = np.random.default_rng(0).permutation(count)
    return drawn[: (count + 1) // 2], drawn[(count + 1) // 2 :]


def answers(outputs: Expected, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the top-1 probability of each image, and whether its top-1 class is right."""
    confidence = softmax(outputs.logits / temperature).max(1)
    return confidence, outputs.logits.argmax(1) == outputs.labels
