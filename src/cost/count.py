"""What a network costs: parameters, multiply-accumulates (MACs), memory access and ShuffleNetV2's four guidelines.

All sizes are for one image. Memory access is in elements: each operation reads its inputs and weights once and writes
its output once, as in section 2 of ShuffleNetV2 (https://arxiv.org/abs/1807.11164). The paper calls it MAC.
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from src.models.classifier import Classifier, Preprocess
from src.models.declaration import Shape, elements

BYTES = 4  # of a float32
KINDS = ("convolution", "depthwise", "dense", "batch_norm", "pooling", "element-wise")
CONVOLUTIONS = ("convolution", "depthwise")
POOLS = (nn.MaxPool2d, nn.AvgPool2d)
UNCOUNTED = (Preprocess, nn.Dropout, nn.Identity)  # cells that do not count as layers


@dataclass
class Row:
    """Costs of one operation. Shapes have no batch dimension; `accesses` is the number of elements read and written.

    `kind` is one of KINDS. Only convolutions set `kernel_size` and `groups`.
    """

    name: str
    type: str
    kind: str
    input: Shape
    output: Shape
    params: int
    macs: int
    accesses: int
    kernel_size: Shape = ()
    groups: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the row for JSON, with the accesses also as `bytes` of float32."""
        return {**asdict(self), "bytes": self.accesses * BYTES}


def count_params(network: nn.Cell) -> int:
    """Return the number of trainable parameters. BatchNorm's moving statistics do not count."""
    return sum(parameter.size for parameter in network.trainable_params())


def count_macs(classifier: Classifier, image_size: int, channels: int) -> int:
    """Return the MACs for one image of `image_size` x `image_size` pixels."""
    return sum(row.macs for row in profile(classifier, image_size, channels))


def profile(classifier: Classifier, image_size: int, channels: int) -> list[Row]:
    """Return a `Row` for each operation on one image of `image_size` x `image_size` pixels, in execution order.

    The network runs once on a blank image. A cell's operations outside its layers follow its layers. Preprocessing,
    dropout and reshapes are not counted. For mindcv's networks only layers are known.
    """
    rows: list[Row] = []

    def hook_of(name, cell):
        # Counting the parameters inside the hook would take far longer.
        params = sum(parameter.size for parameter in cell.get_parameters(expand=False) if parameter.requires_grad)

        def record(cell, inputs, output):
            # A channel split returns two feature maps of the same shape.
            output = output[0] if isinstance(output, tuple) else output
            if not (isinstance(inputs[0], ms.Tensor) and isinstance(output, ms.Tensor)):
                return
            x, y = inputs[0].shape[1:], output.shape[1:]
            if hasattr(cell, "operations"):
                for operation in cell.operations(x, y):
                    type_name, kind, read, written, accesses = operation
                    rows.append(Row(f"{name}.{type_name.lower()}", type_name, kind, read, written, 0, 0, accesses))
            elif not cell.name_cells() and not isinstance(cell, UNCOUNTED):
                rows.append(layer_row(cell, name, x, y, params))

        return record

    hooks = [cell.register_forward_hook(hook_of(name, cell)) for name, cell in classifier.cells_and_names()]
    mode, training = ms.get_context("mode"), classifier.training
    # MindSpore calls hooks in PyNative mode only.
    ms.set_context(mode=ms.PYNATIVE_MODE)
    classifier.set_train(False)
    classifier(ms.Tensor(np.zeros((1, image_size, image_size, channels), np.uint8)))
    classifier.set_train(training)
    ms.set_context(mode=mode)
    for hook in hooks:
        hook.remove()
    return rows


def layer_row(layer: nn.Cell, name: str, x: Shape, y: Shape, params: int) -> Row:
    """Return the `Row` of a layer that contains no other layers and maps shape `x` to shape `y`."""
    row = Row(name, type(layer).__name__, "element-wise", x, y, params, 0, elements(x, y) + params)
    if isinstance(layer, (nn.Conv2d, nn.Dense)):
        row.kind = "dense"
        # Each output value takes one MAC per weight of its filter: kernel area times input channels per group.
        row.macs = elements(y) * elements(layer.weight.shape[1:])
    if isinstance(layer, nn.Conv2d):
        row.kernel_size, row.groups = layer.kernel_size, layer.group
        row.kind = "depthwise" if 1 < layer.group == x[0] else "convolution"
    elif isinstance(layer, nn.BatchNorm2d):
        row.kind = "batch_norm"
        # BatchNorm also reads moving mean and variance.
        row.accesses += 2 * y[0]
    elif isinstance(layer, POOLS):
        row.kind = "pooling"
    return row


def block_of(classifier: Classifier, row: Row) -> str:
    """Return the name of the block that a row belongs to, such as units.3; outside blocks its layer, such as stem."""
    layer, *rest = row.name.removeprefix("backbone.").split(".")
    if not (rest and rest[0].isdigit()):
        return layer
    return f"{layer}.{int(rest[0]) // getattr(classifier.backbone, 'layers_per_block', 1)}"


def by_block(classifier: Classifier, rows: list[Row]) -> list[dict[str, Any]]:
    """Return a dict per block, in execution order: name, parameters, MACs, bytes and number of convolutions."""
    blocks: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = block_of(classifier, row)
        block = blocks.setdefault(name, {"block": name, "params": 0, "macs": 0, "bytes": 0, "kernels": 0})
        block["params"] += row.params
        block["macs"] += row.macs
        block["bytes"] += row.accesses * BYTES
        block["kernels"] += row.kind in CONVOLUTIONS
    return list(blocks.values())


def guidelines(classifier: Classifier, rows: list[Row]) -> dict[str, Any]:
    """Return measures of the `rows` of `profile` for ShuffleNetV2's four guidelines (section 2).

    `memory_access`: elements that all convolutions read and write (Eq. 1 and 2: input, output, weights; here also
    biases).

    G1 is about the 1x1 convolutions. `balance` is the mean of max / min of input and output channels, weighted by MACs.
    `access_to_bound` is their memory access divided by the lower bound of Eq. 1, 2 sqrt(hw B) + B / hw for B MACs.
    Groups raise it too.

    G2: `depthwise_macs` and `grouped_macs` are the shares of all MACs in depthwise and in other grouped convolutions.
    `group_counts` maps each number of groups to its number of convolutions, without depthwise convolutions.

    G3: `kernels_mean` and `kernels_max` are the numbers of convolutions per block. Stem, last layers and head are not
    blocks.

    G4: `access_shares` maps each of KINDS to its share of all memory access. Element-wise operations are activations,
    additions, multiplications, concatenations, splits and shuffles. BatchNorm is separate because it can be folded into
    the convolution before it. None for mindcv's networks, because only their layers are known.
    """
    convolutions = [row for row in rows if row.kind in CONVOLUTIONS]
    pointwise = [row for row in convolutions if row.kernel_size == (1, 1)]
    grouped = [row for row in convolutions if row.kind == "convolution" and row.groups > 1]
    macs, pointwise_macs = (sum(row.macs for row in group) for group in (rows, pointwise))
    accesses = {kind: sum(row.accesses for row in rows if row.kind == kind) for kind in KINDS}
    kernels = [block["kernels"] for block in by_block(classifier, rows) if "." in block["block"]]
    balances = [row.macs * max(row.input[0], row.output[0]) / min(row.input[0], row.output[0]) for row in pointwise]
    bound = sum(
        2 * math.sqrt(elements(row.output[1:]) * row.macs) + row.macs / elements(row.output[1:]) for row in pointwise
    )
    known = hasattr(classifier.backbone, "variants")  # the networks of src/models declare all operations
    return {
        "memory_access": sum(row.accesses for row in convolutions),
        "balance": sum(balances) / pointwise_macs if pointwise else None,
        "access_to_bound": sum(row.accesses for row in pointwise) / bound if pointwise else None,
        "depthwise_macs": sum(row.macs for row in convolutions if row.kind == "depthwise") / macs,
        "grouped_macs": sum(row.macs for row in grouped) / macs,
        "group_counts": dict(sorted(Counter(row.groups for row in convolutions if row.kind == "convolution").items())),
        "kernels_mean": sum(kernels) / len(kernels) if kernels else None,
        "kernels_max": max(kernels, default=None),
        "access_shares": {kind: count / sum(accesses.values()) for kind, count in accesses.items()} if known else None,
    }
