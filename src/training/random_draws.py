"""The random numbers of a training step beside those of the data pipeline.

They are a function of seed, rank and the batch's number in the run, so that a resumed run draws what an uninterrupted
one would have; the generators that a compiled step brings along start anew in every process.
"""

import numpy as np


class RandomDraws:
    """Mixing of images and dropout's masks for each batch.

    `features` is the width of the layer that dropout acts on; `tensors(number, batch_size)` returns a tuple of arrays:

    - with mixup or cutmix, float32 (5): the share `weight` of the partner inside a box, and the box's top, bottom, left
      and right as fractions of the image;
    - with dropout, uint8 (batch_size, features): 1 where a feature stays.
    """

    def __init__(self, config, features, rank=0):
        self.seed, self.rank = config.train.seed, rank
        self.mixup, self.cutmix = config.augment.mixup, config.augment.cutmix
        self.dropout, self.features = config.model.dropout, features

    def tensors(self, number, batch_size):
        generator = np.random.default_rng((self.seed, self.rank, number))
        drawn = ()
        if self.mixup or self.cutmix:
            drawn += (self.mixing(generator),)
        if self.dropout:
            kept = generator.random((batch_size, self.features), np.float32) >= self.dropout
            drawn += (kept.astype(np.uint8),)
        return drawn

    def mixing(self, generator):
        """Draw the weight and box of mixup (arXiv 1710.09412, eq. 1) or cutmix (arXiv 1905.04899, eq. 1 and 2)."""
        if not self.cutmix or (self.mixup and generator.random() < 0.5):
            return np.float32([1 - generator.beta(self.mixup, self.mixup), 0, 1, 0, 1])
        side = np.sqrt(1 - generator.beta(self.cutmix, self.cutmix))
        centre = generator.random(2)
        low, high = np.clip(centre - side / 2, 0, 1), np.clip(centre + side / 2, 0, 1)
        return np.float32([1, low[0], high[0], low[1], high[1]])
