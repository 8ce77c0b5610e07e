"""Write a graph as ONNX, operator by operator."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from src.deploy.graph.graph import Graph, Node
from src.deploy.graph.passes import SLICE_MASKS
from src.errors import UserError

OPSET = 17  # ONNX Runtime loads it from 1.12 on
# Operators that differ only in their name: {MindSpore's name: ONNX's name}.
RENAMED = {
    "Add": "Add",
    "Sub": "Sub",
    "Mul": "Mul",
    "Div": "Div",
    "RealDiv": "Div",
    "ReLU": "Relu",
    "HSwish": "HardSwish",
    "Sigmoid": "Sigmoid",
    "Tanh": "Tanh",
}


def write_onnx(
    graph: Graph, path: Union[str, Path], metadata: Optional[Mapping[str, str]] = None, dynamic_batch: bool = False
) -> None:
    """Write a `Graph` as an ONNX file; an operator that `Writer` does not know is a `UserError`.

    `metadata` goes into the file's `metadata_props`. With `dynamic_batch`, the file takes any number of images; the
    graph must have been optimised for this.
    """
    Writer(graph, dynamic_batch).write(path, metadata or {})


class Writer:
    """Collect the ONNX nodes and constants of one graph.

    `convert_X` adds the ONNX nodes for MindSpore's operator X. It takes the node, its attributes as `settings`, and the
    names of its outputs.
    """

    def __init__(self, graph: Graph, dynamic_batch: bool) -> None:
        self.graph = graph
        self.dynamic_batch = dynamic_batch
        self.nodes: list[onnx.NodeProto] = []
        self.constants = dict(graph.constants)
        self.shapes = {graph.input.name: graph.input.shape}
        for node in graph.nodes:
            self.shapes.update((value.name, value.shape) for value in node.outputs)

    def write(self, path: Union[str, Path], metadata: Mapping[str, str]) -> None:
        """Convert all nodes, let ONNX check the model, and write it to `path`."""
        for node in self.graph.nodes:
            self.convert(node)
        used = {name for node in self.nodes for name in node.input}
        initializers = [numpy_helper.from_array(array, name) for name, array in self.constants.items() if name in used]
        inputs, outputs = (
            [helper.make_tensor_value_info(value.name, onnx_type(value.dtype), self.shape(value.shape))]
            for value in (self.graph.input, self.graph.output)
        )
        proto = helper.make_graph(self.nodes, "network", inputs, outputs, initializers)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(proto, producer_name="PocketSpore", opset_imports=[opset], ir_version=8)
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model)
        onnx.save(model, str(path))

    def shape(self, shape: Sequence[int]) -> list[Union[int, str]]:
        """Return the shape of the file's input or output."""
        return ["batch", *shape[1:]] if self.dynamic_batch else [*shape]

    def add(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Add an ONNX node, named after its first output."""
        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], **attributes))

    def constant(self, node: Node, key: str, values: Any, dtype: type = np.int64) -> str:
        """Add a node's setting to the constants and return its name: newer ONNX takes such settings as inputs."""
        name = f"{node.output.name}_{key}"
        self.constants[name] = np.array(values, dtype)
        return name

    def convert(self, node: Node) -> None:
        """Add the ONNX nodes for one node of the graph."""
        if node.op in RENAMED:
            self.add(RENAMED[node.op], node.inputs, [node.output.name])
            return
        special = getattr(self, f"convert_{node.op}", None)
        if special is None:
            raise UserError(f"--format onnx: operator {node.op} is not supported")
        special(node, node.attributes, [value.name for value in node.outputs])

    def convert_Conv2D(self, node: Node, settings: dict[str, Any], outputs: list[str]) -> None:  # noqa: N802
        self.add(
            "Conv",
            node.inputs,
            outputs,
            strides=settings["stride"][-2:],
            dilations=settings["dilation"][-2:],
            group=settings["group"],
            **padding(settings["pad_mode"], settings["pad_list"]),
        )

    def convert_BiasAdd(self, node: Node, settings: dict[str, Any], outputs: list[str]) -> None:  # noqa: N802
        previous = self.nodes[-1] if self.nodes else None
        if (
            previous is not None
            and previous.op_type in ("Conv", "Gemm")
            and len(previous.input) == 2
            and previous.output[0] == node.inputs[0]
        ):
            # ONNX's Conv and Gemm take a bias as their third input.
            previous.input.append(node.inputs[1])
            previous.output[0] = previous.name = outputs[0]
            return
        bias = node.inputs[1]
        if len(node.output.shape) == 4:
            bias = self.constant(node, "bias", self.graph.constants[bias].reshape(-1, 1, 1), np.float32)
        self.add("Add", [node.inputs[0], bias], outputs)

    def convert_BatchNorm(self, node: Node, settings: dict[str, Any], outputs: list[str]) -> None:  # noqa: N802
        self.add("BatchNormalization", node.inputs[:5], outputs[:1], epsilon=settings["epsilon"])

    def convert_MatMul(self, node: Node, settings: dict[str, Any], outputs: list[str]) -> None:  # noqa: N802
        flags = {"transA": int(settings["transpose_a"]), "transB": int(settings["transpose_b"])}
        self.add("Gemm", node.inputs, outputs, **flags)

    def convert_ReLU6(self, node: Node, settings: dict[str, Any], outputs: list[str]) -> None:  # noqa: N802
        bounds = [self.constant(node, key, value, np.float32) for key, value in (("low", 0), ("high", 6))]
        self.add("Clip", [*node.inputs, *bounds], outputs)

    def convert_HSigmoid(self, node: Node, settings: dict[str, Any], outputs: list[str]) -> None:  # noqa: N802
        self.add("HardSigmoid", node.inputs, outputs, alpha=1 / 6, beta=0.5)

    def convert_Softmax(self, node: Node, settings: dict[str, Any], outputs: list[str]) -> None:  # noqa: N802
        axis = settings["axis"]
        self.add("Softmax", node.inputs, outputs, axis=axis if isinstance(axis, int) else axis[0])

    def convert_Cast(self, node: Node, settings: dict[str, Any], outputs: list[str]) -> None:  # noqa: N802
        self.add("Cast", node.inputs, outputs, to=onnx_type(node.output.dtype))

    def convert_Transpose(self, node: Node, settings: dict[str, Any], outputs: list[str]) -> None:  # noqa: N802
        self.add("Transpose", node.inputs, outputs, perm=settings["input_perm"])

    def convert_Reshape(self, node: Node, settings: dict[str, Any], outputs: list[str]) -> None:  # noqa: N802
        shape = node.output.shape
        if self.dynamic_batch:
            shape = (0, *shape[1:])  # 0 copies this dimension of the input
        self.add("Reshape", [node.inputs[0], self.constant(node, "shape", shape)], outputs)

    convert_Flatten = convert_ExpandDims = convert_Squeeze = convert_Reshape  # noqa: N815

    def convert_ReduceMean(self, node: Node, settings: dict[str, Any], outputs: list[str]) -> None:  # noqa: N802
        axes = settings["axis"]
        axes = (axes,) if isinstance(axes, int) else axes
        if tuple(axes) == (2, 3) and settings["keep_dims"]:
            self.add("GlobalAveragePool", node.inputs, outputs)
        else:
            self.add("ReduceMean", node.inputs, outputs, axes=axes, keepdims=int(settings["keep_dims"]))

    def convert_MaxPool(self, node: Node, settings: dict[str, Any], outputs: list[str]) -> None:  # noqa: N802
        window = {"kernel_shape": settings["kernel_size"][-2:], "strides": settings["strides"][-2:]}
        op = "MaxPool" if node.op == "MaxPool" else "AveragePool"
        self.add(op, node.inputs, outputs, **window, **padding(settings["pad_mode"], settings.get("pad", ())))

    convert_AvgPool = convert_MaxPool  # noqa: N815

    def convert_Pad(self, node: Node, settings: dict[str, Any], outputs: list[str]) -> None:  # noqa: N802
        before, after = zip(*settings["paddings"])
        self.add("Pad", [node.inputs[0], self.constant(node, "pads", [*before, *after])], outputs)

    def convert_Concat(self, node: Node, settings: dict[str, Any], outputs: list[str]) -> None:  # noqa: N802
        self.add("Concat", node.inputs, outputs, axis=settings["axis"])

    def convert_Split(self, node: Node, settings: dict[str, Any], outputs: list[str]) -> None:  # noqa: N802
        sizes = self.constant(node, "sizes", [value.shape[settings["axis"]] for value in node.outputs])
        self.add("Split", [node.inputs[0], sizes], outputs, axis=settings["axis"])

    def convert_Gather(self, node: Node, settings: dict[str, Any], outputs: list[str]) -> None:  # noqa: N802
        self.add("Gather", node.inputs, outputs, axis=settings["axis"])

    def convert_StridedSlice(self, node: Node, settings: dict[str, Any], outputs: list[str]) -> None:  # noqa: N802
        masks = {key: settings[key] for key in SLICE_MASKS}
        rank = len(self.shapes[node.inputs[0]])
        begin, end, strides = settings["begin"], settings["end"], settings["strides"]
        # A bit of begin_mask or end_mask removes the limit on that side of an axis; a bit of shrink_axis_mask removes
        # the axis itself.
        if masks["ellipsis_mask"] or masks["new_axis_mask"] or len(begin) > rank:
            raise UserError("--format onnx: a slice with an ellipsis or a new axis is not supported")
        size = self.shapes[node.inputs[0]]
        low = [0 if masks["begin_mask"] >> i & 1 else value for i, value in enumerate(begin)]
        high = [size[i] if masks["end_mask"] >> i & 1 else value for i, value in enumerate(end)]
        if self.dynamic_batch:
            high[0] = np.iinfo(np.int64).max
        parts = (("begin", low), ("end", high), ("axes", range(len(begin))), ("strides", strides))
        inputs = [node.inputs[0], *(self.constant(node, key, list(values)) for key, values in parts)]
        dropped = [i for i in range(len(begin)) if masks["shrink_axis_mask"] >> i & 1]
        if not dropped:
            self.add("Slice", inputs, outputs)
            return
        sliced = f"{outputs[0]}_sliced"
        self.add("Slice", inputs, [sliced])
        self.add("Squeeze", [sliced, self.constant(node, "dropped", dropped)], outputs)


def padding(mode: str, pads: Sequence[int]) -> dict[str, Any]:
    """Return the ONNX attributes for the padding of a convolution or pooling.

    `pads` are MindSpore's (top, bottom, left, right); only the mode "pad" uses them.
    """
    if mode.lower() == "same":
        return {"auto_pad": "SAME_UPPER"}
    top, bottom, left, right = pads if mode.lower() == "pad" else (0, 0, 0, 0)
    return {"pads": [top, left, bottom, right]}


def onnx_type(dtype: str) -> int:
    """Return ONNX's number of a type that has NumPy's name `dtype`."""
    return TensorProto.DataType.Value(
        {"float32": "FLOAT", "float16": "FLOAT16", "uint8": "UINT8", "int32": "INT32", "int64": "INT64"}[dtype]
    )
