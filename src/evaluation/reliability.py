"""Reliability: whether a network that is 90 % sure is right in 90 % of the cases."""

from dataclasses import dataclass

import numpy as np

BINS = 15  # as in "On Calibration of Modern Neural Networks" (Guo et al. 2017, https://arxiv.org/abs/1706.04599)


@dataclass(frozen=True)
class Reliability:
    """The images in each of BINS equal intervals of the top-1 probability; an interval includes its upper end."""

    images: np.ndarray  # int64 (BINS)
    hits: np.ndarray  # images whose top-1 class is right, int64 (BINS)
    confidence: np.ndarray  # sum of their top-1 probabilities, float64 (BINS)

    @property
    def ece(self) -> float:
        """The expected calibration error: the difference of accuracy and confidence, averaged over the images."""
        return float(np.abs(self.hits - self.confidence).sum() / self.images.sum())

    def rows(self) -> list[dict[str, float]]:
        """Return a dict per interval that has images: low, high, images, accuracy and mean confidence."""
        return [
            {
                "low": i / BINS,
                "high": (i + 1) / BINS,
                "images": int(self.images[i]),
                "accuracy": float(self.hits[i] / self.images[i]),
                "confidence": float(self.confidence[i] / self.images[i]),
            }
            for i in np.flatnonzero(self.images)
        ]


def reliability_of(confidence: np.ndarray, right: np.ndarray) -> Reliability:
    """Return the `Reliability` of images with the top-1 probability `confidence` (N); `right` (N) says which are right.

    A probability that is NaN makes the ECE NaN.
    """
    bins = np.clip(np.ceil(np.nan_to_num(confidence) * BINS).astype(int) - 1, 0, BINS - 1)
    hits = np.bincount(bins, right, BINS).astype(np.int64)
    return Reliability(np.bincount(bins, minlength=BINS), hits, np.bincount(bins, confidence, BINS))
