"""Int8: ranges measured on calibration images, weights and maps rounded to 8 bits."""

import configparser
import logging

import mindspore as ms

from src.deploy.mindir import write_mindir
from src.engine.files import make_parent

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

    logging.disable(logging.WARNING)  # it recommends a preprocessing that the deployment graph has had
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
    logging.disable(logging.NOTSET)


class Reader:
    """Hands the batches to ONNX Runtime's calibration one by one."""

    def __init__(self, name, batches):
        self.batches = ({name: batch} for batch in batches)

    def get_next(self):
        return next(self.batches, None)


def write_lite_calibration(graph, batches, folder):
    """Write what MindSpore Lite's converter needs for int8 into `folder`: model.mindir, images/, int8.cfg.

    Return the configuration, {section: {key: value}}.
    """
    write_mindir(graph, make_parent(folder / "model.mindir"))
    count = 0
    for batch in batches:
        batch.tofile(make_parent(folder / "images" / f"{count:05}.bin"))
        count += 1
    settings = {
        "common_quant_param": {"quant_type": "FULL_QUANT", "bit_num": "8"},
        "data_preprocess_param": {
            "calibrate_path": f"{graph.input.name}:{(folder / 'images').resolve()}",
            "calibrate_size": str(count),
            "input_type": "BIN",
        },
        "full_quant_param": {"activation_quant_method": "MAX_MIN", "bias_correction": "true"},
    }
    config = configparser.ConfigParser()
    config.read_dict(settings)
    with open(folder / "int8.cfg", "w", encoding="utf-8") as file:
        config.write(file, space_around_delimiters=False)
    return settings
