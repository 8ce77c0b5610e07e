"""Run train.py, note how long each evaluation takes, and let a signal strike while the weights are evaluated.

Each evaluation adds a line with its seconds to the file that the environment variable EVALUATIONS names. STRIKE
is "RANK NUMBER SECONDS", or it is missing. SECONDS after the start of its first evaluation, the process with this RANK
sends itself the signal with this NUMBER. First it writes the file EVALUATIONS.struck.
"""

import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import train
from src.errors import run


def main():
    from src.training.validation import Validation

    notes = Path(os.environ["EVALUATIONS"])
    rank, number, seconds = os.environ.get("STRIKE", "-1 0 0").split()
    evaluate = Validation.__call__
    armed = rank == os.environ.get("RANK_ID", "0")

    def strike():
        notes.with_suffix(".struck").touch()
        os.kill(os.getpid(), int(number))

    def evaluate_and_note(self, poll):
        nonlocal armed
        if armed:
            armed = False
            timer = threading.Timer(float(seconds), strike)
            timer.daemon = True
            timer.start()
        began = time.monotonic()
        result = evaluate(self, poll)
        with open(notes, "a") as file:
            file.write(f"{time.monotonic() - began}\n")
        return result

    Validation.__call__ = evaluate_and_note
    train.main()


if __name__ == "__main__":
    run(main)
