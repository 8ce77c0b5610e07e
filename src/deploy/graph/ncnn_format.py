"""Write a graph as ncnn's two files: layers and blobs as text (.param), and the weights (.bin).

The formats are described in ncnn's documentation: docs/developer-guide/param-and-model-file-structure.md and
operators.md. ncnn has no batch axis, so the axes of its blobs are (C, H, W).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

from src.deploy.graph.graph import Graph, Node
from src.deploy.graph.passes import (
    SLICE_MASKS,
    channel_shuffles,
    drop_no_ops,
    fold_batch_norm,
    fold_scale,
    replace_pools,
)
from src.errors import UserError

MAGIC = 7767517  # the first line of a .param file
FLOAT32, FLOAT16 = b"\0\0\0\0", (0x01306B47).to_bytes(4, "little")  # the types of weights, before them in a .bin file
BINARY = {"Add": 0, "Sub": 1, "Mul": 2, "Div": 3, "RealDiv": 3}  # numbers of the layer BinaryOp
# Operators of one input: {MindSpore's name: (ncnn's layer, its parameters)}.
UNARY: dict[str, tuple[str, dict[int, Any]]] = {
    "ReLU": ("ReLU", {}),
    "ReLU6": ("Clip", {0: 0.0, 1: 6.0}),
    "HSwish": ("HardSwish", {0: 1 / 6, 1: 0.5}),
    "HSigmoid": ("HardSigmoid", {0: 1 / 6, 1: 0.5}),
    "Sigmoid": ("Sigmoid", {}),
    "Tanh": ("TanH", {}),
    "Softmax": ("Softmax", {0: 0, 1: 1}),  # of a vector
    "Flatten": ("Flatten", {}),
}
# Activations that a convolution computes itself: {MindSpore's name: (number, its parameters)}.
FUSED: dict[str, tuple[int, list[float]]] = {
    "ReLU": (1, []),
    "ReLU6": (3, [0.0, 6.0]),
    "Sigmoid": (4, []),
    "HSwish": (6, [1 / 6, 0.5]),
}
WEIGHTED = ("Convolution", "ConvolutionDepthWise", "InnerProduct")
BIAS, ACTIVATION, ACTIVATION_PARAMETERS = 5, 9, 10  # parameters of convolutions; InnerProduct's bias has number 1


@dataclass
class Layer:
    """A line of the .param file. `params` are by ncnn's numbers; `data` are the layer's bytes in the .bin file."""

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    params: dict[int, Any] = field(default_factory=dict)
    data: list[bytes] = field(default_factory=list)

    def line(self) -> str:
        """Return the layer as text. An array parameter has the number -23300 - number, and begins with its length."""
        parts = [self.kind, self.name, str(len(self.inputs)), str(len(self.outputs)), *self.inputs, *self.outputs]
        for number, value in self.params.items():
            if isinstance(value, (list, tuple)):
                parts.append(f"{-23300 - number}={','.join([str(len(value)), *map(text_of, value)])}")
            else:
                parts.append(f"{number}={text_of(value)}")
        return " ".join(parts)


def text_of(value: Union[int, float]) -> str:
    """Return a number as ncnn reads it: a float has a point or an exponent, and 9 digits give a float32 exactly."""
    return f"{value:.9e}" if isinstance(value, float) else str(value)


def optimize_for_ncnn(graph: Graph) -> None:
    """Apply the passes that help ncnn. It has a layer for channel shuffles, and pads convolutions itself."""
    fold_batch_norm(graph)
    fold_scale(graph)
    replace_pools(graph)
    join_shuffles(graph)
    drop_no_ops(graph)
    graph.prune()


def join_shuffles(graph: Graph) -> None:
    """Replace each channel shuffle (reshape, transpose, reshape) by one ShuffleChannel."""
    for to_groups, from_groups in channel_shuffles(graph):
        from_groups.op, from_groups.inputs = "ShuffleChannel", to_groups.inputs
        from_groups.attributes = {"group": to_groups.output.shape[1]}


def write_ncnn(graph: Graph, path: Path, half: bool = False) -> None:
    """Write a `Graph` as `path`, whose name ends with .param, and the file of weights beside it (.bin).

    With `half`, the weights of convolutions are float16. An operator that `Writer` does not know is a `UserError`.
    """
    layers = with_splits(Writer(graph, half).layers)
    blobs = sum(len(layer.outputs) for layer in layers)
    lines = [str(MAGIC), f"{len(layers)} {blobs}", *(layer.line() for layer in layers)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.with_suffix(".bin").write_bytes(b"".join(part for layer in layers for part in layer.data))


def with_splits(layers: list[Layer]) -> list[Layer]:
    """Return the layers with a Split behind each blob that several layers take, because ncnn needs a copy for each."""
    counts = Counter(name for layer in layers for name in layer.inputs)
    copies: dict[str, Iterator[str]] = {}  # of each blob, the copies that no layer has taken yet
    result = []
    for layer in layers:
        layer.inputs = [next(copies[name]) if name in copies else name for name in layer.inputs]
        result.append(layer)
        for blob in layer.outputs:
            if counts[blob] > 1:
                names = [f"{blob}_copy_{i}" for i in range(counts[blob])]
                result.append(Layer("Split", f"{blob}_split", [blob], names))
                copies[blob] = iter(names)
    return result


class Writer:
    """Collect the layers of one graph.

    `convert_X` adds the layers for MindSpore's operator X. It takes the node and its attributes as `settings`.
    """

    def __init__(self, graph: Graph, half: bool) -> None:
        self.graph, self.half = graph, half
        self.consumers = graph.consumers()
        self.shapes = {graph.input.name: graph.input.shape}
        for node in graph.nodes:
            self.shapes.update((value.name, value.shape) for value in node.outputs)
        self.same: dict[str, str] = {}  # values that are another blob: a Cast and a Transpose of the image
        self.layers = [Layer("Input", graph.input.name, [], [graph.input.name])]
        for node in graph.nodes:
            self.convert(node)

    def convert(self, node: Node) -> None:
        """Add the layers for one node of the graph."""
        special = getattr(self, f"convert_{node.op}", None)
        if node.op in BINARY:
            self.convert_binary(node)
        elif node.op in UNARY:
            self.convert_unary(node)
        elif special is not None:
            special(node, node.attributes)
        else:
            raise UserError(f"--format ncnn: operator {node.op} is not supported")

    def blobs(self, node: Node) -> list[str]:
        """Return the names of the blobs that a node takes."""
        return [self.same.get(name, name) for name in node.inputs if name not in self.graph.constants]

    def add(self, kind: str, node: Node, params: dict[int, Any], inputs: Optional[list[str]] = None) -> Layer:
        """Add a layer, named after the first output of its node."""
        outputs = [value.name for value in node.outputs]
        layer = Layer(kind, outputs[0], self.blobs(node) if inputs is None else inputs, outputs, params)
        self.layers.append(layer)
        return layer

    def weights(self, name: str) -> list[bytes]:
        """Return the bytes of a constant of weights with its type."""
        array = self.graph.constants[name]
        if not self.half:
            return [FLOAT32, array.astype("<f4").tobytes()]
        content = array.astype("<f2").tobytes()
        return [FLOAT16, content, bytes(-len(content) % 4)]

    def producer(self, name: str) -> Optional[Layer]:
        """Return the last layer if it has weights and only one node takes its output, the blob `name`."""
        last = self.layers[-1]
        usable = last.kind in WEIGHTED and last.outputs == [name] and len(self.consumers[name]) == 1
        return last if usable else None

    def convert_Cast(self, node: Node, settings: dict[str, Any]) -> None:  # noqa: N802
        self.skip_of_image(node)

    def convert_Transpose(self, node: Node, settings: dict[str, Any]) -> None:  # noqa: N802
        self.skip_of_image(node)

    def skip_of_image(self, node: Node) -> None:
        """Leave out the steps from uint8 (H, W, C) to float32 (C, H, W): the application's `from_pixels` does them."""
        (name,) = self.blobs(node)
        if name != self.graph.input.name:
            raise UserError(f"--format ncnn: operator {node.op} is supported for the input only")
        self.same[node.output.name] = name

    def convert_binary(self, node: Node) -> None:
        number, inputs = BINARY[node.op], self.blobs(node)
        constants = [name for name in node.inputs if name in self.graph.constants]
        if not constants:
            self.add("BinaryOp", node, {0: number}, inputs)
            return
        array = self.graph.constants[constants[0]]
        if node.inputs[1] != constants[0] or (array.ndim > 1 and array.shape[0] != 1):
            raise UserError(f"--format ncnn: operator {node.op} is not supported with a constant as first operand")
        if array.size == 1:
            self.add("BinaryOp", node, {0: number, 1: 1, 2: float(array.reshape(-1)[0])}, inputs)
            return
        channels, height, width = array.reshape(array.shape[-3:]).shape
        name = f"{node.output.name}_constant"
        data = [array.astype("<f4").tobytes()]
        self.layers.append(Layer("MemoryData", name, [], [name], {0: width, 1: height, 2: channels}, data))
        self.add("BinaryOp", node, {0: number}, [*inputs, name])

    def convert_unary(self, node: Node) -> None:
        previous = self.producer(self.blobs(node)[0]) if node.op in FUSED else None
        if previous is None or ACTIVATION in previous.params:
            kind, layer_params = UNARY[node.op]
            self.add(kind, node, dict(layer_params))
            return
        previous.params[ACTIVATION], parameters = FUSED[node.op]
        if parameters:
            previous.params[ACTIVATION_PARAMETERS] = parameters
        previous.name, previous.outputs = node.output.name, [node.output.name]

    def convert_Conv2D(self, node: Node, settings: dict[str, Any]) -> None:  # noqa: N802
        weight = self.graph.constants[node.inputs[1]]
        (height, width), group = weight.shape[2:], settings["group"]
        dilation, stride = settings["dilation"][-2:], settings["stride"][-2:]
        window = [(size - 1) * step + 1 for size, step in zip((height, width), dilation)]
        top, bottom, left, right = self.padding(node, settings["pad_mode"], settings["pad_list"], window, stride)
        params = {
            0: weight.shape[0],
            1: width,
            11: height,
            2: dilation[1],
            12: dilation[0],
            3: stride[1],
            13: stride[0],
        }
        params |= {4: left, 14: top, 15: right, 16: bottom, 6: weight.size}
        layer = self.add("Convolution" if group == 1 else "ConvolutionDepthWise", node, params)
        if group != 1:
            layer.params[7] = group
        layer.data = self.weights(node.inputs[1])

    def convert_MatMul(self, node: Node, settings: dict[str, Any]) -> None:  # noqa: N802
        weight = self.graph.constants.get(node.inputs[1])
        if weight is None or settings["transpose_a"] or not settings["transpose_b"]:
            raise UserError("--format ncnn: operator MatMul is supported only for a fully connected layer")
        layer = self.add("InnerProduct", node, {0: weight.shape[0], 2: weight.size})
        layer.data = self.weights(node.inputs[1])

    def convert_BiasAdd(self, node: Node, settings: dict[str, Any]) -> None:  # noqa: N802
        layer = self.producer(self.blobs(node)[0])
        bias = 1 if layer is not None and layer.kind == "InnerProduct" else BIAS
        if layer is None or bias in layer.params or ACTIVATION in layer.params:
            raise UserError("--format ncnn: operator BiasAdd is supported only directly after a convolution or MatMul")
        layer.params[bias] = 1
        layer.data.append(self.graph.constants[node.inputs[1]].astype("<f4").tobytes())
        layer.name, layer.outputs = node.output.name, [node.output.name]

    def convert_BatchNorm(self, node: Node, settings: dict[str, Any]) -> None:  # noqa: N802
        gamma, beta, mean, variance = (self.graph.constants[name].astype("<f4") for name in node.inputs[1:5])
        node.outputs = node.outputs[:1]
        layer = self.add("BatchNorm", node, {0: gamma.size, 1: float(settings["epsilon"])})
        layer.data = [array.tobytes() for array in (gamma, mean, variance, beta)]

    def convert_ReduceMean(self, node: Node, settings: dict[str, Any]) -> None:  # noqa: N802
        if settings["axis"] != (2, 3):
            raise UserError("--format ncnn: operator ReduceMean is supported for whole feature maps only")
        self.add("Pooling", node, {0: 1, 4: 1})  # an average of everything, as a vector

    def convert_MaxPool(self, node: Node, settings: dict[str, Any]) -> None:  # noqa: N802
        window, stride = settings["kernel_size"][-2:], settings["strides"][-2:]
        top, bottom, left, right = self.padding(node, settings["pad_mode"], settings.get("pad", ()), window, stride)
        params = {0: int(node.op == "AvgPool"), 1: window[1], 11: window[0], 2: stride[1], 12: stride[0]}
        self.add("Pooling", node, {**params, 3: left, 13: top, 14: right, 15: bottom, 5: 1})

    convert_AvgPool = convert_MaxPool  # noqa: N815

    def convert_ShuffleChannel(self, node: Node, settings: dict[str, Any]) -> None:  # noqa: N802
        self.add("ShuffleChannel", node, {0: settings["group"]})

    def convert_Concat(self, node: Node, settings: dict[str, Any]) -> None:  # noqa: N802
        self.add("Concat", node, {0: self.axis(node, settings["axis"])})

    def convert_Split(self, node: Node, settings: dict[str, Any]) -> None:  # noqa: N802
        sizes = [value.shape[settings["axis"]] for value in node.outputs]
        self.add("Slice", node, {0: sizes, 1: self.axis(node, settings["axis"])})

    def convert_StridedSlice(self, node: Node, settings: dict[str, Any]) -> None:  # noqa: N802
        size, output = self.shapes[node.inputs[0]], node.output.shape
        changed = [axis for axis in range(len(size)) if size[axis] != output[axis]]
        if len(size) != len(output) or any(step != 1 for step in settings["strides"]) or changed != [1]:
            raise UserError("--format ncnn: operator StridedSlice is supported for neighbouring channels only")
        masks = {key: settings[key] for key in SLICE_MASKS}
        begin = 0 if masks["begin_mask"] >> 1 & 1 else settings["begin"][1]
        self.add("Crop", node, {9: [begin], 10: [begin + output[1]], 11: [0]})

    def axis(self, node: Node, axis: int) -> int:
        """Return ncnn's number of an axis, which does not count the batch."""
        if axis == 0:
            raise UserError(f"--format ncnn: operator {node.op} is not supported for the axis of the batch")
        return axis - 1 if axis > 0 else axis

    def padding(
        self, node: Node, mode: str, pads: Sequence[int], window: Sequence[int], stride: Sequence[int]
    ) -> tuple[int, ...]:
        """Return the padding at top, bottom, left and right; only the mode "pad" uses `pads`."""
        if mode.lower() == "pad":
            return tuple(pads)
        if mode.lower() == "valid":
            return 0, 0, 0, 0
        result: list[int] = []
        for before, after, length, step in zip(self.shapes[node.inputs[0]][2:], node.output.shape[2:], window, stride):
            total = max(0, (after - 1) * step + length - before)
            result += [total // 2, total - total // 2]
        return tuple(result)
