"""What a split of a dataset is."""

from dataclasses import dataclass, field, replace
from typing import Union

import numpy as np

from src.data.mindrecord import Packed


@dataclass(frozen=True)
class Samples:
    """One split of a dataset.

    `images` are uint8 arrays (N, H, W, C), the paths of N image files, or N images packed into MindRecord files;
    `labels` int32 (N), indices of `classes`.
    """

    images: Union[np.ndarray, list, Packed]
    labels: np.ndarray
    classes: list
    bad: dict = field(default_factory=dict)  # what is wrong with an image, by index, as far as listing has shown it
    notes: tuple = ()  # lines that the user should see

    def __len__(self):
        return len(self.labels)

    @property
    def are_files(self):
        """Whether images are encoded, and so have to be decoded."""
        return not isinstance(self.images, np.ndarray)

    def take(self, indices):
        """Return the samples at `indices`."""
        images = [self.images[i] for i in indices] if isinstance(self.images, list) else self.images[indices]
        bad = {new: self.bad[old] for new, old in enumerate(indices) if old in self.bad}
        return replace(self, images=images, labels=self.labels[indices], bad=bad)
