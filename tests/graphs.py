"""The operators of a compiled graph, from the files that MindSpore saves."""

import contextlib
import os
import re
from dataclasses import dataclass

import mindspore as ms

# The last pass that is the same for all devices. Afterwards each device has its own passes.
PASS = "validate"
NODE = re.compile(r"^  %\d+\(.*?\) = (?:PrimFunc_)?(\w+)\(.*\n      : \((.*)\) -> \((.*)\)$", re.M)
# A value of a signature: <Tensor[Float16], (4, 8)> or <Tuple[Tensor[Float16],Tensor[Float32]*2], TupleShape((4), …)>
VALUE = re.compile(r"<([^<>]*?\]), ((?:TupleShape)?\([^<>=]*\))")
KIND = re.compile(r"Tensor\[(\w+)\]+(?:\*(\d+))?")
# What is not an operator: calls of other graphs, the order of side effects, and tuples.
STRUCTURE = {"Call", "Depend", "Load", "MakeTuple", "Partial", "Return", "Switch", "TupleGetItem", "UpdateState"}


@dataclass(frozen=True)
class Node:
    """An operator of a graph, with its inputs and its outputs: each has a type such as Float16, and a shape."""

    name: str
    inputs: tuple
    outputs: tuple


@contextlib.contextmanager
def saved_graphs(folder):
    """Let MindSpore write compiled graphs to `folder`. Yields the list of their nodes, filled at the end."""
    nodes = []
    os.environ["MS_DEV_DUMP_IR_PASSES"] = PASS
    ms.set_context(save_graphs=1, save_graphs_path=str(folder))
    try:
        yield nodes
    finally:
        ms.set_context(save_graphs=0)
        os.environ.pop("MS_DEV_DUMP_IR_PASSES")
        for path in sorted(folder.rglob(f"*_{PASS}_*.ir")):
            for name, inputs, outputs in NODE.findall(path.read_text()):
                if name not in STRUCTURE:
                    nodes.append(Node(name, tensors(inputs), tensors(outputs)))


def tensors(text):
    """Return (type, shape) of each Tensor in the signature of a node; the Tensors of a tuple are in order."""
    found = []
    for types, shapes in VALUE.findall(text):
        kinds = [kind for kind, count in KIND.findall(types) for _ in range(int(count or 1))]
        sizes = [tuple(map(int, re.findall(r"\d+", size))) for size in re.findall(r"\(([\d, ]*)\)", shapes)]
        found += zip(kinds, sizes)
    return tuple(found)
