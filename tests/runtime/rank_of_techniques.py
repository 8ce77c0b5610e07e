"""A script that trains with each technique, alone or in the ranks of msrun, and notes what its process ends with.

test_parallel.py runs it: python rank_of_techniques.py FOLDER
"""

import contextlib
import functools
import hashlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from mindspore import nn, ops

import src.training.loop
import train
from src.config.load import make_config
from src.config.yaml_text import parse_yaml
from src.models import NETWORKS
from src.models.layers import ConvNormAct, GlobalPool
from src.runs.resume import open_run
from src.runtime.device import use_device
from src.runtime.parallel import join_ranks
from tests.graphs import saved_graphs


class Tiny(nn.Cell):
    """The smallest network that has all kinds of layers: its graphs are compiled in a second."""

    variants = (1.0,)

    def __init__(self, width=1.0, in_channels=3, stem_stride=2):
        super().__init__()
        self.stem = ConvNormAct(in_channels, 8, 3, stem_stride)
        self.layers = nn.SequentialCell([ConvNormAct(8, 8, 3, groups=8), ConvNormAct(8, 16, 1)])
        self.out_features = 16
        self.global_pool = GlobalPool()

    def construct(self, x):
        return ops.flatten(self.global_pool(self.layers(self.stem(x))))


def main(folder):
    """Train with each case of the file `cases.json`, {name: overrides}; write what this process ends with.

    Each rank writes the cores that it may use to `cores-RANK.json`. The first rank writes the names of the operators in
    its compiled graphs to `operators.json`.
    """
    NETWORKS["tiny"] = Tiny
    settings = parse_yaml((folder / "c.yaml").read_text(), "c.yaml")
    cases = json.loads((folder / "cases.json").read_text())
    use_device(make_config(settings).runtime)
    ranks, fit = join_ranks(), src.training.loop.fit
    (folder / "graphs").mkdir(exist_ok=True)
    with saved_graphs(folder / "graphs") if ranks.is_first else contextlib.nullcontext([]) as nodes:
        for name, overrides in cases.items():
            src.training.loop.fit = functools.partial(fit_and_note, fit, folder / f"{name}-{ranks.rank}")
            config = make_config(settings, [*overrides, f"run.dir={folder / name}"])
            use_device(config.runtime, config.train.seed)
            with ranks.output():
                train.train(config, *open_run(config, None, False, ranks), ranks)
    (folder / f"cores-{ranks.rank}.json").write_text(json.dumps(sorted(os.sched_getaffinity(0))))
    if ranks.is_first:
        (folder / "operators.json").write_text(json.dumps(sorted({node.name for node in nodes})))
    ranks.leave()


def fit_and_note(fit, path, trainer, *arguments):
    """Train; write a digest of all trained tensors and the metrics of each epoch to PATH.json, the weights to PATH.npz.

    With a moving average, its values are the weights.
    """
    fit(trainer, *arguments)
    weights = {name: parameter.asnumpy() for name, parameter in trainer.classifier.parameters_dict().items()}
    averages = trainer.average.values() if trainer.average is not None else {}
    states = [parameter.asnumpy() for parameter in trainer.step.state.values()]
    digest = hashlib.sha256(b"".join(tensor.tobytes() for tensor in [*weights.values(), *averages.values(), *states]))
    rows = [{key: row[key] for key in row if "loss" in key or "top" in key} for row in trainer.state.rows]
    path.with_suffix(".json").write_text(
        json.dumps({"tensors": digest.hexdigest(), "rows": rows, "updates": trainer.state.updates})
    )
    np.savez(path.with_suffix(".npz"), **(averages or weights))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
