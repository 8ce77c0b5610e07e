"""A script that test_parallel.py runs with msrun: train.py with shallow networks, of which the second rank is killed.

python killed_rank.py BATCH ARGUMENT…: the second rank kills itself before it trains on the batch with this number,
counted from 1; without a kill, BATCH is 0. The other arguments are train.py's.
"""

import itertools
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import train
from src.errors import run
from src.training.step import TrainStep
from tests.shallow import make_shallow


def main():
    make_shallow()
    last, batches, step = int(sys.argv.pop(1)), itertools.count(1), TrainStep.__call__

    def step_or_kill(self, *batch):
        if next(batches) == last and os.environ["RANK_ID"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, *batch)

    TrainStep.__call__ = step_or_kill
    train.main()


run(main)
