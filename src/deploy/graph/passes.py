"""Rewriting a graph so that device runtimes compute the same faster: each pass changes a `Graph` in place."""

import numpy as np

from src.deploy.graph.graph import TYPE_IDS, Node, Value
from src.errors import UserError

SLICE_MASKS = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
MOST_SLICES = 8  # that are faster than one gather


def optimize(graph):
    """Apply all passes."""
    fold_batch_norm(graph)
    fold_normalization(graph)
    replace_pools(graph)
    replace_shuffles(graph)
    drop_no_ops(graph)
    graph.prune()


def fold_batch_norm(graph):
    """Make each BatchNorm part of the convolution before it, which gets a bias where it has none."""
    makers, users = graph.makers(), graph.users()
    for node in [node for node in graph.nodes if node.op == "BatchNorm"]:
        before = makers.get(node.inputs[0])
        if before is None or before.op != "Conv2D" or len(users[before.output.name]) > 1:
            continue
        if any(name not in graph.constants for name in (*before.inputs[1:], *node.inputs[1:])):
            continue
        gamma, beta, mean, variance = (graph.constants[name].astype(np.float64) for name in node.inputs[1:5])
        scale = gamma / np.sqrt(variance + node.attributes["epsilon"])
        weight = graph.constants[before.inputs[1]].astype(np.float64) * scale[:, None, None, None]
        name = before.output.name
        graph.constants[f"{name}_weight"] = weight.astype(np.float32)
        graph.constants[f"{name}_bias"] = (beta - mean * scale).astype(np.float32)
        before.inputs = [before.inputs[0], f"{name}_weight"]
        node.op, node.inputs, node.attributes = "BiasAdd", [name, f"{name}_bias"], {"format": "NCHW"}
        node.outputs = node.outputs[:1]


def fold_normalization(graph):
    """Let the stem normalise pixels: the scale goes into its weights, the mean but for one number into its bias.

    That number, the same for all channels, is subtracted: so pixels stay small, and rounding, too. The stem's padding
    with zeros, the normalised mean, becomes a border. MindSpore Lite takes as long to subtract a number a channel and
    to multiply by one as for a third of ShuffleNetV2 0.5x.
    """
    makers, users = graph.makers(), graph.users()
    for bias in [node for node in graph.nodes if node.op == "BiasAdd"]:
        chain = [bias]
        for op in ("Conv2D", "Mul", "Sub"):
            before = makers.get(chain[-1].inputs[0])
            if before is None or before.op != op or len(users[before.output.name]) > 1:
                break
            chain.append(before)
        if len(chain) < 4:
            continue
        _, conv, mul, sub = chain
        shape = sub.output.shape
        scale, mean = (graph.constants.get(node.inputs[1]) for node in (mul, sub))
        if any(array is None or array.size not in (1, shape[1]) for array in (scale, mean)):
            continue
        if conv.attributes["group"] != 1 or conv.attributes["pad_mode"].lower() != "pad":
            continue
        scale, mean = (np.broadcast_to(array.reshape(-1), shape[1]).astype(np.float64) for array in (scale, mean))
        common = mean.mean().round()
        weight = graph.constants[conv.inputs[1]].astype(np.float64) * scale[:, None, None]
        shifted = graph.constants[bias.inputs[1]] - (weight * (mean - common)[:, None, None]).sum((1, 2, 3))
        names = [f"{node.output.name}_of_pixels" for node in (conv, bias, sub)]
        arrays = (weight, shifted, np.array([common]))
        graph.constants.update((name, array.astype(np.float32)) for name, array in zip(names, arrays))
        sub.inputs = [sub.inputs[0], names[2]]
        bordered = surround(graph, sub.output.name, shape, mean - common, conv.attributes["pad_list"])
        position = graph.nodes.index(sub) + 1
        graph.nodes[position:position] = bordered
        conv.inputs = [bordered[-1].output.name if bordered else sub.output.name, names[0]]
        conv.attributes.update(pad=(0, 0, 0, 0), pad_list=(0, 0, 0, 0), pad_mode="valid")
        bias.inputs = [conv.output.name, names[1]]


def surround(graph, name, shape, colour, pads):
    """Return the nodes that put a border around the maps `name`: `pads` pixels at top, bottom, left and right.

    `shape` is that of the maps, (N, C, H, W), and `colour` has the C numbers of a pixel of the border.
    """
    nodes = []
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


def replace_pools(graph):
    """Make two-dimensional operators of the three-dimensional ones by which MindSpore does padded pooling.

    Their input is (N, C, H, W) made (N, C, 1, H, W). The average is a depthwise convolution; the maximum pads itself,
    as in MindSpore Lite and ONNX.
    """
    makers, users = graph.makers(), graph.users()
    for node in [node for node in graph.nodes if node.op in ("MaxPool3DWithArgmax", "AvgPool3D")]:
        source = makers[node.inputs[0]].inputs[0]
        squeeze, attributes = users[node.output.name][0], node.attributes
        strides = (1, 1, *attributes["strides"][-2:])
        if node.op == "AvgPool3D":
            if attributes.get("divisor_override") or not attributes.get("count_include_pad", True):
                raise UserError("an average pooling that divides by another number than its window cannot be exported")
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


def pool_means(graph):
    """Make a pooling of the mean over whole maps, for MindSpore Lite's converter: Lite would transpose them for a mean.

    MindSpore itself loads no such pooling from MindIR.
    """
    makers = graph.makers()
    for node in graph.nodes:
        if node.op == "ReduceMean" and node.attributes["axis"] == (2, 3) and node.attributes["keep_dims"]:
            height, width = makers[node.inputs[0]].output.shape[2:]
            node.op = "AvgPool"
            node.attributes = {
                "kernel_size": (1, 1, height, width),
                "strides": (1, 1, 1, 1),
                "pad_mode": "VALID",
                "format": "NCHW",
            }


def separate_padding(graph):
    """Let an operator of its own pad a max pooling with zeros, which is right after a ReLU: MindSpore's cannot."""
    makers, nodes = graph.makers(), []
    for node in graph.nodes:
        if node.op == "MaxPool" and node.attributes["pad_mode"] == "PAD":
            source = makers[node.inputs[0]]
            if source.op not in ("ReLU", "ReLU6"):
                raise UserError("a max pooling padded with zeros is exported to MindIR after a ReLU only")
            top, bottom, left, right = node.attributes.pop("pad")
            n, c, height, width = source.output.shape
            shape = (n, c, height + top + bottom, width + left + right)
            padded = Value(f"{node.output.name}_padded", shape, source.output.dtype)
            paddings = {"paddings": ((0, 0), (0, 0), (top, bottom), (left, right))}
            nodes.append(Node("Pad", node.inputs, [padded], paddings))
            node.inputs, node.attributes["pad_mode"] = [padded.name], "VALID"
        nodes.append(node)
    graph.nodes = nodes


def depthwise_attributes(kernel, strides, pads, channels):
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


def replace_shuffles(graph):
    """Make slices of each channel shuffle (reshape, transpose, reshape): one for each part that is split off after it.

    A shuffle that nothing splits becomes slices joined again, or a gather where there would be many.
    """
    users = graph.users()
    for first in [node for node in graph.nodes if node.op == "Reshape" and len(node.output.shape) == 5]:
        transpose = users[first.output.name][0]
        last = users[transpose.output.name][0]
        batch, runs, each, height, width = first.output.shape
        shuffled = (batch, runs * each, height, width)
        if transpose.attributes.get("input_perm") != (0, 2, 1, 3, 4) or last.output.shape != shuffled:
            continue
        source, after = first.inputs[0], users[last.output.name]
        order = np.arange(runs * each).reshape(runs, each).T.reshape(-1)
        if len(after) == 1 and after[0] is not None and after[0].op == "Split":
            replaced, values, joined = after[0], after[0].outputs, []
        elif each > MOST_SLICES:
            replaced, values, joined = last, last.outputs, []
        else:
            replaced, shape = last, (batch, runs, height, width)
            values = [Value(f"{last.output.name}_part_{i}", shape, last.output.dtype) for i in range(each)]
            joined = [Node("Concat", [value.name for value in values], last.outputs, {"axis": 1})]
        parts = zip(values, np.split(order, len(values)))
        position = graph.nodes.index(replaced)
        graph.nodes[position : position + 1] = [select(graph, source, *part) for part in parts] + joined


def select(graph, source, value, channels):
    """Return the node that makes `value` of these channels of `source`."""
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


def drop_no_ops(graph):
    """Take out nodes whose output is their input: reshapes to the same shape, slices and splits of everything."""
    shapes = {graph.input.name: graph.input.shape}
    same = {}
    for node in graph.nodes:
        node.inputs = [same.get(name, name) for name in node.inputs]
        shapes.update((value.name, value.shape) for value in node.outputs)
        unchanged = node.op in ("Reshape", "Flatten", "StridedSlice") and node.output.shape == shapes[node.inputs[0]]
        if unchanged and node.output != graph.output:
            same[node.output.name] = node.inputs[0]


def halve_weights(graph):
    """Keep the weights as float16, widened again as the network starts: half the size, the same arithmetic."""
    widened, weights = {}, {node.inputs[1] for node in graph.nodes if node.op in ("Conv2D", "MatMul")}
    for name, array in list(graph.constants.items()):
        if array.dtype == np.float32 and name in weights:
            half = f"{name}_half"
            graph.constants[half] = graph.constants.pop(name).astype(np.float16)
            value = Value(name, array.shape, "float32")
            widened[name] = Node("Cast", [half], [value], {"dtype": TYPE_IDS["float32"]})
    graph.nodes = [*widened.values(), *graph.nodes]
