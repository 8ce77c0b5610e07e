"""A script that test_parallel.py runs with msrun: it trains with each technique, and notes what each rank ends with."""

import functools
import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import src.training.loop
import train
from src.config.load import make_config
from src.config.yaml_text import parse_yaml
from src.runs.resume import open_run
from src.runtime.device import use_device
from src.runtime.parallel import join_ranks


def main(folder):
    """Train with each case of the file `cases.json`, {name: overrides}; write what this rank ends with."""
    settings = parse_yaml((folder / "c.yaml").read_text(), "c.yaml")
    cases = json.loads((folder / "cases.json").read_text())
    use_device(make_config(settings).runtime)
    ranks, fit = join_ranks(), src.training.loop.fit
    for name, overrides in cases.items():
        src.training.loop.fit = functools.partial(fit_and_note, fit, folder / f"{name}-{ranks.rank}.json")
        config = make_config(settings, [*overrides, f"run.dir={folder / name}"])
        use_device(config.runtime, config.train.seed)
        with ranks.output():
            train.train(config, *open_run(config, None, False, ranks), ranks)
    ranks.leave()


def fit_and_note(fit, path, trainer, *arguments):
    """Train, and write the trained tensors' SHA-256 and the metrics of each epoch to the file at `path`."""
    fit(trainer, *arguments)
    parameters = [*trainer.classifier.parameters_dict().values(), *trainer.step.state.values()]
    tensors = [parameter.asnumpy() for parameter in parameters]
    tensors += trainer.average.values().values() if trainer.average is not None else []
    rows = [{key: row[key] for key in row if "loss" in key or "top" in key} for row in trainer.state.rows]
    digest = hashlib.sha256(b"".join(tensor.tobytes() for tensor in tensors)).hexdigest()
    path.write_text(json.dumps({"tensors": digest, "rows": rows}))


main(Path(sys.argv[1]))
