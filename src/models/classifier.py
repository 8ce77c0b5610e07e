"""The classifier: preprocessing, backbone and head in one Cell, so that training, evaluation and export agree."""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.errors import UserError


class Preprocess(nn.Cell):
    """Images (N, H, W, C), uint8 0..255, to normalised float32 (N, C, H, W); `mean` and `std` are of pixels in 0..1."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean = ms.Tensor(np.float32(mean).reshape(1, -1, 1, 1) * 255)
        self.scale = ms.Tensor(1 / (np.float32(std).reshape(1, -1, 1, 1) * 255))

    def construct(self, images):
        # Transposed while still bytes: a quarter of the traffic, and the order that MindSpore Lite can shape-infer.
        pixels = ops.cast(ops.transpose(images, (0, 3, 1, 2)), ms.float32)
        return (pixels - self.mean) * self.scale


class Classifier(nn.Cell):
    """Images (N, H, W, C), uint8, to logits (N, classes), float32.

    `head` turns the backbone's features into logits; None where the backbone puts out logits itself. `dropout` is the
    probability that a feature is left out in training.
    """

    def __init__(self, backbone, head, dropout, mean, std):
        super().__init__()
        self.preprocess = Preprocess(mean, std)
        self.backbone = backbone
        self.dropout = dropout
        self.head = head
        self.frozen = []

    @property
    def features(self):
        """The width of the layer that dropout acts on, or None where the backbone has no head."""
        return None if self.head is None else self.head.in_channels

    def freeze(self, part):
        """Keep the weights and moving statistics of a part from training: "none", "backbone", or a number of blocks.

        A number means the stem and so many blocks after it; one that the backbone does not have is a `UserError`.
        """
        if part == "none":
            return
        children = list(self.backbone.cells())
        if part != "backbone":
            blocks = list(next(cell for cell in children if isinstance(cell, nn.SequentialCell)))
            if part > len(blocks):
                raise UserError(f"model.freeze: {part} is more than the {len(blocks)} blocks of the network")
            children = [children[0], *blocks[:part]]
        self.frozen = children
        for cell in children:
            for parameter in cell.get_parameters():
                parameter.requires_grad = False

    def set_train(self, mode=True):
        """Switch between training and evaluation; a frozen part stays in evaluation mode."""
        super().set_train(mode)
        for cell in self.frozen:
            cell.set_train(False)
        return self

    def classify(self, pixels, kept=None):
        """Normalised float32 (N, C, H, W) to logits (N, classes).

        With `kept`, uint8 (N, features), dropout leaves the features where it is 1; its mask is an input, since one
        that a compiled step draws differs from process to process.
        """
        features = self.backbone(pixels)
        if kept is not None:
            features = features * ops.cast(kept, features.dtype) / (1 - self.dropout)
        return features if self.head is None else self.head(features)

    def construct(self, images):
        return self.classify(self.preprocess(images))
