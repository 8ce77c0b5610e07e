"""Quantise an ONNX file to int8 with ONNX Runtime: python quantize_worker.py REQUEST.json

`quantize.py` writes the request and starts this process without MindSpore, because MindSpore makes protobuf use its
Python implementation, which is many times slower. The keys of the request are:

source: the float32 file
images: a .npy file with the inputs of the calibration, (count, batch, ...)
ranges: a .npz file with the range of each feature map; it is written if it does not exist
answer: the JSON file to write
losses: true asks what each layer loses: the answer is {"losses": {layer: loss}, "stem": [layer, ...]}
target: the int8 file to write, instead; with `reduce_range` its weights have 7 bits, and the layers `keep_float` stay
    float32
"""

import json
import logging
import os
import sys
import tempfile
from collections.abc import Collection, Sequence
from typing import Any, Optional

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from onnxruntime import quantization
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

LAYERS = ("Conv", "Gemm")
ACTIVATIONS = ("Relu", "Clip")  # ONNX Runtime computes them within the quantised layer before them
OTHERS = ("Add", "Mul", "GlobalAveragePool", "Concat", "MaxPool", "AveragePool", "Slice", "Gather", "Reshape")
OPERATORS = (*LAYERS, *ACTIVATIONS, *OTHERS)
STEM = ("Cast", "Transpose", "Sub", "Mul", "Concat", "Conv", "Relu", "Clip", "HardSwish")
PIXEL_CHANNELS = 3  # a first convolution with more input channels does not read pixels
LOSS_IMAGES = 8  # inputs on which the loss of each layer is measured


def main(path: str) -> None:
    """Carry out the request in the file at `path`."""
    with open(path, encoding="utf-8") as file:
        request = json.load(file)
    # ONNX Runtime warns that the model should be preprocessed first; the passes on the graph have already done that.
    logging.disable(logging.WARNING)
    images = np.load(request["images"], mmap_mode="r")
    if not os.path.exists(request["ranges"]):
        np.savez(request["ranges"], **measure_ranges(request["source"], images))
    with np.load(request["ranges"]) as ranges:
        pairs = {name: (pair[0], pair[1]) for name, pair in ranges.items()}
    model = onnx.load(request["source"])
    answer = {}
    if request.get("losses"):
        quantizer = Quantizer(model, TensorsData(CalibrationMethod.MinMax, pairs), reduce_range=False)
        layers = [name for name in quantizer.stem if name in quantizer.layers]
        answer = {"losses": quantizer.losses(images[:LOSS_IMAGES]), "stem": layers}
    else:
        quantizer = Quantizer(model, TensorsData(CalibrationMethod.MinMax, pairs), request["reduce_range"])
        onnx.save(quantizer.quantized(request["keep_float"]), request["target"])
    with open(request["answer"], "w", encoding="utf-8") as file:
        json.dump(answer, file)


class Quantizer:
    """Write int8 versions of one float32 model. `ranges` has the lowest and highest number of each feature map."""

    def __init__(self, model: onnx.ModelProto, ranges: TensorsData, reduce_range: bool) -> None:
        self.model = model
        self.ranges = ranges
        self.reduce_range = reduce_range
        self.layers = [node.name for node in model.graph.node if node.op_type in LAYERS]
        self.stem = stem_of(model)

    def quantized(self, keep_float: Collection[str] = (), only: Sequence[str] = ()) -> onnx.ModelProto:
        """Return the model with int8 operators, except the stem and the layers `keep_float`.

        If `only` has names, no other nodes are quantised.
        """
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=self.reduce_range,
            # Signed weights with the zero point 0 meet unsigned activations in the instructions of VNNI.
            weight_qType=quantization.QuantType.QInt8,
            activation_qType=quantization.QuantType.QUInt8,
            tensors_range=self.ranges,
            nodes_to_quantize=list(only),
            nodes_to_exclude=[*self.stem, *keep_float],
            op_types_to_quantize=OPERATORS,
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
        )
        quantizer.quantize_model()
        return quantizer.model.model

    def losses(self, images: np.ndarray) -> dict[str, float]:
        """Return {layer: root mean square of the change of the logits if only this layer is int8}.

        A layer is int8 together with the activation behind it.
        """
        behind = {
            node.input[0]: [node.name] for node in self.model.graph.node if node.op_type in ACTIVATIONS and node.input
        }
        outputs = {node.name: node.output[0] for node in self.model.graph.node}
        expected = logits_of(self.model, images)
        losses = {}
        for layer in self.layers:
            if layer not in self.stem:
                found = logits_of(self.quantized(only=[layer, *behind.get(outputs[layer], [])]), images)
                losses[layer] = float(np.sqrt(np.mean((found - expected) ** 2)))
        return losses


def measure_ranges(source: str, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return {feature map: float32 (2), its lowest and highest number over the images}."""
    with tempfile.TemporaryDirectory() as folder:
        augmented = os.path.join(folder, "augmented.onnx")
        calibrator = create_calibrator(source, OPERATORS, augmented, CalibrationMethod.MinMax)
        calibrator.collect_data(Reader(onnx.load(source).graph.input[0].name, images))
        ranges = calibrator.compute_data()
    return {
        name: np.array([np.min(low), np.max(high)], np.float32)
        for name, (low, high) in ((name, data.range_value) for name, data in ranges.items())
    }


def stem_of(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes from the input to the last feature map before the maps grow or branch.

    These nodes stay float32: the int8 kernels take longer than the float32 kernels for convolutions with 3 input
    channels, and for depthwise convolutions on large feature maps with few channels.
    """
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    names: list[str] = []
    is_first = True
    following = consumers[model.graph.input[0].name]
    while len(following) == 1 and following[0].op_type in STEM:
        (node,) = following
        if node.op_type == "Conv":
            shape = weights[node.input[1]]
            if is_first and shape[1] > PIXEL_CHANNELS:
                return []
            if not is_first and grows(node, shape):
                break
            is_first = False
        names.append(node.name)
        following = consumers.get(node.output[0], [])
    # ONNX Runtime moves the quantisation to the place before the pooling, where its pooling of float32 layout is slow.
    return [] if [node.op_type for node in following] == ["MaxPool"] else names


def grows(conv: onnx.NodeProto, weight: Sequence[int]) -> bool:
    """Return whether a convolution outputs more numbers than it reads; `weight` is the shape of its weights."""
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in conv.attribute}
    outputs, inputs = weight[0], weight[1] * settings["group"]
    return outputs > inputs * settings["strides"][0] * settings["strides"][1]


def logits_of(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """Return the outputs for inputs (count, batch, ...), before the softmax if the model has a softmax; float64."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), quiet(), ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    outputs = np.concatenate([session.run(None, {name: batch})[0] for batch in images]).astype(np.float64)
    last = next(node for node in model.graph.node if model.graph.output[0].name in node.output)
    if last.op_type != "Softmax":
        return outputs
    logarithms = np.log(np.maximum(outputs, np.finfo(np.float32).tiny))
    return logarithms - logarithms.mean(1, keepdims=True)


def quiet() -> Any:
    """Return session options that write errors only."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


class Reader:
    """Give the batches to ONNX Runtime's calibration in turn; `name` is the name of the model's input."""

    def __init__(self, name: str, batches: np.ndarray) -> None:
        self.batches = ({name: batch} for batch in batches)

    def get_next(self) -> Optional[dict[str, np.ndarray]]:
        """Return {name: batch}, or None after the last batch."""
        return next(self.batches, None)


if __name__ == "__main__":
    main(sys.argv[1])
