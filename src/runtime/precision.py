"""Mixed precision: 2-byte numbers in feature maps and products, on devices that compute faster with them."""

from typing import Any, Optional

import mindspore as ms
from mindspore import nn, ops
from mindspore.amp import DynamicLossScaler, LossScaler, get_black_list

from src.config.schema import RuntimeConfig
from src.errors import UserError
from src.models.classifier import Classifier
from src.runtime.parallel import SyncNorm, replace_cells

HALVES: dict[str, Any] = {"float16": ms.float16, "bfloat16": ms.bfloat16}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# MindSpore 2.7.0 refuses bfloat16 inputs of their operators on every device.
NOT_IN_BFLOAT16 = (nn.ReLU6, nn.MaxPool2d, nn.AvgPool2d)
INITIAL_SCALE = 2.0**16  # of the loss; it is halved at each overflow
SCALE_WINDOW = 2000  # updates without an overflow after which the loss scale is doubled


def check_precision(runtime: RuntimeConfig) -> None:
    """Raise a `UserError` if the device, which `use_device` has set, cannot train in `runtime.precision`.

    A CPU can compute in float16, but slower than in float32, so it is refused.
    """
    if runtime.precision == "float32":
        return
    device = ms.get_context("device_target")
    if device == "CPU" or not multiplies(HALVES[runtime.precision]):
        place = "a CPU" if device == "CPU" else f"this {device}"
        raise UserError(f"runtime.precision: {runtime.precision} is not supported on {place}; use float32")


def multiplies(half: Any) -> bool:
    """Return whether the device computes a small convolution of numbers of the type `half`."""
    ones = ops.ones((1, 16, 4, 4), half)
    try:
        return bool(ops.cast(ops.conv2d(ones, ones), ms.float32).asnumpy().item() == 256)
    except (RuntimeError, TypeError, ValueError):  # MindSpore has no operator for this type on this device
        return False


def set_precision(classifier: Classifier, runtime: RuntimeConfig) -> Optional[LossScaler]:
    """Set the precision of the classifier to `runtime.precision`; return the loss scaler of float16, otherwise None.

    Weights, statistics, logits and the loss stay float32 (arXiv 1710.03740). All layers of the backbone read and write
    feature maps with 2 bytes per element. `check_precision` tells whether the device is able to compute with them.
    """
    if runtime.precision == "float32":
        return None
    half = HALVES[runtime.precision]
    # A Cell without a type computes with the types of its inputs and parameters. So a BatchNorm has 2-byte inputs and
    # outputs, but float32 parameters and statistics. `to_float` would round its parameters too.
    untyped: tuple[type[nn.Cell], ...] = (SyncNorm,)
    in_float32 = tuple(get_black_list())  # the BatchNorms; and LayerNorm, which some networks of mindcv use
    if runtime.has_half_norms:
        untyped += BATCH_NORMS
        in_float32 = tuple(set(in_float32) - set(BATCH_NORMS))
    if half == ms.bfloat16:
        in_float32 += NOT_IN_BFLOAT16
    for _, cell in classifier.backbone.cells_and_names():
        if not isinstance(cell, untyped):
            cell.add_flags(fp16=half == ms.float16, bf16=half == ms.bfloat16, fp32=False)
    replace_cells(classifier.backbone, in_float32, lambda cell: InFloat32(cell, half))
    if classifier.head is not None:
        classifier.head.to_float(ms.float32)
    # bfloat16 has the range of float32, so its gradients do not underflow and need no loss scale.
    return create_scaler() if half == ms.float16 else None


class InFloat32(nn.Cell):
    """Lets a `cell` compute in float32; the output has the 2-byte type `half`."""

    def __init__(self, cell: nn.Cell, half: Any) -> None:
        super().__init__()
        self.cell = cell.to_float(ms.float32)
        self.half = half

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return ops.cast(self.cell(x), self.half)


@ms.jit_class
class Scaler(DynamicLossScaler):
    """MindSpore's loss scaler, whose `adjust` contains `%`: an operator that MindSpore does not have on a GPU."""

    def adjust(self, grads_finite: ms.Tensor) -> bool:
        """Halve the scale after an overflow, and double it after SCALE_WINDOW updates without an overflow."""
        due = ops.equal(self.counter, self.scale_window - 1)
        doubled = self.scale_value * self.scale_factor
        larger = ops.select(ops.logical_and(due, ops.isfinite(doubled)), doubled, self.scale_value)
        smaller = ops.maximum(ops.ones_like(self.scale_value), self.scale_value / self.scale_factor)
        ops.assign(self.scale_value, ops.select(grads_finite, larger, smaller))
        counts = ops.logical_and(grads_finite, ops.logical_not(due))
        ops.assign(self.counter, ops.select(counts, self.counter + 1, ops.zeros_like(self.counter)))
        return True


def create_scaler() -> Scaler:
    """Return a loss scaler that follows the overflows of the gradients.

    All ranks must scale alike, so the training step asks all ranks whether the gradients are finite (`Ranks.all_true`)
    before it updates the weights or the scale. On a device that computes inf and nan, an overflow on one rank reaches
    the mean gradients of all ranks by itself. On a device that saturates (Ascend 910, or later ones with
    MS_ASCEND_CHECK_OVERFLOW_MODE=SATURATION_MODE), the mean stays finite, and only the rank that overflowed has a
    status flag. `mindspore.amp.all_finite` reads and clears this flag.

    MindSpore's own wrapper, `nn.TrainOneStepWithLossScaleCell` (2.7.0), takes the same steps: it averages the
    gradients, reads the flag, adds up the flags of all ranks, and clears its flag. It clears the flag after the sum, so
    that the sum cannot leave a flag behind. Here `all_finite` clears the flag before the sum, and the sum of a 0 or 1
    from each rank cannot overflow. Both do not clear the flag at the start of a step: an overflow in an evaluation
    skips the next update once. Saturating devices were not available, so this part was not run.
    """
    return Scaler(INITIAL_SCALE, 2, SCALE_WINDOW)
