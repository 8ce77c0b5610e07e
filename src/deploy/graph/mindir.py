"""Read MindIR files of any version, and write version 1, which MindSpore and MindSpore Lite load.

From version 2 on, an operator's attributes are its last inputs instead. The operator's Python class gives their
names: its `__call__` takes the inputs, its `__init__` takes the attributes.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

import mindspore as ms
import numpy as np
from google.protobuf.message import DecodeError
from mindspore.ops.auto_generate import gen_ops_prim
from mindspore.train import mind_ir_pb2 as pb

from src.deploy.graph.graph import TYPE_IDS, Graph, Node, Value
from src.errors import UserError

# NumPy's names of the types in TensorProto, by their number.
DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}
DTYPE_NUMBERS = {name: number for number, name in DTYPES.items()}
FORMATS = ("NCHW", "NHWC")  # MindSpore's enumerations: newer files hold the position in these tuples
PAD_MODES = ("PAD", "SAME", "VALID")
# Inputs and attributes of operators that have no class in gen_ops_prim, or whose class uses other names.
SIGNATURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Transpose": (("input", "input_perm"), ()),
    "Cast": (("x", "dtype"), ()),
    "BatchNorm": (("x", "scale", "bias", "mean", "variance"), ("is_training", "epsilon", "momentum", "data_format")),
}
# Newer operators that compute in place or with a Python number, and the older operator that computes the same.
EQUIVALENTS = {
    "InplaceAddExt": "Add",
    "InplaceAddsExt": "Add",
    "InplaceMul": "Mul",
    "InplaceMuls": "Mul",
    "Muls": "Mul",
    "InplaceDiv": "RealDiv",
    "InplaceDivs": "RealDiv",
    "Divs": "RealDiv",
}
BOOKKEEPING = ("Constant", "Load", "Depend", "UpdateState", "MakeTuple", "TupleGetItem")


def signature(op: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of an operator's inputs and of its attributes."""
    if op in SIGNATURES:
        return SIGNATURES[op]
    cls = getattr(gen_ops_prim, op, None)
    if cls is None:
        return (), ()
    # A decorator hides the signature of __init__; unwrap finds the original function.
    inputs, attributes = (
        tuple(inspect.signature(inspect.unwrap(method)).parameters)[1:] for method in (cls.__call__, cls.__init__)
    )
    return inputs, attributes


def read_mindir(path: Union[str, Path]) -> Graph:
    """Return the `Graph` of a MindIR file.

    Raise a `UserError` if the file is damaged, or if its network has branches or several inputs or outputs.
    """
    model = read_proto(path)
    inputs, outputs = len(model.graph.input), len(model.graph.output)
    if model.functions or inputs != 1 or outputs != 1:
        raise UserError(
            f"{path}: is not a plain network (found {inputs} inputs, {outputs} outputs, {len(model.functions)} "
            "functions for control flow; expected 1, 1 and 0)"
        )
    return Reader(model).graph()


def port_names(path: Union[str, Path]) -> tuple[str, str]:
    """Return the names of a MindIR file's input and output."""
    graph = read_proto(path).graph
    return graph.input[0].name, graph.output[0].name


def read_proto(path: Union[str, Path]) -> pb.ModelProto:
    """Return the protobuf message in a MindIR file; a damaged file is a `UserError`."""
    model = pb.ModelProto()
    try:
        with open(path, "rb") as file:
            model.ParseFromString(file.read())
    except DecodeError:
        raise UserError(f"{path}: is truncated, damaged, or not a MindIR file") from None
    return model


class Reader:
    """Convert one ModelProto to a `Graph`."""

    def __init__(self, model: pb.ModelProto) -> None:
        self.model = model
        self.primitives = {primitive.name: primitive for primitive in model.primitives}
        # The meaning of each name in the file: a Value, an array, a Python value, or a list of these.
        self.known: dict[str, Any] = {tensor.name: to_array(tensor) for tensor in model.graph.parameter}
        self.counts: dict[str, int] = {}

    def graph(self) -> Graph:
        """Return the graph of the whole file."""
        proto = self.model.graph
        graph_input = self.value(proto.input[0].name, proto.input[0].tensor[0], "input")
        nodes: list[Node] = []
        constants: dict[str, np.ndarray] = {}
        for node in proto.node:
            op, attributes = self.operator(node)
            if op in BOOKKEEPING:
                self.known[node.output[0]] = self.bookkeeping(op, node)
                continue
            nodes.append(self.node(op, attributes, node, constants))
        graph_output = self.known[proto.output[0].name]
        graph = Graph(graph_input, graph_output, nodes, constants)
        graph.prune()
        return graph

    def operator(self, node: pb.NodeProto) -> tuple[str, dict[str, Any]]:
        """Return the operator's name and its attributes."""
        primitive = node
        if node.op_type.startswith("REF::"):
            primitive = self.primitives[node.op_type[len("REF::") :]]
        attributes = {
            attribute.name: attribute_value(attribute)
            for attribute in primitive.attribute
            if attribute.name not in ("input_names", "output_names", "shape")
        }
        return primitive.op_type, attributes

    def bookkeeping(self, op: str, node: pb.NodeProto) -> Any:
        """Return the value of a node that computes nothing: a constant, a tuple, or one of its inputs."""
        if op == "Constant":
            return attribute_value(node.attribute[0])
        if op == "UpdateState":
            return None
        known = [self.known[name] for name in node.input]
        if op == "MakeTuple":
            return known
        return known[0][known[1]] if op == "TupleGetItem" else known[0]

    def node(self, op: str, attributes: dict[str, Any], proto: pb.NodeProto, constants: dict[str, np.ndarray]) -> Node:
        """Return the `Node` of an operator; add its constant inputs to `constants`."""
        arguments = [self.known[name] for name in proto.input]
        if op in EQUIVALENTS:
            arguments[:2] = [
                np.array(argument, np.float32) if isinstance(argument, (int, float)) else argument
                for argument in arguments[:2]
            ]
        input_names, attribute_names = signature(op)
        names = [*input_names, *attribute_names] if len(arguments) > len(input_names) else input_names
        inputs = []
        for i, argument in enumerate(arguments):
            name = names[i] if i < len(names) else f"input {i}"
            if isinstance(argument, list) and all(isinstance(part, (Value, np.ndarray)) for part in argument):
                inputs += [self.reference(part, f"{op}_{name}", constants) for part in argument]
            elif isinstance(argument, (Value, np.ndarray)):
                inputs.append(self.reference(argument, f"{op}_{name}", constants))
            elif argument is not None:
                attributes[name] = argument
        outputs = self.outputs(op, proto)
        if op in EQUIVALENTS:
            if attributes.pop("alpha", 1) != 1:
                raise UserError(f"operator {op}: is not supported in an export with alpha other than 1")
            op = EQUIVALENTS[op]
        self.known[proto.output[0]] = outputs[0] if len(outputs) == 1 else outputs
        return Node(op, inputs, outputs, to_version_1(op, attributes, outputs[0]))

    def outputs(self, op: str, proto: pb.NodeProto) -> list[Value]:
        """Return the values that a node outputs."""
        shape = next(attribute for attribute in proto.attribute if attribute.name == "shape")
        tensors = [value.tensors[0] for value in shape.values] or [shape.tensors[0]]
        return [self.value(None, tensor, op) for tensor in tensors]

    def value(self, name: Optional[str], tensor: pb.TensorProto, stem: str) -> Value:
        """Return a new `Value` whose name begins with `stem`; `name` is its name in the file."""
        value = Value(self.unique_name(stem), tuple(tensor.dims), DTYPES[tensor.data_type])
        if name is not None:
            self.known[name] = value
        return value

    def reference(self, tensor: Union[Value, np.ndarray], stem: str, constants: dict[str, np.ndarray]) -> str:
        """Return the name of a value, or of an array, which is added to `constants` if it is new."""
        if isinstance(tensor, Value):
            return tensor.name
        for name, array in constants.items():
            if array is tensor:
                return name
        name = self.unique_name(stem)
        constants[name] = tensor
        return name

    def unique_name(self, stem: str) -> str:
        """Return `stem` with a number that no name before had."""
        self.counts[stem] = self.counts.get(stem, 0) + 1
        return f"{stem}_{self.counts[stem]}"


def to_version_1(op: str, attributes: dict[str, Any], output: Value) -> dict[str, Any]:
    """Return attributes as version 1 has them: enumerations as names, four numbers for a pooling, older names."""
    attributes = dict(attributes)
    for new_name, old_name, names in (("data_format", "format", FORMATS), ("pad_mode", "pad_mode", PAD_MODES)):
        if new_name in attributes:
            value = attributes.pop(new_name)
            attributes[old_name] = names[value] if isinstance(value, int) else value
    if op == "AvgPool":
        for key in ("kernel_size", "strides"):
            attributes[key] = (1, 1, *attributes[key][-2:])
    if op == "Split":
        parts = attributes["output_num"]
        attributes["size_splits"] = (output.shape[attributes["axis"]],) * parts
    if op == "Cast":
        attributes["dtype"] = TYPE_IDS[output.dtype]
    return attributes


def attribute_value(attribute: pb.AttributeProto) -> Any:
    """Return an AttributeProto's value: a number, a string, a tuple, or an array."""
    kind = pb.AttributeProto.AttributeType.Name(attribute.type)
    if kind in ("TUPLE", "LIST"):
        return tuple(attribute_value(value) for value in attribute.values)
    if kind in ("TENSOR", "TENSORS"):
        return to_array(attribute.tensors[0] if attribute.tensors else attribute.t)
    if kind == "STRING":
        return (attribute.s or attribute.strings[0]).decode()
    if kind == "BOOL":
        return bool(attribute.i)
    if kind in ("FLOAT", "DOUBLE"):
        return scalar(attribute, "f", "floats") if kind == "FLOAT" else scalar(attribute, "d", "doubles")
    if kind.startswith(("INT", "UINT")):
        return scalar(attribute, "i", "ints")
    return None


def scalar(attribute: pb.AttributeProto, single: str, repeated: str) -> Any:
    """Return a number: inside a tuple it is in the field `repeated`, otherwise in the field `single`."""
    numbers = getattr(attribute, repeated)
    return numbers[0] if len(numbers) else getattr(attribute, single)


def to_array(tensor: pb.TensorProto) -> np.ndarray:
    """Return the content of a TensorProto."""
    return np.frombuffer(tensor.raw_data, DTYPES[tensor.data_type]).reshape(tuple(tensor.dims))


def write_mindir(graph: Graph, path: Union[str, Path]) -> None:
    """Write a `Graph` as MindIR version 1."""
    model = pb.ModelProto(ir_version="0.1.0", producer_name="MindSpore", little_endian=True, mind_ir_version=1)
    model.producer_version = model.model_version = ms.__version__
    proto = model.graph
    proto.name = "network"
    for ports, value in ((proto.input, graph.input), (proto.output, graph.output)):
        ports.add(name=value.name).tensor.append(to_tensor_proto(value, name=value.name))
    for name, array in graph.constants.items():
        tensor = proto.parameter.add(name=name, data_type=DTYPE_NUMBERS[array.dtype.name], raw_data=array.tobytes())
        tensor.dims.extend(array.shape)
    values = {name: Value(name, array.shape, array.dtype.name) for name, array in graph.constants.items()}
    values.update({value.name: value for node in graph.nodes for value in node.outputs})
    values[graph.input.name] = graph.input
    for node in graph.nodes:
        add_node(proto, node, values)
    with open(path, "wb") as file:
        file.write(model.SerializeToString())


def add_node(proto: pb.GraphProto, node: Node, values: dict[str, Value]) -> None:
    """Add an operator to `proto`, after its constants that are not tensors and before the selection of its outputs."""
    name, inputs, attributes = node.output.name, list(node.inputs), dict(node.attributes)
    if node.op == "Concat":
        parts = proto.node.add(op_type="MakeTuple", name=f"{name}_parts", input=inputs, output=[f"{name}_parts"])
        parts.attribute.append(shape_attribute([values[part] for part in node.inputs], several=True))
        inputs = [parts.name]
    for key in signature(node.op)[0]:
        if key in attributes:
            inputs.append(add_constant(proto, f"{name}_{key}", attributes.pop(key)))
    several = len(node.outputs) > 1
    operator = proto.node.add(op_type=node.op, name=name, input=inputs, domain=f"Default/{name}")
    operator.output.append(f"{name}_all" if several else name)
    operator.attribute.extend(to_attribute(key, value) for key, value in attributes.items())
    operator.attribute.append(shape_attribute(node.outputs, several))
    for i, value in enumerate(node.outputs if several else ()):
        selected = [f"{name}_all", add_constant(proto, f"{value.name}_index", i)]
        item = proto.node.add(op_type="TupleGetItem", name=value.name, input=selected, output=[value.name])
        item.attribute.append(shape_attribute([value], several=False))


def add_constant(proto: pb.GraphProto, name: str, value: Any) -> str:
    """Add a constant that is not a tensor, and return its name."""
    proto.node.add(op_type="Constant", name=name, output=[name]).attribute.append(to_attribute("value", value))
    return name


def shape_attribute(values: Sequence[Value], several: bool) -> pb.AttributeProto:
    """Return the attribute with the shape of one output, or with the shapes of a tuple of outputs."""
    kinds = pb.AttributeProto
    if not several:
        return kinds(name="shape", type=kinds.TENSORS, tensors=[to_tensor_proto(values[0])])
    elements = [kinds(type=kinds.TENSORS, tensors=[to_tensor_proto(value)]) for value in values]
    return kinds(name="shape", type=kinds.TUPLE, values=elements, seq_info=kinds.SeqInfoProto(is_dyn_len=False))


def to_tensor_proto(value: Value, **name: str) -> pb.TensorProto:
    """Return the TensorProto with the dtype and shape of `value`, without content."""
    return pb.TensorProto(data_type=DTYPE_NUMBERS[value.dtype], dims=value.shape, **name)


def to_attribute(name: str, value: Any) -> pb.AttributeProto:
    """Return the AttributeProto of a Python value or array."""
    attribute = pb.AttributeProto(name=name)
    kinds = pb.AttributeProto
    if isinstance(value, bool):
        attribute.type, attribute.i = kinds.BOOL, int(value)
    elif isinstance(value, int):
        attribute.type, attribute.i = kinds.INT64, value
    elif isinstance(value, float):
        attribute.type, attribute.f = kinds.FLOAT, value
    elif isinstance(value, str):
        attribute.type, attribute.s = kinds.STRING, value.encode()
    elif isinstance(value, np.ndarray):
        attribute.type = kinds.TENSORS
        attribute.tensors.add(data_type=DTYPE_NUMBERS[value.dtype.name], dims=value.shape, raw_data=value.tobytes())
    else:
        attribute.type = kinds.TUPLE
        for part in value:
            element = to_attribute("", part)
            inside = attribute.values.add(type=element.type)
            if element.type == kinds.INT64:
                inside.ints.append(part)
            elif element.type == kinds.FLOAT:
                inside.floats.append(part)
            else:
                inside.CopyFrom(element)
    return attribute
