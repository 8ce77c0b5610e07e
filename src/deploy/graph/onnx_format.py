"""Writing a graph as ONNX, operator by operator."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from src.deploy.graph.passes import SLICE_MASKS
from src.errors import UserError

OPSET = 17  # loaded by ONNX Runtime from 1.12 on
SAME_NAME = {  # MindSpore's name: ONNX's, where nothing else differs
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


def write_onnx(graph, path):
    """Write a `Graph` as an ONNX file; an operator that is not known here is a `UserError`."""
    Writer(graph).write(path)


class Writer:
    """Collects the ONNX nodes and constants of one graph."""

    def __init__(self, graph):
        self.graph = graph
        self.nodes = []
        self.constants = dict(graph.constants)
        self.shapes = {graph.input.name: graph.input.shape}
        for node in graph.nodes:
            self.shapes.update((value.name, value.shape) for value in node.outputs)

    def write(self, path):
        for node in self.graph.nodes:
            self.convert(node)
        used = {name for node in self.nodes for name in node.input}
        initializers = [numpy_helper.from_array(array, name) for name, array in self.constants.items() if name in used]
        ports = [
            [helper.make_tensor_value_info(value.name, onnx_type(value.dtype), value.shape)]
            for value in (self.graph.input, self.graph.output)
        ]
        proto = helper.make_graph(self.nodes, "network", *ports, initializers)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(proto, producer_name="PocketSpore", opset_imports=[opset], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))

    def add(self, op, inputs, outputs, **attributes):
        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], **attributes))

    def constant(self, node, key, values, dtype=np.int64):
        """Put a node's setting among the constants, as newer ONNX wants it, and return its name."""
        name = f"{node.output.name}_{key}"
        self.constants[name] = np.array(values, dtype)
        return name

    def convert(self, node):
        if node.op in SAME_NAME:
            self.add(SAME_NAME[node.op], node.inputs, [node.output.name])
            return
        special = getattr(self, f"convert_{node.op}", None)
        if special is None:
            raise UserError(f"--format onnx: the network has the operator {node.op}, which is not known here")
        special(node, node.attributes, [value.name for value in node.outputs])

    def convert_Conv2D(self, node, settings, outputs):  # noqa: N802
        self.add(
            "Conv",
            node.inputs,
            outputs,
            strides=settings["stride"][-2:],
            dilations=settings["dilation"][-2:],
            group=settings["group"],
            **padding(settings["pad_mode"], settings["pad_list"]),
        )

    def convert_BiasAdd(self, node, settings, outputs):  # noqa: N802
        before = self.nodes[-1] if self.nodes else None
        mergeable = before is not None and before.op_type in ("Conv", "Gemm") and len(before.input) == 2
        if mergeable and before.output[0] == node.inputs[0]:
            before.input.append(node.inputs[1])
            before.output[0] = before.name = outputs[0]
            return
        bias = node.inputs[1]
        if len(node.output.shape) == 4:
            bias = self.constant(node, "bias", self.graph.constants[bias].reshape(-1, 1, 1), np.float32)
        self.add("Add", [node.inputs[0], bias], outputs)

    def convert_BatchNorm(self, node, settings, outputs):  # noqa: N802
        self.add("BatchNormalization", node.inputs[:5], outputs[:1], epsilon=settings["epsilon"])

    def convert_MatMul(self, node, settings, outputs):  # noqa: N802
        flags = {"transA": int(settings["transpose_a"]), "transB": int(settings["transpose_b"])}
        self.add("Gemm", node.inputs, outputs, **flags)

    def convert_ReLU6(self, node, settings, outputs):  # noqa: N802
        bounds = [self.constant(node, key, value, np.float32) for key, value in (("low", 0), ("high", 6))]
        self.add("Clip", [*node.inputs, *bounds], outputs)

    def convert_HSigmoid(self, node, settings, outputs):  # noqa: N802
        self.add("HardSigmoid", node.inputs, outputs, alpha=1 / 6, beta=0.5)

    def convert_Softmax(self, node, settings, outputs):  # noqa: N802
        axis = settings["axis"]
        self.add("Softmax", node.inputs, outputs, axis=axis if isinstance(axis, int) else axis[0])

    def convert_Cast(self, node, settings, outputs):  # noqa: N802
        self.add("Cast", node.inputs, outputs, to=onnx_type(node.output.dtype))

    def convert_Transpose(self, node, settings, outputs):  # noqa: N802
        self.add("Transpose", node.inputs, outputs, perm=settings["input_perm"])

    def convert_Reshape(self, node, settings, outputs):  # noqa: N802
        self.add("Reshape", [node.inputs[0], self.constant(node, "shape", node.output.shape)], outputs)

    convert_Flatten = convert_ExpandDims = convert_Squeeze = convert_Reshape  # noqa: N815

    def convert_ReduceMean(self, node, settings, outputs):  # noqa: N802
        axes = settings["axis"]
        axes = (axes,) if isinstance(axes, int) else axes
        if tuple(axes) == (2, 3) and settings["keep_dims"]:
            self.add("GlobalAveragePool", node.inputs, outputs)
        else:
            self.add("ReduceMean", node.inputs, outputs, axes=axes, keepdims=int(settings["keep_dims"]))

    def convert_MaxPool(self, node, settings, outputs):  # noqa: N802
        window = {"kernel_shape": settings["kernel_size"][-2:], "strides": settings["strides"][-2:]}
        op = "MaxPool" if node.op == "MaxPool" else "AveragePool"
        self.add(op, node.inputs, outputs, **window, **padding(settings["pad_mode"], settings.get("pad")))

    convert_AvgPool = convert_MaxPool  # noqa: N815

    def convert_Pad(self, node, settings, outputs):  # noqa: N802
        before, after = zip(*settings["paddings"])
        self.add("Pad", [node.inputs[0], self.constant(node, "pads", [*before, *after])], outputs)

    def convert_Concat(self, node, settings, outputs):  # noqa: N802
        self.add("Concat", node.inputs, outputs, axis=settings["axis"])

    def convert_Split(self, node, settings, outputs):  # noqa: N802
        sizes = self.constant(node, "sizes", [value.shape[settings["axis"]] for value in node.outputs])
        self.add("Split", [node.inputs[0], sizes], outputs, axis=settings["axis"])

    def convert_Gather(self, node, settings, outputs):  # noqa: N802
        self.add("Gather", node.inputs, outputs, axis=settings["axis"])

    def convert_StridedSlice(self, node, settings, outputs):  # noqa: N802
        masks = {key: settings[key] for key in SLICE_MASKS}
        rank = len(self.shapes[node.inputs[0]])
        begin, end, strides = settings["begin"], settings["end"], settings["strides"]
        # A mask's bit opens the slice on that side of an axis, or takes the axis out.
        if masks["ellipsis_mask"] or masks["new_axis_mask"] or len(begin) > rank:
            raise UserError("--format onnx: the network has a slice with an ellipsis or a new axis, not known here")
        size = self.shapes[node.inputs[0]]
        low = [0 if masks["begin_mask"] >> i & 1 else value for i, value in enumerate(begin)]
        high = [size[i] if masks["end_mask"] >> i & 1 else value for i, value in enumerate(end)]
        parts = (("begin", low), ("end", high), ("axes", range(len(begin))), ("strides", strides))
        inputs = [node.inputs[0], *(self.constant(node, key, list(values)) for key, values in parts)]
        dropped = [i for i in range(len(begin)) if masks["shrink_axis_mask"] >> i & 1]
        if not dropped:
            self.add("Slice", inputs, outputs)
            return
        kept = f"{outputs[0]}_kept"
        self.add("Slice", inputs, [kept])
        self.add("Squeeze", [kept, self.constant(node, "dropped", dropped)], outputs)


def padding(mode, pads):
    """Return the attributes of a convolution's or pooling's padding; MindSpore's are top, bottom, left, right."""
    if mode.lower() == "same":
        return {"auto_pad": "SAME_UPPER"}
    top, bottom, left, right = pads if mode.lower() == "pad" else (0, 0, 0, 0)
    return {"pads": [top, left, bottom, right]}


def onnx_type(dtype):
    return TensorProto.DataType.Value(
        {"float32": "FLOAT", "float16": "FLOAT16", "uint8": "UINT8", "int32": "INT32", "int64": "INT64"}[dtype]
    )
