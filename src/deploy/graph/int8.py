"""The pass that makes a graph faster as int8: the channels of depthwise convolutions are filled up."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from src.deploy.graph.graph import Graph, Node

# Operators whose output has the channels of their input, each computed from the same channel.
CHANNELWISE = ("BiasAdd", "ReLU", "ReLU6", "HSwish", "HSigmoid", "Sigmoid", "Tanh", "MaxPool", "AvgPool")


def fill_channels(graph: Graph, multiple: int) -> None:
    """Fill the channels of depthwise convolutions up to a multiple of `multiple`, for int8.

    ONNX Runtime's int8 kernel for depthwise convolutions takes groups of 16 channels; with other numbers of channels,
    another kernel takes two to three times as long. The new channels have zero weights before and behind them, so the
    outputs stay the same. Channels that meet another operator, such as Concat, or the graph's input or output, stay.
    """
    shapes = {value.name: value.shape for value in (graph.input, *(v for node in graph.nodes for v in node.outputs))}
    groups, fixed = channel_groups(graph, shapes)
    fixed |= {groups[graph.input.name], groups[graph.output.name]}
    depthwise = {groups[node.output.name] for node in graph.nodes if is_depthwise(node, shapes)}
    extra = {
        name: -shapes[name][1] % multiple
        for name, group in groups.items()
        if group in depthwise - fixed and len(shapes[name]) == 4
    }
    for node in graph.nodes:
        before, after = extra.get(node.inputs[0], 0), extra.get(node.output.name, 0)
        if node.op == "Conv2D" and is_depthwise(node, shapes):
            fill(graph, node, (after, 0))
            channels = node.output.shape[1] + after
            node.attributes.update(out_channel=channels, group=channels)
            if "groups" in node.attributes:
                node.attributes["groups"] = channels
        elif node.op == "Conv2D":
            fill(graph, node, (after, before))
            node.attributes["out_channel"] = node.output.shape[1] + after
        elif node.op == "BiasAdd":
            fill(graph, node, (after,))
        node.outputs = [
            replace(value, shape=(value.shape[0], value.shape[1] + extra[value.name], *value.shape[2:]))
            if value.name in extra
            else value
            for value in node.outputs
        ]


def fill(graph: Graph, node: Node, widths: Sequence[int]) -> None:
    """Append `widths` zeros to the first axes of a node's weight or bias, under a new name: others may use the old."""
    if any(widths):
        name, array = f"{node.output.name}_filled", graph.constants[node.inputs[1]]
        pads = [(0, widths[i] if i < len(widths) else 0) for i in range(array.ndim)]
        graph.constants[name] = np.pad(array, pads)
        node.inputs = [node.inputs[0], name]


def is_depthwise(node: Node, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Return whether a node is a depthwise convolution with as many outputs as inputs."""
    channels = shapes[node.output.name][1:2]
    return node.op == "Conv2D" and (node.attributes["group"],) == channels == shapes[node.inputs[0]][1:2]


def channel_groups(graph: Graph, shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, str], set[str]]:
    """Return {name of a value: its group}, and the groups whose number of channels cannot change.

    Values are in a group if their channels belong together, so that all of them or no value gets more channels. A group
    has the name of a value in it. A dense convolution lies between two groups.
    """
    groups = {name: name for name in shapes}
    fixed: set[str] = set()

    def root(name: str) -> str:
        while groups[name] != name:
            name = groups[name]
        return name

    for node in graph.nodes:
        values = [name for name in node.inputs if name in shapes] + [value.name for value in node.outputs]
        constants = [name for name in node.inputs if name in graph.constants]
        is_mean = node.op == "ReduceMean" and node.attributes["axis"] == (2, 3) and node.attributes["keep_dims"]
        together = node.op in CHANNELWISE or is_mean or (node.op in ("Add", "Mul") and not constants)
        if together or is_depthwise(node, shapes):
            for name in values[1:]:
                groups[root(name)] = root(values[0])
        elif not (node.op == "Conv2D" and node.attributes["group"] == 1 and len(constants) == 1):
            fixed.update(values)
    return {name: root(name) for name in groups}, {root(name) for name in fixed}
