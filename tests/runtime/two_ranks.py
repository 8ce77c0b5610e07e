"""A script that test_parallel.py runs with msrun: two ranks, in which all checks of two ranks take turns.

It needs the files that test_parallel.py prepares, and writes what each rank found. The networks are shallow.
"""

import functools
import gc
import json
import os
import sys
import zlib
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import train
from src.config.load import make_config
from src.errors import UserError
from src.runtime import parallel
from src.runtime.device import use_device
from src.training import loop, network
from tests.shallow import make_shallow

# isort: split

import mindspore as ms
import numpy as np
from mindspore import nn


class ReachedError(Exception):
    """The checks before the preparation of the network have found nothing."""


def main(folder):
    """Run each check in the `folder`."""
    make_shallow()
    use_device(make_config({}).runtime)
    ranks = parallel.join_ranks()
    # The scripts join and leave many times, but MindSpore connects the processes once.
    checks = start_with_other_settings, normalise, train_as_the_script, use_own_folder
    with mock.patch.object(parallel, "join_ranks", return_value=ranks), mock.patch.object(parallel.Ranks, "leave"):
        for check in checks:
            os.chdir(folder)
            check(folder, ranks)
    ranks.leave()


def run(*arguments):
    """Run train.py with these arguments."""
    gc.collect()  # the folder of the last run is no longer locked
    sys.argv = ["train.py", *map(str, arguments)]
    train.main()


def start_with_other_settings(folder, ranks):
    """Note how each pair of starts in `starts.json` ends: the error, or that the preparation of the network began."""

    def reach(*_):
        raise ReachedError("reached")

    ended = []
    with mock.patch.object(network, "prepare_network", reach):
        for starts in json.loads(Path("starts.json").read_text()):
            try:
                run(*starts[ranks.rank])
            except (UserError, ReachedError) as end:
                ended.append(str(end))
    Path(f"ended-{ranks.rank}.json").write_text(json.dumps(ended))


def normalise(folder, ranks):
    """Write the rank's part of a synchronised BatchNorm to a file, once for each execution mode."""
    images, weights = np.load("images.npy"), np.load("weights.npy")
    for mode in (ms.PYNATIVE_MODE, ms.GRAPH_MODE):
        ms.set_context(mode=mode)
        norms = nn.SequentialCell(nn.BatchNorm2d(images.shape[1], momentum=0.8))
        parallel.synchronise_norms(norms, ranks.count)
        norms.set_train(True)
        gradients_of = make_gradients(norms)
        if mode == ms.GRAPH_MODE:
            gradients_of = ms.jit(gradients_of)
        chosen = slice(ranks.rank, None, ranks.count)
        total, (dx, dparams) = gradients_of(ms.Tensor(images[chosen]), ms.Tensor(weights[chosen]))
        np.savez(
            f"{mode}-{ranks.rank}.npz",
            loss=ranks.sum(np.float64([total.asnumpy()])),
            dx=dx.asnumpy(),
            dparams=ranks.sum(np.float64([dparam.asnumpy() for dparam in dparams])),
            moving_mean=norms[0].moving_mean.asnumpy(),
            moving_variance=norms[0].moving_variance.asnumpy(),
        )


def make_gradients(norms):
    def loss(x, w):
        return (norms(x) * w).sum()

    return ms.value_and_grad(loss, 0, norms.trainable_params())


def train_as_the_script(folder, ranks):
    """Run train.py with the arguments of each line in `runs.json`."""
    for arguments in json.loads(Path("runs.json").read_text()):
        run(*arguments)


def use_own_folder(folder, ranks):
    """Train, resume the run, and make mistakes, in a working folder of this rank alone, as on its own machine."""
    own = folder / f"rank-{ranks.rank}"
    own.mkdir()
    os.chdir(own)
    found = {"rank": ranks.rank, "sharing": ranks.sharing(), "runs": [], "mistakes": []}

    def fit_and_add(fit, trainer, *arguments):
        fit(trainer, *arguments)
        weights = b"".join(value.asnumpy().tobytes() for value in trainer.classifier.get_parameters())
        state = trainer.state
        found["runs"].append([state.epoch, state.updates, state.rollbacks, state.rate_factor, zlib.crc32(weights)])

    # The learning rate is far too high, so the first epoch is rolled back.
    start = ["--config", folder / "own.yaml", "run.dir=run", "train.recalibrate=0", "optimizer.lr=1e6"]
    start += ["train.on_nonfinite=rollback", "train.rollback_factor=1e-8"]
    with mock.patch.object(loop, "fit", functools.partial(fit_and_add, loop.fit)):
        run(*start)
        run("--resume", "run", "train.epochs=2")
    for arguments in (start, ["--resume", "nowhere"], [*start, "--resume", "auto", "train.epochs=2", "train.seed=1"]):
        try:
            run(*arguments)
        except UserError as problem:
            found["mistakes"].append(str(problem))
    content = np.random.default_rng(0).bytes(3_000_001)
    found["sent"] = [ranks.from_first(lambda: content) == content, ranks.from_first(bytes) == b""]
    found["all_true"] = []
    for mode in (ms.PYNATIVE_MODE, ms.GRAPH_MODE):
        ms.set_context(mode=mode)
        for condition in (True, ranks.is_first):
            found["all_true"].append(bool(ranks.all_true()(ms.Tensor(condition)).asnumpy()))
    (folder / f"found-{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
