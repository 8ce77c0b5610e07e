"""Reading MindIR files, of any version, and writing version 1, which MindSpore and MindSpore Lite load.

From version 2 on, what used to be an operator's attributes are its last inputs. Which they are, and their names, is
what the operator's Python class says: its `__call__` takes the inputs, its `__init__` the attributes.
"""

import inspect

import mindspore as ms
import numpy as np
from google.protobuf.message import DecodeError
from mindspore.ops.auto_generate import gen_ops_prim
from mindspore.train import mind_ir_pb2 as pb

from src.deploy.graph.graph import TYPE_IDS, Graph, Node, Value
from src.errors import UserError

DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}  # TensorProto's
TYPES = {name: number for number, name in DTYPES.items()}
FORMATS = ("NCHW", "NHWC")  # enumerations, by their number
PAD_MODES = ("PAD", "SAME", "VALID")
SIGNATURES = {  # inputs and attributes of operators without a class in gen_ops_prim, or that change their names
    "Transpose": (("input", "input_perm"), ()),
    "Cast": (("x", "dtype"), ()),
    "BatchNorm": (("x", "scale", "bias", "mean", "variance"), ("is_training", "epsilon", "momentum", "data_format")),
}
PLAIN = {  # newer operators, in place or of a number, and the one that computes the same
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


def signature(op):
    """Return the names of an operator's inputs and of its attributes."""
    if op in SIGNATURES:
        return SIGNATURES[op]
    cls = getattr(gen_ops_prim, op, None)
    if cls is None:
        return (), ()
    # Of a decorated __init__ the original one.
    calls = (inspect.unwrap(cls.__call__), inspect.unwrap(cls.__init__))
    return tuple(tuple(inspect.signature(call).parameters)[1:] for call in calls)


def read_mindir(path):
    """Return the `Graph` of a MindIR file; one that is damaged or not of one image classifier is a `UserError`."""
    model = read_proto(path)
    if model.functions or len(model.graph.input) != 1 or len(model.graph.output) != 1:
        raise UserError(f"{path}: has branches or more than one input and output; only plain networks can be exported")
    return Reader(model).graph()


def port_names(path):
    """Return the names of a MindIR file's input and output."""
    graph = read_proto(path).graph
    return graph.input[0].name, graph.output[0].name


def read_proto(path):
    model = pb.ModelProto()
    try:
        with open(path, "rb") as file:
            model.ParseFromString(file.read())
    except DecodeError:
        raise UserError(f"{path}: is cut short, damaged, or no MindIR file") from None
    return model


class Reader:
    """Turns one ModelProto into a `Graph`."""

    def __init__(self, model):
        self.model = model
        self.primitives = {primitive.name: primitive for primitive in model.primitives}
        # What a name stands for: a Value, an array, a Python value, or a list of these.
        self.known = {tensor.name: array_of(tensor) for tensor in model.graph.parameter}
        self.names = {}

    def graph(self):
        proto = self.model.graph
        entry = self.value(proto.input[0].name, proto.input[0].tensor[0], "input")
        nodes, constants = [], {}
        for node in proto.node:
            op, attributes = self.operator(node)
            if op in BOOKKEEPING:
                self.known[node.output[0]] = self.bookkeeping(op, node)
                continue
            nodes.append(self.node(op, attributes, node, constants))
        final = self.known[proto.output[0].name]
        graph = Graph(entry, final, nodes, constants)
        graph.prune()
        return graph

    def operator(self, node):
        """Return the operator's name and its attributes."""
        primitive = node
        if node.op_type.startswith("REF::"):
            primitive = self.primitives[node.op_type[len("REF::") :]]
        attributes = {
            attribute.name: python_of(attribute)
            for attribute in primitive.attribute
            if attribute.name not in ("input_names", "output_names", "shape")
        }
        return primitive.op_type, attributes

    def bookkeeping(self, op, node):
        """Return what a node that computes nothing stands for."""
        if op == "Constant":
            return python_of(node.attribute[0])
        if op == "UpdateState":
            return None
        known = [self.known[name] for name in node.input]
        if op == "MakeTuple":
            return known
        return known[0][known[1]] if op == "TupleGetItem" else known[0]

    def node(self, op, attributes, proto, constants):
        taken = [self.known[name] for name in proto.input]
        if op in PLAIN:
            taken[:2] = [
                np.array(thing, np.float32) if isinstance(thing, (int, float)) else thing for thing in taken[:2]
            ]
        calls, settings = signature(op)
        names = [*calls, *settings] if len(taken) > len(calls) else calls
        inputs = []
        for i, thing in enumerate(taken):
            name = names[i] if i < len(names) else f"input {i}"
            if isinstance(thing, list) and all(isinstance(part, (Value, np.ndarray)) for part in thing):
                inputs += [self.reference(part, f"{op}_{name}", constants) for part in thing]
            elif isinstance(thing, (Value, np.ndarray)):
                inputs.append(self.reference(thing, f"{op}_{name}", constants))
            elif thing is not None:
                attributes[name] = thing
        outputs = self.outputs(op, proto)
        if op in PLAIN:
            if attributes.pop("alpha", 1) != 1:
                raise UserError(f"the network has the operator {op} with a factor, which cannot be exported")
            op = PLAIN[op]
        self.known[proto.output[0]] = outputs[0] if len(outputs) == 1 else outputs
        return Node(op, inputs, outputs, old_style(op, attributes, outputs[0]))

    def outputs(self, op, proto):
        shape = next(attribute for attribute in proto.attribute if attribute.name == "shape")
        tensors = [value.tensors[0] for value in shape.values] or [shape.tensors[0]]
        return [self.value(None, tensor, op) for tensor in tensors]

    def value(self, name, tensor, stem):
        value = Value(self.fresh(stem), tuple(tensor.dims), DTYPES[tensor.data_type])
        if name is not None:
            self.known[name] = value
        return value

    def reference(self, thing, stem, constants):
        """Return the name of a value, or of an array put among the constants."""
        if isinstance(thing, Value):
            return thing.name
        for name, array in constants.items():
            if array is thing:
                return name
        name = self.fresh(stem)
        constants[name] = thing
        return name

    def fresh(self, stem):
        self.names[stem] = self.names.get(stem, 0) + 1
        return f"{stem}_{self.names[stem]}"


def old_style(op, attributes, output):
    """Return attributes as version 1 has them: enumerations by name, pools with four numbers, no aliases."""
    attributes = dict(attributes)
    for old, new, numbered in (("data_format", "format", FORMATS), ("pad_mode", "pad_mode", PAD_MODES)):
        if old in attributes:
            value = attributes.pop(old)
            attributes[new] = numbered[value] if isinstance(value, int) else value
    if op == "AvgPool":
        for key in ("kernel_size", "strides"):
            attributes[key] = (1, 1, *attributes[key][-2:])
    if op == "Split":
        parts = attributes["output_num"]
        attributes["size_splits"] = (output.shape[attributes["axis"]],) * parts
    if op == "Cast":
        attributes["dtype"] = TYPE_IDS[output.dtype]
    return attributes


def python_of(attribute):
    """Return an AttributeProto's value: a number, string, tuple, or array."""
    kind = pb.AttributeProto.AttributeType.Name(attribute.type)
    if kind in ("TUPLE", "LIST"):
        return tuple(python_of(value) for value in attribute.values)
    if kind in ("TENSOR", "TENSORS"):
        return array_of(attribute.tensors[0] if attribute.tensors else attribute.t)
    if kind == "STRING":
        return (attribute.s or attribute.strings[0]).decode()
    if kind == "BOOL":
        return bool(attribute.i)
    if kind in ("FLOAT", "DOUBLE"):
        return scalar(attribute, "f", "floats") if kind == "FLOAT" else scalar(attribute, "d", "doubles")
    if kind.startswith(("INT", "UINT")):
        return scalar(attribute, "i", "ints")
    return None


def scalar(attribute, single, repeated):
    """Inside a tuple a number stands in the repeated field."""
    many = getattr(attribute, repeated)
    return many[0] if len(many) else getattr(attribute, single)


def array_of(tensor):
    return np.frombuffer(tensor.raw_data, DTYPES[tensor.data_type]).reshape(tuple(tensor.dims))


def write_mindir(graph, path):
    """Write a `Graph` as MindIR version 1."""
    model = pb.ModelProto(ir_version="0.1.0", producer_name="MindSpore", little_endian=True, mind_ir_version=1)
    model.producer_version = model.model_version = ms.__version__
    proto = model.graph
    proto.name = "network"
    for ports, value in ((proto.input, graph.input), (proto.output, graph.output)):
        ports.add(name=value.name).tensor.append(tensor_of(value, name=value.name))
    for name, array in graph.constants.items():
        tensor = proto.parameter.add(name=name, data_type=TYPES[array.dtype.name], raw_data=array.tobytes())
        tensor.dims.extend(array.shape)
    values = {name: Value(name, array.shape, array.dtype.name) for name, array in graph.constants.items()}
    values.update({value.name: value for node in graph.nodes for value in node.outputs})
    values[graph.input.name] = graph.input
    for node in graph.nodes:
        add_node(proto, node, values)
    with open(path, "wb") as file:
        file.write(model.SerializeToString())


def add_node(proto, node, values):
    """Add an operator, before it the constants that are no tensors, after it the selection of its outputs."""
    name, inputs, attributes = node.output.name, list(node.inputs), dict(node.attributes)
    if node.op == "Concat":
        parts = proto.node.add(op_type="MakeTuple", name=f"{name}_parts", input=inputs, output=[f"{name}_parts"])
        parts.attribute.append(shape_of([values[part] for part in node.inputs], several=True))
        inputs = [parts.name]
    for key in signature(node.op)[0]:
        if key in attributes:
            inputs.append(add_constant(proto, f"{name}_{key}", attributes.pop(key)))
    several = len(node.outputs) > 1
    operator = proto.node.add(op_type=node.op, name=name, input=inputs, domain=f"Default/{name}")
    operator.output.append(f"{name}_all" if several else name)
    operator.attribute.extend(attribute_of(key, value) for key, value in attributes.items())
    operator.attribute.append(shape_of(node.outputs, several))
    for i, value in enumerate(node.outputs if several else ()):
        selected = [f"{name}_all", add_constant(proto, f"{value.name}_index", i)]
        item = proto.node.add(op_type="TupleGetItem", name=value.name, input=selected, output=[value.name])
        item.attribute.append(shape_of([value], several=False))


def add_constant(proto, name, value):
    """Add a constant that is no tensor, and return its name."""
    proto.node.add(op_type="Constant", name=name, output=[name]).attribute.append(attribute_of("value", value))
    return name


def shape_of(values, several):
    """Return the attribute with the shape of one output or of a tuple of them."""
    kinds = pb.AttributeProto
    if not several:
        return kinds(name="shape", type=kinds.TENSORS, tensors=[tensor_of(values[0])])
    elements = [kinds(type=kinds.TENSORS, tensors=[tensor_of(value)]) for value in values]
    return kinds(name="shape", type=kinds.TUPLE, values=elements, seq_info=kinds.SeqInfoProto(is_dyn_len=False))


def tensor_of(value, **name):
    return pb.TensorProto(data_type=TYPES[value.dtype], dims=value.shape, **name)


def attribute_of(name, value):
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
        attribute.tensors.add(data_type=TYPES[value.dtype.name], dims=value.shape, raw_data=value.tobytes())
    else:
        attribute.type = kinds.TUPLE
        for part in value:
            element = attribute_of("", part)
            inside = attribute.values.add(type=element.type)
            if element.type == kinds.INT64:
                inside.ints.append(part)
            elif element.type == kinds.FLOAT:
                inside.floats.append(part)
            else:
                inside.CopyFrom(element)
    return attribute
