"""The classifier: preprocessing, backbone and head in one Cell.

Training, evaluation and export use this same Cell, so their preprocessing cannot differ.
"""

from collections.abc import Sequence
from typing import Optional, Union

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.errors import UserError
from src.models.declaration import NativeKernels


class Preprocess(nn.Cell):
    """Convert images (N, H, W, C), uint8 in 0..255, to normalised float32 (N, C, H, W).

    `mean` and `std` have a value per channel, for pixels scaled to 0..1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean = ms.Tensor(np.array(mean, np.float32).reshape(1, -1, 1, 1) * 255)
        self.scale = ms.Tensor(1 / (np.array(std, np.float32).reshape(1, -1, 1, 1) * 255))

    def construct(self, images: ms.Tensor) -> ms.Tensor:
        # Transposing before the cast moves bytes, a quarter of float32's traffic. MindSpore Lite can also infer the
        # shapes of this order.
        pixels = ops.cast(ops.transpose(images, (0, 3, 1, 2)), ms.float32)
        return (pixels - self.mean) * self.scale

    def fuse(self, kernels: NativeKernels) -> nn.Cell:
        """Return the native Cell that computes all steps in one pass."""
        return kernels.preprocess(self)


class Classifier(nn.Cell):
    """Classify images (N, H, W, C), uint8; return logits (N, classes), float32 whatever the backbone computes in.

    `head` computes the logits from the backbone's features. It is None if the backbone itself outputs logits.
    `dropout` is the probability that a feature is dropped in training.
    """

    def __init__(
        self,
        backbone: nn.Cell,
        head: Optional[nn.Dense],
        dropout: float,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.preprocess = Preprocess(mean, std)
        self.backbone = backbone
        self.dropout = dropout
        self.head = head
        self.frozen: list[nn.Cell] = []

    @property
    def features(self) -> Optional[int]:
        """Return the number of features that dropout acts on, or None if the classifier has no head."""
        return None if self.head is None else self.head.in_channels

    def freeze(self, part: Union[int, str]) -> None:
        """Freeze a part of the network: training changes neither its weights nor its moving statistics.

        `part` is "none", "backbone", or a number of blocks. A number freezes the stem and the first `part` blocks;
        raise `UserError` if the backbone has fewer blocks.
        """
        if part == "none":
            return
        children = list(self.backbone.cells())
        if part != "backbone":
            count = int(part)  # the schema allows no other text
            blocks = list(next(cell for cell in children if isinstance(cell, nn.SequentialCell)))
            if count > len(blocks):
                raise UserError(f"model.freeze: {count} is more than the {len(blocks)} blocks of the network")
            children = [children[0], *blocks[:count]]
        self.frozen = children
        for cell in children:
            for parameter in cell.get_parameters():
                parameter.requires_grad = False

    def set_train(self, mode: bool = True) -> "Classifier":
        """Switch between training and evaluation mode; a frozen part stays in evaluation mode."""
        super().set_train(mode)
        for cell in self.frozen:
            cell.set_train(False)
        return self

    def classify(self, pixels: ms.Tensor, kept: Optional[ms.Tensor] = None) -> ms.Tensor:
        """Return logits (N, classes) for normalised pixels, float32 (N, C, H, W).

        `kept`, uint8 (N, features), is the dropout mask: 1 keeps a feature, 0 drops it. The mask is an input because
        a compiled step would generate different random numbers in each process.
        """
        features = self.backbone(pixels)
        if kept is not None:
            features = features * ops.cast(kept, features.dtype) / (1 - self.dropout)
        logits = features if self.head is None else self.head(features)
        # A backbone without a head here, such as a network of mindcv, outputs float16 in mixed precision. The scaled
        # loss would overflow.
        return logits if logits.dtype == ms.float32 else ops.cast(logits, ms.float32)

    def construct(self, images: ms.Tensor) -> ms.Tensor:
        return self.classify(self.preprocess(images))
