"""The steps between two moments at which the host fetches their results from the device."""

import time
from typing import Optional

import numpy as np

from src.runs.progress import Clock
from src.runtime.parallel import Ranks

FIRST_STEPS = 10  # steps of the first window, whose speed is not known yet
SECONDS = 1.0  # duration of the later windows
MOST_STEPS = 1000  # of a window


class Window:
    """Counts steps and measures their time.

    A window has `every_steps` steps. With None, it has the steps of about a second, at most MOST_STEPS.
    """

    def __init__(self, every_steps: Optional[int]) -> None:
        self.every_steps = every_steps
        self.size = every_steps or FIRST_STEPS
        self.begin(0)

    def begin(self, images: int) -> None:
        """Begin an epoch, whose `Clock` is `clock`; each step trains on `images` images, over all ranks."""
        self.images = images
        self.clock = Clock()
        self.reset()

    def reset(self) -> None:
        """Begin the next window."""
        self.steps, self.waiting, self.began = 0, 0.0, time.perf_counter()

    def add(self, waiting: float) -> None:
        """Count a step that has waited for its batch for this many seconds."""
        self.steps += 1
        self.waiting += waiting

    @property
    def is_full(self) -> bool:
        return self.steps >= self.size

    def close(self, compiled: bool) -> float:
        """End the window, and return its seconds. A window that `compiled` is not part of the speed."""
        seconds = time.perf_counter() - self.began
        if not compiled and self.steps:
            self.clock.add(Clock(self.steps * self.images, seconds, self.waiting))
        self.reset()
        return seconds

    def choose_size(self, ranks: Ranks) -> None:
        """Set the number of steps of the next windows from the speed so far; all `ranks` get the same number."""
        if self.every_steps is None and self.clock.seconds:
            steps = round(SECONDS * self.clock.images_per_second / self.images)
            # The ranks must fetch together, because a rank that finds a loss that is not finite trains no further.
            first = np.array([steps if ranks.is_first else 0], np.int64)
            self.size = int(np.clip(ranks.sum(first)[0], 1, MOST_STEPS))
