"""A script that test_parallel.py runs with msrun: each rank has its own working folder, as on its own machine.

It trains, resumes the run, and makes a mistake, and writes what each rank had at the end to a file per rank.
"""

import gc
import json
import os
import sys
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import mindspore as ms
import numpy as np

import train
from src.errors import UserError
from src.runtime import parallel
from src.training import loop


def main(config, folder):
    own = folder / f"rank-{os.environ['RANK_ID']}"
    own.mkdir(exist_ok=True)  # the scheduler of msrun has the number of rank 0, too
    os.chdir(own)
    found = {"runs": []}
    join, fit, leave = parallel.join_ranks, loop.fit, parallel.Ranks.leave
    joined = []

    def join_once():
        if not joined:
            joined.append(join())
        return joined[0]

    def fit_and_note(trainer, *arguments):
        fit(trainer, *arguments)
        weights = b"".join(value.asnumpy().tobytes() for value in trainer.classifier.get_parameters())
        state = trainer.state
        found["runs"].append([state.epoch, state.updates, state.rollbacks, state.rate_factor, zlib.crc32(weights)])

    parallel.join_ranks, loop.fit, parallel.Ranks.leave = join_once, fit_and_note, lambda ranks: None
    # The learning rate is far too high, so the first epoch is rolled back.
    start = ["--config", config, "run.dir=run", "train.batch_size=256", "train.recalibrate=0", "optimizer.lr=1e6"]
    start += ["train.on_nonfinite=rollback", "train.rollback_factor=1e-8"]
    run(*start)
    run("--resume", "run", "train.epochs=2")
    for arguments in (start, ["--resume", "nowhere"], [*start, "--resume", "auto", "train.epochs=2", "train.seed=1"]):
        try:
            run(*arguments)
        except UserError as problem:
            found.setdefault("mistakes", []).append(str(problem))

    (ranks,) = joined
    found["rank"], found["sharing"] = ranks.rank, ranks.sharing()
    content = np.random.default_rng(0).bytes(3_000_001)
    found["sent"] = [ranks.from_first(lambda: content) == content, ranks.from_first(bytes) == b""]
    found["all_true"] = []
    for mode in (ms.PYNATIVE_MODE, ms.GRAPH_MODE):
        ms.set_context(mode=mode)
        for condition in (True, ranks.is_first):
            found["all_true"].append(bool(ranks.all_true()(ms.Tensor(condition)).asnumpy()))
    (folder / f"found-{ranks.rank}.json").write_text(json.dumps(found))
    leave(ranks)


def run(*arguments):
    gc.collect()  # the folder of the last run is no longer locked
    sys.argv = ["train.py", *map(str, arguments)]
    train.main()


main(*map(Path, sys.argv[1:]))
