"""How far a run has come: all that resuming needs beside the config and the tensors."""

from dataclasses import asdict, dataclass, field
from typing import Optional

from src.runs.progress import Clock


@dataclass
class RunState:
    """How far a run has come: all that resuming needs beside the config and the tensors. JSON can hold it."""

    epoch: int = 0  # completed
    batch: int = 0  # done of the epoch under way
    ranks: int = 1  # that shared each batch
    updates: int = 0  # of the weights, in the whole run
    loss_sum: float = 0.0  # over the images of the epoch under way
    correct: int = 0
    images: int = 0
    epoch_seconds: float = 0.0
    rate_factor: float = 1.0  # what rollbacks made of the learning rate
    rollbacks: int = 0
    best: Optional[dict] = None  # epoch, top1, top5, loss on the test split
    ranking: list = field(default_factory=list)  # of the epochs whose weights are kept, the best first; as `best`
    rows: list = field(default_factory=list)  # of metrics.csv
    clock: dict = field(default_factory=lambda: asdict(Clock()))
    seconds: float = 0.0

    def begin_epoch(self):
        """Set the sums of the epoch under way to nothing."""
        self.batch, self.loss_sum, self.correct, self.images, self.epoch_seconds = 0, 0.0, 0, 0, 0.0

    def rank(self, result, metric, keep):
        """Put the `result` of an epoch, as `best`, into the ranking if it is among the `keep` best by a metric."""
        others = [row for row in self.ranking if row["epoch"] != result["epoch"]]
        # The earlier of equals comes first.
        self.ranking = sorted([*others, result], key=lambda row: (*score(row, metric), row["epoch"]))[:keep]
        self.best = self.ranking[0]


def score(row, metric):
    """Return a sort key of `best`'s rows by a metric: smaller is better, and of equals the smaller loss."""
    return (row["loss"] if metric == "loss" else -row[metric], row["loss"])
