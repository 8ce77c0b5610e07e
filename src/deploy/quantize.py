"""Int8: ranges measured on calibration images, weights and maps rounded to 8 bits."""

import mindspore as ms

OPERATORS = ("Conv", "Gemm", "Add", "Mul", "GlobalAveragePool", "Concat", "MaxPool")


def full_batches(loader, classifier, kind):
    """Yield the loader's batches as a file takes them, images or tensors, but for a smaller last one."""
    for images, _ in loader.epoch():
        if len(images) == loader.batch_size:
            yield images if kind == "image" else classifier.preprocess(ms.Tensor(images)).asnumpy()


def quantize_onnx(path, batches):
    """Replace the float32 ONNX file at `path` by an int8 one; `batches` are inputs of the file, as arrays."""
    import onnx
    from onnxruntime import quantization

    model = onnx.load(str(path))
    name = model.graph.input[0].name
    quantization.quantize_static(
        model,
        str(path),
        Reader(name, batches),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,  # without VNNI, sums of 8-bit products saturate
        op_types_to_quantize=OPERATORS,
    )


class Reader:
    """Hands the batches to ONNX Runtime's calibration one by one."""

    def __init__(self, name, batches):
        self.batches = ({name: batch} for batch in batches)

    def get_next(self):
        return next(self.batches, None)
