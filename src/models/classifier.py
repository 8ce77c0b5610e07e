"""The classifier: preprocessing, backbone and head in one Cell, so that training, evaluation and export agree."""

import mindspore as ms
import numpy as np
from mindspore import nn, ops


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
    """Images (N, H, W, C), uint8, to logits (N, classes), float32."""

    def __init__(self, backbone, classes, dropout, mean, std):
        super().__init__()
        self.preprocess = Preprocess(mean, std)
        self.backbone = backbone
        self.dropout = nn.Dropout(p=dropout) if dropout else None
        self.head = nn.Dense(backbone.out_features, classes)

    def classify(self, pixels):
        """Normalised float32 (N, C, H, W) to logits (N, classes)."""
        features = self.backbone(pixels)
        if self.dropout is not None:
            features = self.dropout(features)
        return self.head(features)

    def construct(self, images):
        return self.classify(self.preprocess(images))
