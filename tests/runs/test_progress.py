import io
import re
import sys

import numpy as np
import pytest

from src.runs.progress import Clock, Progress, duration

RATE = np.float32(0.0125)
ROW = {"epoch": 1, "train_loss": 1.5, "test_loss": 1.25, "test_top1": 0.875, "images_per_second": 812.4}


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Time:
    """A clock whose time the test sets."""

    seconds = 1000.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Time()


def test_without_a_terminal_lines_are_half_a_minute_apart(clock, capsys):
    progress = Progress(2, 100, clock)
    progress.start_epoch(1)
    lines = []
    for step in range(1, 101):
        clock.seconds += 1.0
        progress.show(step, 2.5, RATE, Clock(64 * step, 2.0 * step, 0.5 * step))
        lines += [(step, line) for line in capsys.readouterr().out.splitlines()]
    assert [step for step, _ in lines] == [30, 60, 90]
    # 200 steps of one second each.
    assert lines[1][1] == "step 60/100 of epoch 1/2  loss 2.5000  lr 0.0125  32 images/s  25.0% waiting  ETA 2:20"
    assert capsys.readouterr().err == ""


def test_short_epochs_have_one_line_each(clock, capsys):
    progress = Progress(3, 10, clock)
    for epoch in (1, 2, 3):
        progress.start_epoch(epoch)
        for step in range(1, 11):
            clock.seconds += 2.0
            progress.show(step, 1.0, RATE, Clock())
        clock.seconds += 5.0
        progress.end_epoch({**ROW, "epoch": epoch})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  loss")[0] for line in lines] == ["epoch   1/3", "epoch   2/3", "epoch   3/3"]
    assert lines[0].startswith("epoch   1/3  loss 1.5000  test loss 1.2500  test top-1 87.50%  812 images/s")
    # The time of the first step does not count, the time of evaluations counts: 9 steps took 23 s, 20 steps are left.
    assert lines[0].endswith("  ETA 0:51")
    assert lines[2].endswith("812 images/s")


def test_the_line_shows_the_metrics_of_the_moving_average(clock, capsys):
    progress = Progress(1, 1, clock)
    progress.end_epoch({**ROW, "average_loss": 0.25, "average_top1": 0.9375})
    assert "  average loss 0.2500  average top-1 93.75%  812 images/s" in capsys.readouterr().out


def test_the_bar_of_a_terminal(clock, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    progress = Progress(2, 4, clock)
    progress.start_epoch(1)
    for step in range(1, 5):
        clock.seconds += 100.0
        progress.show(step, 0.75, RATE, Clock(32 * step, 0.1 * step, 0.0))
    progress.bar.refresh()
    drawn = re.split(r"[\r\n]", sys.stderr.getvalue())[-1]
    assert re.match(r" 50% \|.*\| epoch 1/2  loss", drawn)
    assert drawn.rstrip().endswith("  loss 0.7500  lr 0.0125  320 images/s  0.0% waiting  ETA 6:40")
    assert capsys.readouterr().out == ""
    progress.end_epoch(ROW)
    assert capsys.readouterr().out.startswith("epoch   1/2  loss 1.5000")
    progress.close()
    assert re.split(r"[\r\n]", sys.stderr.getvalue())[-2:] == [" " * len(drawn), ""]


def test_the_time_left_of_a_resumed_run_uses_only_the_time_of_its_process(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    progress = Progress(10, 100, clock)
    progress.start_epoch(6, step=40)
    assert (progress.done, progress.bar.n) == (540, 540)
    clock.seconds += 60.0  # compiling
    progress.show(41, 1.0, RATE, Clock())
    assert progress.time_left() == ""
    for step in (44, 50):  # a window has several steps
        clock.seconds += 2.0 * (step - progress.epoch_steps)
        progress.show(step, 1.0, RATE, Clock())
    assert progress.time_left() == "  ETA 15:00"
    progress.close()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599.7, "1:00:00"), (100 * 3600 + 65, "100:01:05")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
