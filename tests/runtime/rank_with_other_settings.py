"""A script that test_agreement.py runs with msrun: the ranks are started with other settings, or with other data.

It writes to a file per rank how each start ended: the error, or that the preparation of the network was reached.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import train
from src.errors import UserError
from src.runtime import parallel
from src.training import network


class ReachedError(Exception):
    """The checks before the preparation of the network have found nothing."""


def main(folder):
    rank = int(os.environ["RANK_ID"])
    os.chdir(folder)
    join, joined, ended = parallel.join_ranks, [], []

    def join_once():
        if not joined:
            joined.append(join())
        return joined[0]

    def reach(*_):
        raise ReachedError("reached")

    parallel.join_ranks, network.prepare_network = join_once, reach
    for starts in json.loads(Path("starts.json").read_text()):
        sys.argv = ["train.py", *starts[rank]]
        try:
            train.main()
        except (UserError, ReachedError) as end:
            ended.append(str(end))
    (ranks,) = joined
    Path(f"ended-{ranks.rank}.json").write_text(json.dumps(ended))
    ranks.leave()


main(Path(sys.argv[1]))
