"""The graph of an exported network: MindSpore's operators with constant weights, in the order in which they run."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

TYPE_IDS = {"float16": 42, "float32": 43}  # MindSpore's Cast takes its target type as one of these numbers


@dataclass(frozen=True)
class Value:
    """A tensor of fixed shape: the graph's input or an output of an operator. `dtype` is NumPy's name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass
class Node:
    """One operator. `inputs` are names of values or constants; a Concat has one name per feature map that it joins.

    `attributes` holds the arguments that are not tensors, by MindSpore's argument names, such as `input_perm`.
    """

    op: str
    inputs: list[str]
    outputs: list[Value]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Value:
        """The first output."""
        return self.outputs[0]


@dataclass
class Graph:
    """A network with one input and one output."""

    input: Value
    output: Value
    nodes: list[Node]
    constants: dict[str, np.ndarray]

    def producers(self) -> dict[str, Node]:
        """Return {name of a value: the node that outputs it}."""
        return {value.name: node for node in self.nodes for value in node.outputs}

    def consumers(self) -> dict[str, list[Any]]:
        """Return {name of a value or constant: the nodes that take it as an input}.

        The list of the graph's output also contains None, because the caller of the graph uses it.
        """
        consumers: dict[str, list[Any]] = {self.output.name: [None]}
        for node in self.nodes:
            for name in node.inputs:
                consumers.setdefault(name, []).append(node)
        return consumers

    def prune(self) -> None:
        """Remove the nodes and constants that the output does not depend on."""
        needed, kept = {self.output.name}, []
        for node in reversed(self.nodes):
            if needed & {value.name for value in node.outputs}:
                needed.update(node.inputs)
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {name: array for name, array in self.constants.items() if name in needed}
