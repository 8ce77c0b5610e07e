"""Mixed precision: 2-byte numbers in convolutions and matrix products, on devices that compute faster with them."""

from typing import Optional

import mindspore as ms
from mindspore import nn
from mindspore.amp import DynamicLossScaler, LossScaler

from src.config.schema import RuntimeConfig
from src.errors import UserError
from src.models.classifier import Classifier
from src.runtime.parallel import SyncNorm

INITIAL_SCALE = 2.0**16  # of the loss; it is halved at each overflow
SCALE_WINDOW = 2000  # updates without an overflow after which the loss scale is doubled


def set_precision(classifier: Classifier, runtime: RuntimeConfig) -> Optional[LossScaler]:
    """Set the precision of the classifier to `runtime.precision`; return the loss scaler of float16, otherwise None.

    Weights, BatchNorm, logits and the loss stay float32 (arXiv 1710.03740). On a CPU, float16 and bfloat16 are a
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
    """Mark every BatchNorm of the `network` to compute in float32, synchronised or not."""
    for _, cell in network.cells_and_names():
        if isinstance(cell, (nn.BatchNorm2d, SyncNorm)):
            cell.to_float(ms.float32)


def create_scaler() -> DynamicLossScaler:
    """Return a loss scaler that follows the overflows of the gradients."""
    return DynamicLossScaler(INITIAL_SCALE, 2, SCALE_WINDOW)
