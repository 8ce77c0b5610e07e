"""The random numbers of a training step, besides the random numbers of the data pipeline.

They are a function of the seed, the rank and the number of the batch in the run. So a resumed run draws the same
numbers as an uninterrupted run. The random generators inside a compiled step would start again in every process.
"""

from typing import Optional

import numpy as np

from src.config.schema import Config


class RandomDraws:
    """The random numbers of mixup, cutmix and dropout for each batch.

    `features` is the width of the layer that dropout acts on. `tensors(number, batch_size)` returns a tuple of arrays:

    - with mixup or cutmix, float32 (5): the `weight` of the partner image inside a box, and the top, bottom, left and
      right of the box as fractions of the image;
    - with dropout, uint8 (batch_size, features): 1 for a feature that stays, 0 for a dropped feature.
    """

    def __init__(self, config: Config, features: Optional[int], rank: int = 0) -> None:
        self.seed, self.rank = config.train.seed, rank
        self.mixup, self.cutmix = config.augment.mixup, config.augment.cutmix
        self.dropout, self.features = config.model.dropout, features

    def tensors(self, number: int, batch_size: int) -> tuple[np.ndarray, ...]:
        """Return the arrays of the batch that has this `number` in the run, from 0."""
        generator = np.random.default_rng((self.seed, self.rank, number))
        arrays: tuple[np.ndarray, ...] = ()
        if self.mixup or self.cutmix:
            arrays += (self.draw_box(generator),)
        if self.dropout:
            kept = generator.random((batch_size, self.features or 0), np.float32) >= self.dropout
            arrays += (kept.astype(np.uint8),)
        return arrays

    def draw_box(self, generator: np.random.Generator) -> np.ndarray:
        """Draw the weight and the box of mixup (arXiv 1710.09412, eq. 1) or cutmix (arXiv 1905.04899, eq. 1 and 2)."""
        if not self.cutmix or (self.mixup and generator.random() < 0.5):
            return np.array([1 - generator.beta(self.mixup, self.mixup), 0, 1, 0, 1], np.float32)
        side = np.sqrt(1 - generator.beta(self.cutmix, self.cutmix))
        centre = generator.random(2)
        low, high = np.clip(centre - side / 2, 0, 1), np.clip(centre + side / 2, 0, 1)
        return np.array([1, low[0], high[0], low[1], high[1]], np.float32)
