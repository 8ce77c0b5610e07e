"""Train as a request says, in a process of its own: python worker.py REQUEST.json ANSWER

`proof.py` starts this process where another device, or several ranks, are needed. REQUEST.json has the sections
`model` of the networks and a section `runtime`. Rank N writes the list of results to ANSWER-N.json.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.doctor.training import BATCH, make_proof_config, train
from src.files import write_json
from src.runtime.device import use_device
from src.runtime.parallel import join_ranks


def main(request: str, answer: str) -> None:
    """Write the results of the networks in the file `request`."""
    wanted = json.loads(Path(request).read_text(encoding="utf-8"))
    use_device(make_proof_config({}, wanted["runtime"]).runtime)
    ranks = join_ranks()
    results = []
    for model in wanted["models"]:
        config = make_proof_config(model, wanted["runtime"], batch=BATCH // ranks.count)
        use_device(config.runtime, config.train.seed)
        results.append(train(config, ranks))
    write_json(results, f"{answer}-{ranks.rank}.json")
    ranks.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
