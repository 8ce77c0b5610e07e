"""Temperature scaling: make the probabilities of a trained network say how often it is right."""

import numpy as np

from src.evaluation.evaluate import softmax

LARGEST = 20.0  # temperatures are searched from 1 / LARGEST to LARGEST
STEPS = 60  # of the bisection


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature T for which softmax(logits / T) has the smallest negative log-likelihood.

    `logits` are float (N, classes), `labels` int (N). The labels are smoothed by 1 / (N + 2), as in Platt's scaling:
    otherwise T would go to 0 if every image is right. Sources: Guo et al. 2017 (https://arxiv.org/abs/1706.04599),
    section 4.2; Platt, "Probabilistic Outputs for Support Vector Machines" (1999), section 2.2.
    """
    count, classes = logits.shape
    smoothing = 1 / (count + 2)
    values = logits.astype(np.float64)
    own = values[np.arange(count), labels]
    others = (values.sum(1) - own) / (classes - 1)
    wanted = ((1 - smoothing) * own + smoothing * others).mean()
    # The loss is convex in 1 / T. Its derivative: the mean logit that the probabilities expect, minus `wanted`.
    low, high = -np.log(LARGEST), np.log(LARGEST)  # of log(1 / T)
    for _ in range(STEPS):
        middle = (low + high) / 2
        expected = (softmax(values * np.exp(middle)) * values).sum(1).mean()
        low, high = (low, middle) if expected > wanted else (middle, high)
    return float(np.exp(-(low + high) / 2))


def fit_threshold(confidence: np.ndarray, right: np.ndarray, kept: float) -> float:
    """Return the largest threshold that keeps at least the share `kept` of the right answers.

    An answer is kept if its top-1 probability `confidence` (N) is at least the threshold. `right` (N) says which
    answers are right; at least one answer must be.
    """
    found = np.sort(confidence[right])[::-1]
    return float(found[max(1, int(np.ceil(kept * len(found) - 1e-9))) - 1])
