"""Mixed precision: half the bytes for convolutions and products, on devices that gain by it."""

import mindspore as ms
from mindspore import nn
from mindspore.amp import DynamicLossScaler

from src.errors import UserError
from src.runtime.parallel import SyncNorm

FIRST_SCALE = 2.0**16  # of the loss; halved at each overflow, doubled after so many updates without one
SCALE_WINDOW = 2000


def set_precision(classifier, runtime):
    """Let the classifier compute as `runtime.precision` says; return the loss scaler that it needs, or None.

    Weights, BatchNorm, logits and the loss stay float32 (arXiv 1710.03740). On a CPU anything but float32 is a
    `UserError`.
    """
    if runtime.precision == "float32":
        return None
    device = ms.get_context("device_target")
    if device == "CPU":
        raise UserError(f"runtime.precision: {runtime.precision} is not supported on a CPU, only float32")
    classifier.backbone.to_float({"float16": ms.float16, "bfloat16": ms.bfloat16}[runtime.precision])
    for _, cell in classifier.cells_and_names():
        if isinstance(cell, (nn.BatchNorm2d, SyncNorm)):
            cell.to_float(ms.float32)
    if classifier.head is not None:
        classifier.head.to_float(ms.float32)
    # bfloat16 has float32's range, so its gradients do not vanish.
    return create_scaler() if runtime.precision == "float16" else None


def create_scaler() -> DynamicLossScaler:
    return DynamicLossScaler(FIRST_SCALE, 2, SCALE_WINDOW)
