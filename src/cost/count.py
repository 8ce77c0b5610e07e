"""What a network costs: parameters, multiply-accumulates (MACs), memory access, and what ShuffleNetV2 says of these.

Sizes are of one image. Memory access is in elements: each operation reads its inputs and weights and writes its output
once, as in section 2 of ShuffleNetV2 (https://arxiv.org/abs/1807.11164), which calls it MAC.
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass

import mindspore as ms
import numpy as np
from mindspore import nn

from src.models.classifier import Preprocess
from src.models.declaration import elements

BYTES = 4  # of a float32
KINDS = ("convolution", "depthwise", "dense", "batch_norm", "pooling", "element-wise")
CONVOLUTIONS = ("convolution", "depthwise")
POOLS = (nn.MaxPool2d, nn.AvgPool2d)
NO_LAYERS = (Preprocess, nn.Dropout, nn.Identity)  # cells that are not counted


@dataclass
class Row:
    """One operation. Shapes are without the batch; `accesses` are elements read and written; see KINDS for `kind`.

    The last two are of convolutions only.
    """

    name: str
    type: str
    kind: str
    input: tuple
    output: tuple
    params: int
    macs: int
    accesses: int
    kernel_size: tuple = ()
    groups: int = 0

    def to_dict(self):
        """Return the row for JSON, `bytes` being those of float32."""
        return {**asdict(self), "bytes": self.accesses * BYTES}


def count_params(network):
    """Return the number of trainable parameters; BatchNorm's moving statistics do not count."""
    return sum(parameter.size for parameter in network.trainable_params())


def count_macs(classifier, image_size, channels):
    """Return the MACs of one image of `image_size` x `image_size`, counted while the network runs on a blank one."""
    return sum(row.macs for row in profile(classifier, image_size, channels))


def profile(classifier, image_size, channels):
    """Return the `Row` of each operation on an image of `image_size` x `image_size`, in the order of a run.

    Recorded on a blank image. What a cell does outside its layers follows them. Left out are preprocessing, dropout and
    reshapes; of mindcv's networks also all that is not a layer.
    """
    rows = []

    def hook_of(name, cell):
        # Asked for here, as it takes far longer inside of a hook.
        params = sum(parameter.size for parameter in cell.get_parameters(expand=False) if parameter.requires_grad)

        def record(cell, inputs, output):
            # A channel split returns two feature maps of one shape.
            output = output[0] if isinstance(output, tuple) else output
            if not (isinstance(inputs[0], ms.Tensor) and isinstance(output, ms.Tensor)):
                return
            x, y = inputs[0].shape[1:], output.shape[1:]
            if hasattr(cell, "operations"):
                for done in cell.operations(x, y):
                    name_of_row = f"{name}.{done.type.lower()}"
                    rows.append(Row(name_of_row, done.type, done.kind, done.input, done.output, 0, 0, done.accesses))
            elif not cell.name_cells() and not isinstance(cell, NO_LAYERS):
                rows.append(layer_row(cell, name, x, y, params))

        return record

    hooks = [cell.register_forward_hook(hook_of(name, cell)) for name, cell in classifier.cells_and_names()]
    mode, training = ms.get_context("mode"), classifier.training
    # Hooks run op by op only.
    ms.set_context(mode=ms.PYNATIVE_MODE)
    classifier.set_train(False)
    classifier(ms.Tensor(np.zeros((1, image_size, image_size, channels), np.uint8)))
    classifier.set_train(training)
    ms.set_context(mode=mode)
    for hook in hooks:
        hook.remove()
    return rows


def layer_row(layer, name, x, y, params):
    """Return the `Row` of a layer without layers of its own that turned shape `x` into `y`."""
    row = Row(name, type(layer).__name__, "element-wise", x, y, params, 0, elements(x, y) + params)
    if isinstance(layer, (nn.Conv2d, nn.Dense)):
        row.kind = "dense"
        # Each output value takes one MAC a weight of its filter: kernel area times input channels of its group.
        row.macs = elements(y) * elements(layer.weight.shape[1:])
    if isinstance(layer, nn.Conv2d):
        row.kernel_size, row.groups = layer.kernel_size, layer.group
        row.kind = "depthwise" if 1 < layer.group == x[0] else "convolution"
    elif isinstance(layer, nn.BatchNorm2d):
        row.kind = "batch_norm"
        # Moving mean and variance are read as well.
        row.accesses += 2 * y[0]
    elif isinstance(layer, POOLS):
        row.kind = "pooling"
    return row


def block_of(classifier, row):
    """Return the unit that a row belongs to, such as units.3, or outside the units its layer, such as stem."""
    first, *rest = row.name.removeprefix("backbone.").split(".")
    if not (rest and rest[0].isdigit()):
        return first
    return f"{first}.{int(rest[0]) // getattr(classifier.backbone, 'layers_per_block', 1)}"


def by_block(classifier, rows):
    """Return a dict a block, in order: name, parameters, MACs, bytes and number of convolution kernels."""
    blocks = {}
    for row in rows:
        name = block_of(classifier, row)
        block = blocks.setdefault(name, {"block": name, "params": 0, "macs": 0, "bytes": 0, "kernels": 0})
        block["params"] += row.params
        block["macs"] += row.macs
        block["bytes"] += row.accesses * BYTES
        block["kernels"] += row.kind in CONVOLUTIONS
    return list(blocks.values())


def guidelines(classifier, rows):
    """Return what MACs do not tell of the `rows` of `profile`, after ShuffleNetV2's four guidelines (section 2).

    Of all convolutions: `memory_access` in elements (Eq. 1 and 2: input, output, weights; biases too).
    G1, of the 1x1 convolutions: `balance`, the mean of max / min of input and output channels, weighted by MACs, and
    `access_to_bound`, their memory access divided by its lower bound of Eq. 1, 2 sqrt(hw B) + B / hw for B MACs; groups
    raise it too.
    G2: shares of all MACs in depthwise and in other grouped convolutions, and how many convolutions have each group
    count, depthwise ones left out.
    G3: convolution kernels a unit, mean and maximum; stem, last layers and head are not units.
    G4: each of KINDS' share of all memory access. Element-wise are activations, additions, multiplications,
    concatenations, splits and shuffles, each reading its inputs and writing its output. BatchNorm is apart, as
    it can be folded into the convolution before it. None for mindcv's networks, where only the layers are known.
    """
    convolutions = [row for row in rows if row.kind in CONVOLUTIONS]
    pointwise = [row for row in convolutions if row.kernel_size == (1, 1)]
    grouped = [row for row in convolutions if row.kind == "convolution" and row.groups > 1]
    macs, pointwise_macs = (sum(row.macs for row in some) for some in (rows, pointwise))
    accesses = {kind: sum(row.accesses for row in rows if row.kind == kind) for kind in KINDS}
    kernels = [block["kernels"] for block in by_block(classifier, rows) if "." in block["block"]]
    balances = [row.macs * max(row.input[0], row.output[0]) / min(row.input[0], row.output[0]) for row in pointwise]
    bound = sum(
        2 * math.sqrt(elements(row.output[1:]) * row.macs) + row.macs / elements(row.output[1:]) for row in pointwise
    )
    known = hasattr(classifier.backbone, "variants")  # the networks of src/models declare all that they do
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
