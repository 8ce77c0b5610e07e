"""Networks with few blocks, for tests that compile graphs, because MindSpore compiles a whole network slowly.

Each family keeps every kind of layer and every kind of block; tests/models/test_shallow.py checks this.
"""

from src.models import NETWORKS

REPEATS = (2, 1)  # units of the stages of a ShuffleNet
STAGES = {  # the stages with repeats that remain: position, number of blocks
    "mobilenet_v2": ((0, 1), (1, 2), (4, 1)),
    "mnasnet": ((0, 1), (1, 1), (2, 2)),
}
ROWS = {  # where each block has a row in a table: the table, and the positions of the rows that remain
    "mobilenet_v1": ("stages", (0, 1)),
    "ghostnet": ("bottlenecks", (0, 1, 3, 4, 9)),
    "mobilenet_v3_small": ("bottlenecks", (0, 1, 2, 3, 4)),
    "mobilenet_v3_large": ("bottlenecks", (0, 1, 3, 12, 13)),
}


def make_shallow(set_attribute=setattr):
    """Make all families of networks shallow, with `set_attribute(class, name, value)`."""
    for name in ("shufflenet_v1", "shufflenet_v2"):
        set_attribute(NETWORKS[name], "stage_repeats", REPEATS)
    for name, stages in STAGES.items():
        whole = NETWORKS[name].stages
        rows = tuple((*whole[position][:-2], repeats, whole[position][-1]) for position, repeats in stages)
        set_attribute(NETWORKS[name], "stages", rows)
    for name, (table, positions) in ROWS.items():
        whole = getattr(NETWORKS[name], table)
        set_attribute(NETWORKS[name], table, tuple(whole[position] for position in positions))
