"""Int8 by ONNX Runtime's quantiser, in a process without MindSpore: python quantize_worker.py SOURCE TARGET IMAGES.npy

MindSpore makes protobuf work in plain Python, which is many times slower. `quantize.py` is the other end.
"""

import logging
import sys

import numpy as np
import onnx
from onnxruntime import quantization

OPERATORS = ("Conv", "Gemm", "Add", "Mul", "GlobalAveragePool", "Concat", "MaxPool")


def main(source, target, images):
    logging.disable(logging.WARNING)  # it recommends a preprocessing that the deployment graph has had
    model = onnx.load(source)
    quantization.quantize_static(
        model,
        target,
        Reader(model.graph.input[0].name, np.load(images)),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        # Both unsigned: sums of signed with unsigned 8-bit products saturate on x86 without VNNI.
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QUInt8,
        op_types_to_quantize=OPERATORS,
    )


class Reader:
    """Hands the batches to the calibration one by one."""

    def __init__(self, name, batches):
        self.batches = ({name: batch} for batch in batches)

    def get_next(self):
        return next(self.batches, None)


if __name__ == "__main__":
    main(*sys.argv[1:])
