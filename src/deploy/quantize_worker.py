"""Quantise an ONNX file to int8 with ONNX Runtime: python quantize_worker.py SOURCE TARGET IMAGES.npy

`quantize.py` starts this process without MindSpore, because MindSpore makes protobuf use its Python implementation,
which is many times slower.
"""

import logging
import sys
from typing import Optional

import numpy as np
import onnx
from onnxruntime import quantization

OPERATORS = ("Conv", "Gemm", "Add", "Mul", "GlobalAveragePool", "Concat", "MaxPool")


def main(source: str, target: str, images: str) -> None:
    """Write the int8 version of `source` to `target`; `images` is a .npy file of batches."""
    # ONNX Runtime warns that the model should be preprocessed first; the passes on the graph have already done that.
    logging.disable(logging.WARNING)
    model = onnx.load(source)
    quantization.quantize_static(
        model,
        target,
        Reader(model.graph.input[0].name, np.load(images)),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        # Both are unsigned, because products of signed and unsigned 8-bit numbers saturate on x86 without VNNI.
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QUInt8,
        op_types_to_quantize=OPERATORS,
    )


class Reader:
    """Give the batches to ONNX Runtime's calibration in turn; `name` is the name of the model's input."""

    def __init__(self, name: str, batches: np.ndarray) -> None:
        self.batches = ({name: batch} for batch in batches)

    def get_next(self) -> Optional[dict[str, np.ndarray]]:
        """Return {name: batch}, or None after the last batch."""
        return next(self.batches, None)


if __name__ == "__main__":
    main(*sys.argv[1:])
