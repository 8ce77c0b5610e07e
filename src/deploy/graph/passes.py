"""Passes that rewrite a graph so that device runtimes compute the same outputs faster.

Each pass changes a `Graph` in place.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from src.deploy.graph.graph import TYPE_IDS, Graph, Node, Value
from src.errors import UserError

SLICE_MASKS = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
MAX_SLICES = 8  # one gather is faster than more slices


def optimize(graph: Graph, dynamic_batch: bool = False) -> None:
    """Apply the passes that help every runtime; with `dynamic_batch`, no constant has the batch size as a dimension."""
    fold_batch_norm(graph)
    fold_normalization(graph, add_borders=not dynamic_batch)
    fold_scale(graph)
    replace_pools(graph)
    replace_shuffles(graph)
    drop_no_ops(graph)
    graph.prune()


def fold_batch_norm(graph: Graph) -> None:
    """Fold each BatchNorm into the convolution before it; its shift becomes a BiasAdd after the convolution."""
    producers, consumers = graph.producers(), graph.consumers()
    for node in [node for node in graph.nodes if node.op == "BatchNorm"]:
        conv = producers.get(node.inputs[0])
        if conv is None or conv.op != "Conv2D" or len(consumers[conv.output.name]) > 1:
            continue
        if any(name not in graph.constants for name in (*conv.inputs[1:], *node.inputs[1:])):
            continue
        gamma, beta, mean, variance = (graph.constants[name].astype(np.float64) for name in node.inputs[1:5])
        scale = gamma / np.sqrt(variance + node.attributes["epsilon"])
        weight = graph.constants[conv.inputs[1]].astype(np.float64) * scale[:, None, None, None]
        name = conv.output.name
        graph.constants[f"{name}_weight"] = weight.astype(np.float32)
        graph.constants[f"{name}_bias"] = (beta - mean * scale).astype(np.float32)
        conv.inputs = [conv.inputs[0], f"{name}_weight"]
        node.op, node.inputs, node.attributes = "BiasAdd", [name, f"{name}_bias"], {"format": "NCHW"}
        node.outputs = node.outputs[:1]


def fold_normalization(graph: Graph, add_borders: bool = True) -> None:
    """Fold the normalisation of pixels into the first convolution.

    The scale goes into the weights. The mean is split in two: one number, the same for all channels, is still
    subtracted from the pixels, and the rest goes into the bias. The subtraction keeps pixels near zero, and so keeps
    rounding errors small. The convolution padded normalised pixels with zeros; now `add_border` pads with the mean.

    The reason: MindSpore Lite needs as long to subtract and multiply by a number per channel as for a third of
    ShuffleNetV2 0.5x. A border has the batch size as a dimension. Without `add_borders`, the mean of each channel is
    subtracted, and the convolution still pads with zeros.
    """
    producers, consumers = graph.producers(), graph.consumers()
    for bias in [node for node in graph.nodes if node.op == "BiasAdd"]:
        chain = [bias]
        for op in ("Conv2D", "Mul", "Sub"):
            producer = producers.get(chain[-1].inputs[0])
            if producer is None or producer.op != op or len(consumers[producer.output.name]) > 1:
                break
            chain.append(producer)
        if len(chain) < 4:
            continue
        _, conv, mul, sub = chain
        shape = sub.output.shape
        scale, mean = (graph.constants.get(node.inputs[1]) for node in (mul, sub))
        if scale is None or mean is None or not {scale.size, mean.size} <= {1, shape[1]}:
            continue
        if conv.attributes["group"] != 1 or conv.attributes["pad_mode"].lower() != "pad":
            continue
        scale, mean = (np.broadcast_to(array.reshape(-1), shape[1]).astype(np.float64) for array in (scale, mean))
        common = mean.mean().round() if add_borders else mean
        weight = graph.constants[conv.inputs[1]].astype(np.float64) * scale[:, None, None]
        shifted = graph.constants[bias.inputs[1]] - (weight * (mean - common)[:, None, None]).sum((1, 2, 3))
        names = [f"{node.output.name}_of_pixels" for node in (conv, bias, sub)]
        arrays = (weight, shifted, np.array([common]) if add_borders else mean.reshape(-1, 1, 1))
        graph.constants.update((name, array.astype(np.float32)) for name, array in zip(names, arrays))
        sub.inputs = [sub.inputs[0], names[2]]
        conv.inputs, bias.inputs = [sub.output.name, names[0]], [conv.output.name, names[1]]
        if not add_borders:
            continue
        border = add_border(graph, sub.output.name, shape, mean - common, conv.attributes["pad_list"])
        position = graph.nodes.index(sub) + 1
        graph.nodes[position:position] = border
        if border:
            conv.inputs[0] = border[-1].output.name
        conv.attributes.update(pad=(0, 0, 0, 0), pad_list=(0, 0, 0, 0), pad_mode="valid")


def fold_scale(graph: Graph) -> None:
    """Fold the multiplication of the logits by a number, the temperature, into the layer that computes them."""
    producers, consumers = graph.producers(), graph.consumers()
    for mul in [node for node in graph.nodes if node.op == "Mul"]:
        scale = graph.constants.get(mul.inputs[1])
        layers = [node for node in (producers.get(mul.inputs[0]),) if node is not None]
        if layers and layers[0].op == "BiasAdd" and layers[0].inputs[0] in producers:
            layers.append(producers[layers[0].inputs[0]])
        if scale is None or scale.size != 1 or not layers or layers[-1].op != "MatMul":
            continue
        if any(len(consumers[layer.output.name]) > 1 or layer.inputs[1] not in graph.constants for layer in layers):
            continue
        for layer in layers:
            name = f"{layer.output.name}_scaled"
            scaled = graph.constants[layer.inputs[1]].astype(np.float64) * float(scale.reshape(()))
            graph.constants[name] = scaled.astype(np.float32)
            layer.inputs = [layer.inputs[0], name]
        layers[0].outputs = mul.outputs
        graph.nodes.remove(mul)


def add_border(graph: Graph, name: str, shape: tuple[int, ...], colour: np.ndarray, pads: Sequence[int]) -> list[Node]:
    """Return the nodes that put a border around the feature maps `name`, and add their constants to the graph.

    `shape` is the shape of the feature maps, (N, C, H, W). `colour` (C) is one pixel of the border. `pads` is the
    border's width in pixels at top, bottom, left and right.
    """
    nodes: list[Node] = []
    for axis, (before, after) in ((2, pads[:2]), (3, pads[2:])):
        parts = [name]
        for width, position in ((before, 0), (after, 2)):
            if width:
                strip = f"{name}_border_{axis}_{position}"
                strip_shape = (*shape[:axis], width, *shape[axis + 1 :])
                graph.constants[strip] = np.broadcast_to(colour[:, None, None], strip_shape).astype(np.float32)
                parts.insert(position, strip)
        if len(parts) > 1:
            name, shape = f"{name}_bordered", (*shape[:axis], before + shape[axis] + after, *shape[axis + 1 :])
            nodes.append(Node("Concat", parts, [Value(name, shape, "float32")], {"axis": axis}))
    return nodes


def replace_pools(graph: Graph) -> None:
    """Replace poolings that runtimes lack or are slow at.

    For symmetric padding, MindSpore exports three-dimensional operators: it reshapes (N, C, H, W) to (N, C, 1, H, W),
    pools, and squeezes. An average pooling becomes a depthwise convolution. A max pooling becomes MaxPool with padding,
    which MindSpore Lite and ONNX have.
    """
    producers, consumers = graph.producers(), graph.consumers()
    shapes = {value.name: value.shape for value in (graph.input, *(v for node in graph.nodes for v in node.outputs))}
    for node in [node for node in graph.nodes if node.op == "AvgPool" and node.attributes["pad_mode"] == "SAME"]:
        replace_same_average(graph, node, shapes[node.inputs[0]])
    for node in [node for node in graph.nodes if node.op in ("MaxPool3DWithArgmax", "AvgPool3D")]:
        source = producers[node.inputs[0]].inputs[0]
        squeeze, attributes = consumers[node.output.name][0], node.attributes
        strides = (1, 1, *attributes["strides"][-2:])
        if node.op == "AvgPool3D":
            if attributes.get("divisor_override") or not attributes.get("count_include_pad", True):
                raise UserError(
                    "operator AvgPool3D: is supported in an export only if it divides by the size of its window"
                )
            kernel, channels = attributes["kernel_size"][-2:], squeeze.output.shape[1]
            weight = f"{squeeze.output.name}_weight"
            graph.constants[weight] = np.full((channels, 1, *kernel), 1 / np.prod(kernel), np.float32)
            squeeze.op, squeeze.inputs = "Conv2D", [source, weight]
            squeeze.attributes = depthwise_attributes(kernel, strides, attributes["pad"][-4:], channels)
            continue
        (top, left), kernel = attributes["pads"][-2:], (1, 1, *attributes["ksize"][-2:])
        squeeze.op, squeeze.inputs = "MaxPool", [source]
        squeeze.attributes = {
            "kernel_size": kernel,
            "strides": strides,
            "pad_mode": "PAD",
            "pad": (top, top, left, left),
            "format": "NCHW",
        }


def replace_same_average(graph: Graph, pool: Node, shape: tuple[int, ...]) -> None:
    """Replace an average pooling with the padding "same" of feature maps with `shape` by two other operators.

    MindSpore cannot load this pooling from MindIR. A depthwise convolution pads with zeros and divides by the size of
    the window. A multiplication corrects the outputs at the border, because the average does not count the padding.
    """
    output, channels = pool.output, shape[1]
    kernel, strides = pool.attributes["kernel_size"][-2:], pool.attributes["strides"][-2:]
    pads: list[int] = []
    counts = []  # of each axis: the number of pixels of the feature map in each window
    for size, outputs, window, stride in zip(shape[2:], output.shape[2:], kernel, strides):
        total = max(0, (outputs - 1) * stride + window - size)
        pads += [total // 2, total - total // 2]
        inside = np.pad(np.ones(size), (total // 2, total - total // 2))
        counts.append(np.array([inside[i * stride : i * stride + window].sum() for i in range(outputs)]))
    names = [f"{output.name}_{part}" for part in ("sum", "weight", "correction")]
    graph.constants[names[1]] = np.full((channels, 1, *kernel), 1 / np.prod(kernel), np.float32)
    graph.constants[names[2]] = (np.prod(kernel) / np.outer(*counts))[None, None].astype(np.float32)
    attributes = depthwise_attributes(kernel, (1, 1, *strides), pads, channels)
    conv = Node("Conv2D", [pool.inputs[0], names[1]], [Value(names[0], output.shape, output.dtype)], attributes)
    position = graph.nodes.index(pool)
    graph.nodes[position : position + 1] = [conv, Node("Mul", [names[0], names[2]], pool.outputs, {})]


def pool_means(graph: Graph) -> None:
    """Replace the mean over whole feature maps by an average pooling, for MindSpore Lite's converter.

    Lite would transpose the feature maps for a mean. MindSpore itself cannot load such a pooling from MindIR.
    """
    producers = graph.producers()
    for node in graph.nodes:
        if node.op == "ReduceMean" and node.attributes["axis"] == (2, 3) and node.attributes["keep_dims"]:
            height, width = producers[node.inputs[0]].output.shape[2:]
            node.op = "AvgPool"
            node.attributes = {
                "kernel_size": (1, 1, height, width),
                "strides": (1, 1, 1, 1),
                "pad_mode": "VALID",
                "format": "NCHW",
            }


def separate_padding(graph: Graph) -> None:
    """Put the padding of a max pooling into a separate Pad operator, because MindSpore's MaxPool cannot pad.

    Pad fills in zeros. This is right only after a ReLU, whose outputs are never below zero; otherwise it is a
    `UserError`.
    """
    producers = graph.producers()
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op == "MaxPool" and node.attributes["pad_mode"] == "PAD":
            source = producers[node.inputs[0]]
            if source.op not in ("ReLU", "ReLU6"):
                raise UserError(
                    f"--format mindir: a padded max pooling is supported after ReLU or ReLU6 only (found {source.op})"
                )
            top, bottom, left, right = node.attributes.pop("pad")
            n, c, height, width = source.output.shape
            shape = (n, c, height + top + bottom, width + left + right)
            padded = Value(f"{node.output.name}_padded", shape, source.output.dtype)
            paddings = {"paddings": ((0, 0), (0, 0), (top, bottom), (left, right))}
            nodes.append(Node("Pad", node.inputs, [padded], paddings))
            node.inputs, node.attributes["pad_mode"] = [padded.name], "VALID"
        nodes.append(node)
    graph.nodes = nodes


def depthwise_attributes(
    kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], channels: int
) -> dict[str, Any]:
    """Return the attributes of a depthwise Conv2D; `pads` are top, bottom, left and right."""
    return {
        "kernel_size": tuple(kernel),
        "mode": 1,
        "out_channel": channels,
        "pad": tuple(pads),
        "pad_list": tuple(pads),
        "pad_mode": "pad",
        "stride": strides,
        "dilation": (1, 1, 1, 1),
        "group": channels,
        "groups": channels,
        "format": "NCHW",
    }


def channel_shuffles(graph: Graph) -> list[tuple[Node, Node]]:
    """Return the first and last node of each channel shuffle: reshape to groups, transpose, reshape back."""
    consumers = graph.consumers()
    found = []
    for to_groups in graph.nodes:
        if to_groups.op == "Reshape" and len(to_groups.output.shape) == 5:
            transpose = consumers[to_groups.output.name][0]
            from_groups = consumers[transpose.output.name][0]
            batch, groups, group_size, height, width = to_groups.output.shape
            shuffled = (batch, groups * group_size, height, width)
            if transpose.attributes.get("input_perm") == (0, 2, 1, 3, 4) and from_groups.output.shape == shuffled:
                found.append((to_groups, from_groups))
    return found


def replace_shuffles(graph: Graph) -> None:
    """Replace each channel shuffle (reshape, transpose, reshape) by slices.

    If a split follows the shuffle, each part of the split becomes one slice. Otherwise the slices are concatenated, or
    one gather takes their place if there would be more than `MAX_SLICES`.
    """
    consumers = graph.consumers()
    for to_groups, from_groups in channel_shuffles(graph):
        batch, groups, group_size, height, width = to_groups.output.shape
        source, following = to_groups.inputs[0], consumers[from_groups.output.name]
        order = np.arange(groups * group_size).reshape(groups, group_size).T.reshape(-1)
        concat: list[Node] = []
        if len(following) == 1 and following[0] is not None and following[0].op == "Split":
            replaced, values = following[0], following[0].outputs
        elif group_size > MAX_SLICES:
            replaced, values = from_groups, from_groups.outputs
        else:
            output, shape = from_groups.output, (batch, groups, height, width)
            replaced = from_groups
            values = [Value(f"{output.name}_part_{i}", shape, output.dtype) for i in range(group_size)]
            concat = [Node("Concat", [value.name for value in values], from_groups.outputs, {"axis": 1})]
        parts = zip(values, np.split(order, len(values)))
        position = graph.nodes.index(replaced)
        graph.nodes[position : position + 1] = [select_channels(graph, source, *part) for part in parts] + concat


def select_channels(graph: Graph, source: str, value: Value, channels: np.ndarray) -> Node:
    """Return the node that outputs `value`: the feature maps of `source` at the indices `channels`."""
    steps = np.unique(np.diff(channels))
    if len(steps) > 1:
        indices = f"{value.name}_channels"
        graph.constants[indices] = channels.astype(np.int32)
        return Node("Gather", [source, indices], [value], {"axis": 1, "batch_dims": 0})
    batch, _, height, width = value.shape
    attributes = {
        "begin": (0, int(channels[0]), 0, 0),
        "end": (batch, int(channels[-1]) + 1, height, width),
        "strides": (1, int(steps[0]), 1, 1),
        **dict.fromkeys(SLICE_MASKS, 0),
    }
    return Node("StridedSlice", [source], [value], attributes)


def drop_no_ops(graph: Graph) -> None:
    """Bypass reshapes and slices whose output is equal to their input."""
    shapes = {graph.input.name: graph.input.shape}
    same: dict[str, str] = {}
    for node in graph.nodes:
        node.inputs = [same.get(name, name) for name in node.inputs]
        shapes.update((value.name, value.shape) for value in node.outputs)
        unchanged = node.op in ("Reshape", "Flatten", "StridedSlice") and node.output.shape == shapes[node.inputs[0]]
        if unchanged and node.output != graph.output:
            same[node.output.name] = node.inputs[0]


def halve_weights(graph: Graph) -> None:
    """Store the weights as float16 and cast them to float32 at the start: half the size, the same arithmetic."""
    casts, weights = {}, {node.inputs[1] for node in graph.nodes if node.op in ("Conv2D", "MatMul")}
    for name, array in list(graph.constants.items()):
        if array.dtype == np.float32 and name in weights:
            half = f"{name}_half"
            graph.constants[half] = graph.constants.pop(name).astype(np.float16)
            value = Value(name, array.shape, "float32")
            casts[name] = Node("Cast", [half], [value], {"dtype": TYPE_IDS["float32"]})
    graph.nodes = [*casts.values(), *graph.nodes]
