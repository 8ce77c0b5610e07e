"""Mixed precision: 2-byte numbers in convolutions and matrix products, on devices that compute faster with them."""

from typing import Optional

import mindspore as ms
from mindspore import nn
from mindspore.amp import DynamicLossScaler, LossScaler, get_black_list

from src.config.schema import RuntimeConfig
from src.errors import UserError
from src.models.classifier import Classifier
from src.runtime.parallel import SyncNorm

INITIAL_SCALE = 2.0**16  # of the loss; it is halved at each overflow
SCALE_WINDOW = 2000  # updates without an overflow after which the loss scale is doubled


def set_precision(classifier: Classifier, runtime: RuntimeConfig) -> Optional[LossScaler]:
    """Set the precision of the classifier to `runtime.precision`; return the loss scaler of float16, otherwise None.

    Weights, norms, logits and the loss stay float32 (arXiv 1710.03740). On a CPU, float16 and bfloat16 are a
    `UserError`.
    """
    if runtime.precision == "float32":
        return None
    device = ms.get_context("device_target")
    if device == "CPU":
        raise UserError(f"runtime.precision: {runtime.precision} is not supported on a CPU; use float32")
    classifier.backbone.to_float({"float16": ms.float16, "bfloat16": ms.bfloat16}[runtime.precision])
    keep_norms_in_float32(classifier)
    if classifier.head is not None:
        classifier.head.to_float(ms.float32)
    # bfloat16 has the range of float32, so its gradients do not underflow and need no loss scale.
    return create_scaler() if runtime.precision == "float16" else None


def keep_norms_in_float32(network: nn.Cell) -> None:
    """Mark every norm of the `network` to compute in float32: our `SyncNorm` and the norms in MindSpore's black list.

    The black list has BatchNorm, and LayerNorm, which some networks of mindcv use.
    """
    norms = (*get_black_list(), SyncNorm)
    for _, cell in network.cells_and_names():
        if isinstance(cell, norms):
            cell.to_float(ms.float32)


def create_scaler() -> DynamicLossScaler:
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
    return DynamicLossScaler(INITIAL_SCALE, 2, SCALE_WINDOW)
