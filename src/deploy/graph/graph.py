"""The graph of a network as it is shipped: operators of MindSpore with constant weights, in the order they run."""

from dataclasses import dataclass, field

TYPE_IDS = {"float16": 42, "float32": 43}  # the numbers by which MindSpore's Cast is told a type


@dataclass(frozen=True)
class Value:
    """What flows between operators: a tensor of fixed shape; `dtype` is NumPy's name."""

    name: str
    shape: tuple
    dtype: str


@dataclass
class Node:
    """One operator. `inputs` are names of values or constants; a Concat's are the maps that it joins.

    `attributes` holds all that is no tensor by MindSpore's names of the operator's arguments, such as `input_perm`.
    """

    op: str
    inputs: list
    outputs: list  # Values
    attributes: dict = field(default_factory=dict)

    @property
    def output(self):
        return self.outputs[0]


@dataclass
class Graph:
    """A network of one input and one output."""

    input: Value
    output: Value
    nodes: list
    constants: dict  # name: NumPy array

    def makers(self):
        """Return {name of a value: the node that makes it}."""
        return {value.name: node for node in self.nodes for value in node.outputs}

    def users(self):
        """Return {name of a value or constant: the nodes that take it}; the output is taken by None."""
        users = {self.output.name: [None]}
        for node in self.nodes:
            for name in node.inputs:
                users.setdefault(name, []).append(node)
        return users

    def prune(self):
        """Drop the nodes and constants that the output does not depend on."""
        needed, kept = {self.output.name}, []
        for node in reversed(self.nodes):
            if needed & {value.name for value in node.outputs}:
                needed.update(node.inputs)
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {name: array for name, array in self.constants.items() if name in needed}
