"""Networks with few blocks, for tests that compile graphs, because MindSpore compiles a whole network slowly.

Each family keeps every kind of layer and every kind of block; tests/models/test_shallow.py checks this.
"""

from src.models import NETWORKS

REPEATS = (2, 1)  # units of the stages of a ShuffleNet
STAGES = {  # where each stage has a row in a table: the positions of the rows that remain, and the number of blocks
    "mobilenet_v2": ((0, 1), (1, 2), (4, 1)),
    "mnasnet": ((0, 1), (1, 1), (2, 2)),
}
ROWS = {  # where each block has a row in a table: the table, and the positions of the rows that remain
    "mobilenet_v1": ("stages", (0, 1)),
    "ghostnet": ("bottlenecks", (0, 1, 3, 4, 9)),
    "mobilenet_v3_small": ("bottlenecks", (0, 1, 2, 3, 4)),
    "mobilenet_v3_large": ("bottlenecks", (0, 1, 3, 12, 13)),
}


def make_shallow(names=tuple(NETWORKS), set_attribute=setattr):
    """Make the networks with these names shallow, with `set_attribute(class, name, value)`."""
    for name in names:
        network = NETWORKS[name]
        if name in STAGES:
            rows = tuple((*network.stages[row][:-2], repeats, network.stages[row][-1]) for row, repeats in STAGES[name])
            set_attribute(network, "stages", rows)
        elif name in ROWS:
            table, rows = ROWS[name]
            set_attribute(network, table, tuple(getattr(network, table)[row] for row in rows))
        else:
            set_attribute(network, "stage_repeats", REPEATS)
