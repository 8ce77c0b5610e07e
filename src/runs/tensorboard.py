"""Write the events that TensorBoard shows: `tensorboard --logdir runs`."""

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mindspore  # noqa: F401 - before tensorboardX: it chooses a protobuf implementation that both can use
import numpy as np
from PIL import Image
from tensorboardX import RecordWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from src.figures import plot_confusion

PREFIX = "events.out.tfevents."
TAGS = {  # column of metrics.csv: tag; lr is not here, because it has a value per step
    "epoch": "epoch",
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "average_loss": "loss/average",
    "train_top1": "top1/train",
    "test_top1": "top1/test",
    "average_top1": "top1/average",
    "test_top5": "top5/test",
    "average_top5": "top5/average",
    "images_per_second": "speed/images_per_second",
    "data_wait_fraction": "speed/data_wait_fraction",
}


class Events:
    """Writes a new file of events in `folder`; the file names sort by time. The first step of a training is 1.

    `done` is the number of steps trained so far. If earlier files have later steps, TensorBoard hides these steps,
    because they are repeated. tensorboardX's SummaryWriter is not used: it keeps all scalars in memory, and loses the
    scalars in its queue when the run is killed.
    """

    def __init__(self, folder: Path, done: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # The path must be absolute, because RecordWriter takes a path that begins with s3: for a bucket.
        self.file = RecordWriter(str(folder.resolve() / f"{PREFIX}{time.time_ns()}"))
        self.done = done
        self.write(Event(file_version="brain.Event:2"))
        self.start_after(done)
        self.file.flush()

    def start_after(self, done: int) -> None:
        """Let TensorBoard hide the recorded values of all steps after `done`."""
        self.write(Event(step=done + 1, session_log=SessionLog(status=SessionLog.START)))

    def log_epoch(self, row: Mapping[str, Any], rates: np.ndarray) -> None:
        """Record the `row` of an epoch in metrics.csv, and `rates`, the learning rates of all its steps."""
        before = (row["epoch"] - 1) * len(rates)
        if before < self.done:
            self.start_after(before)  # because a rollback repeats steps
        for step, rate in enumerate(rates, before + 1):
            self.write_values(step, Summary.Value(tag="lr", simple_value=float(rate)))
        self.done = before + len(rates)
        values = [Summary.Value(tag=tag, simple_value=row[column]) for column, tag in TAGS.items() if column in row]
        self.write_values(self.done, *values)
        self.file.flush()

    def log_confusion(self, confusion: np.ndarray, classes: Sequence[str], step: int) -> None:
        """Record the figure of a confusion matrix, int64 (classes, classes), of the weights after `step` steps."""
        png = io.BytesIO()
        plot_confusion(confusion, classes, png)
        width, height = Image.open(png).size
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png.getvalue())
        self.write_values(step, Summary.Value(tag="confusion/best", image=image))
        self.file.flush()

    def write_values(self, step: int, *values: Any) -> None:
        self.write(Event(step=step, summary=Summary(value=values)))

    def write(self, event: Any) -> None:
        event.wall_time = time.time()
        self.file.write(event.SerializeToString())

    def close(self) -> None:
        self.file.close()


def remove_events(folder: Path) -> None:
    """Delete the event files in `folder`, and the folder if it is empty afterwards."""
    if not folder.is_dir():
        return
    for file in folder.glob(f"{PREFIX}*"):
        file.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
