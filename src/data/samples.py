"""The images, labels and class names of one split of a data set."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Union

import numpy as np

from src.config.schema import DataConfig, resolved
from src.data.mindrecord import Packed


@dataclass(frozen=True)
class Samples:
    """One split of a data set.

    `images` are uint8 arrays (N, H, W, C), the paths of N image files, or N images packed into MindRecord files.
    `labels` are int32 (N): indices of `classes`.
    """

    images: Union[np.ndarray, list[str], Packed]
    labels: np.ndarray
    classes: list[str]
    bad: dict[int, str] = field(default_factory=dict)  # index of an image: its defect; only the defects found so far
    notes: tuple[str, ...] = ()  # lines that the user should see
    unreadable: dict[str, str] = field(default_factory=dict)  # path that was left out: why it cannot be read

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def are_files(self) -> bool:
        """Return whether the images are encoded, so that they must be decoded."""
        return not isinstance(self.images, np.ndarray)

    def take(self, indices: Union[np.ndarray, list[int]]) -> "Samples":
        """Return the samples at `indices`."""
        images = [self.images[i] for i in indices] if isinstance(self.images, list) else self.images[indices]
        bad = {new: self.bad[old] for new, old in enumerate(indices) if old in self.bad}
        return replace(self, images=images, labels=self.labels[indices], bad=bad)


def root_of(data: DataConfig) -> Path:
    """Return data.root, the folder of the data set, as a `Path`."""
    return Path(resolved(data.root))
