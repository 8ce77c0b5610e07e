"""What TensorBoard shows of a run: `tensorboard --logdir runs`."""

import io
import time

from PIL import Image
from tensorboardX import RecordWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from src.figures import plot_confusion

PREFIX = "events.out.tfevents."
TAGS = {  # of the columns of metrics.csv; lr has a value a step instead
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
    """A new file of events in `folder`, whose names sort by time; the first step of a training is 1.

    `done` steps were trained before: what earlier files hold of later ones is repeated, and TensorBoard hides it.
    tensorboardX's SummaryWriter would keep all scalars in memory and lose those of its queue when the run is killed.
    """

    def __init__(self, folder, done=0):
        folder.mkdir(parents=True, exist_ok=True)
        # Its path is absolute, for one that begins with s3: would be taken for a bucket.
        self.file = RecordWriter(str(folder.resolve() / f"{PREFIX}{time.time_ns()}"))
        self.done = done
        self.write(Event(file_version="brain.Event:2"))
        self.start_after(done)
        self.file.flush()

    def start_after(self, done):
        """Let TensorBoard hide what was recorded of later steps."""
        self.write(Event(step=done + 1, session_log=SessionLog(status=SessionLog.START)))

    def log_epoch(self, row, rates):
        """Record an epoch's `row` of metrics.csv, and `rates`, the learning rates of all its steps."""
        before = (row["epoch"] - 1) * len(rates)
        if before < self.done:
            self.start_after(before)  # the training was rolled back
        for step, rate in enumerate(rates, before + 1):
            self.write_values(step, Summary.Value(tag="lr", simple_value=float(rate)))
        self.done = before + len(rates)
        values = [Summary.Value(tag=tag, simple_value=row[column]) for column, tag in TAGS.items() if column in row]
        self.write_values(self.done, *values)
        self.file.flush()

    def log_confusion(self, confusion, classes, step):
        """Record the picture of a confusion matrix, int (classes, classes), that was counted after `step` steps."""
        png = io.BytesIO()
        plot_confusion(confusion, classes, png)
        width, height = Image.open(png).size
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png.getvalue())
        self.write_values(step, Summary.Value(tag="confusion/best", image=image))
        self.file.flush()

    def write_values(self, step, *values):
        self.write(Event(step=step, summary=Summary(value=values)))

    def write(self, event):
        event.wall_time = time.time()
        self.file.write(event.SerializeToString())

    def close(self):
        self.file.close()


def remove_events(folder):
    """Delete the files of events in `folder`, and the folder where nothing else is in it."""
    if not folder.is_dir():
        return
    for file in folder.glob(f"{PREFIX}*"):
        file.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
