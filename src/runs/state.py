"""The progress of a run."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

from src.runs.progress import Clock


@dataclass
class RunState:
    """The progress of a run: all that resuming needs besides the config and the tensors. JSON can store it."""

    epoch: int = 0  # completed epochs
    batch: int = 0  # batches of the current epoch that are done
    ranks: int = 1  # number of processes that train together
    updates: int = 0  # updates of the weights in the whole run
    loss_sum: float = 0.0  # sum over the images of the current epoch
    correct: int = 0  # correctly predicted images in the current epoch
    images: int = 0  # images of the current epoch that are done
    epoch_seconds: float = 0.0  # training time of the current epoch so far
    rate_factor: float = 1.0  # factor of the learning rate; rollbacks reduce it
    rollbacks: int = 0  # number of rollbacks so far
    best: Optional[dict[str, Any]] = None  # the best epoch: epoch, top1, top5, loss on the test split
    ranking: list[dict[str, Any]] = field(default_factory=list)  # as `best`: epochs whose weights are kept, best first
    rows: list[dict[str, Any]] = field(default_factory=list)  # rows of metrics.csv
    clock: dict[str, Any] = field(default_factory=lambda: asdict(Clock()))  # sum of the epochs' clocks
    seconds: float = 0.0  # duration of all epochs, evaluations included

    def begin_epoch(self) -> None:
        """Set the sums of the current epoch to zero."""
        self.batch, self.loss_sum, self.correct, self.images, self.epoch_seconds = 0, 0.0, 0, 0, 0.0

    def rank(self, result: dict[str, Any], metric: str, keep: int) -> None:
        """Add the `result` of an epoch to the ranking, and keep the `keep` best results by a metric.

        `result` has the keys of `best`.
        """
        others = [row for row in self.ranking if row["epoch"] != result["epoch"]]
        # Of equal epochs, the earlier epoch comes first.
        self.ranking = sorted([*others, result], key=lambda row: (*score(row, metric), row["epoch"]))[:keep]
        self.best = self.ranking[0]


def score(row: Mapping[str, Any], metric: str) -> tuple[float, float]:
    """Return the sort key of an epoch by a metric; smaller is better. Of equal epochs, the smaller loss is better.

    `row` has the keys of `RunState.best`. A loss that is not finite is worse than all others.
    """
    if not math.isfinite(row["loss"]):
        return math.inf, math.inf
    return (row["loss"] if metric == "loss" else -row[metric], row["loss"])
