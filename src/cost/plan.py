"""What training takes on a device, by arithmetic; docs/scale.md explains each figure with an example."""

from dataclasses import dataclass
from typing import Any

from src.config.schema import Config, RuntimeConfig
from src.cost.count import BYTES, Row, count_params, profile
from src.cost.devices import COMPUTE_SHARE, LINK, MEMORY_SHARE, Device
from src.models.classifier import Classifier
from src.models.declaration import elements

HALF = 2  # bytes of a float16 or a bfloat16


@dataclass(frozen=True)
class PerImage:
    """What an image takes in a training step: MACs, bytes moved, bytes of feature maps, seconds of both limits."""

    macs: float
    moved: float
    kept: int
    compute: float
    transfer: float

    @property
    def rate(self) -> float:
        """The largest number of images per second of one device."""
        return 1 / max(self.compute, self.transfer)


def element_bytes(row: Row, runtime: RuntimeConfig) -> int:
    """Return the bytes of an element of the feature maps that an operation reads and writes.

    With mixed precision, the classifier's last layer still computes in float32, and BatchNorm does so if
    `runtime.norm_precision` asks for it.
    """
    is_full = row.kind == "batch_norm" and not runtime.has_half_norms
    if runtime.precision == "float32" or is_full or row.name.startswith("head"):
        return BYTES
    return HALF


def per_image(config: Config, classifier: Classifier, device: Device) -> PerImage:
    """Return what training with `config` takes per image; `classifier` has its stock layers.

    With progressive resizing, the figures are means over the image sizes, and `kept` is the largest.
    """
    sizes = config.train.image_sizes or [config.data.image_size]
    runs = [profile(classifier, side, config.data.channels) for side in sizes]
    macs = sum(row.macs for rows in runs for row in rows) / len(runs)
    read = sum((row.accesses - row.params) * element_bytes(row, config.runtime) for rows in runs for row in rows)
    # The backward pass computes each product twice: once for the inputs' gradients and once for the weights' gradients.
    # It also reads and writes each feature map twice.
    moved = 3 * read / len(runs)
    kept = max(sum(elements(row.output) * element_bytes(row, config.runtime) for row in rows) for rows in runs)
    compute, transfer = 3 * 2 * macs / (device.operations * COMPUTE_SHARE), moved / (device.traffic * MEMORY_SHARE)
    return PerImage(macs, moved, kept, compute, transfer)


def plan(
    config: Config, classifier: Classifier, state: int, device: Device, devices: int, images: int
) -> dict[str, Any]:
    """Return the figures of training with `config` on several devices.

    `state` is the number of elements that the optimizer keeps, `images` the number of images per epoch.
    """
    image = per_image(config, classifier, device)
    parameters = count_params(classifier)
    fixed = BYTES * (2 * parameters + state)
    return {
        "macs": image.macs,
        "moved": image.moved,
        "compute": image.compute,
        "transfer": image.transfer,
        "rate": image.rate,
        "days": config.train.epochs * images / image.rate / devices / 86400,
        "fixed": fixed,
        "activations": config.train.batch_size * image.kept,
        "largest": int((device.memory - fixed) / image.kept),
        "sent": 2 * (devices - 1) / devices * BYTES * parameters / LINK,
        "devices": devices,
    }
