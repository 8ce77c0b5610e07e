"""The networks by name, and `create_model`, which turns one into a classifier of images."""

from mindspore import nn

from src.models.classifier import Classifier
from src.models.ghostnet import GhostNet
from src.models.layers import initialize_weights, set_norm
from src.models.mnasnet import MnasNet
from src.models.mobilenet_v1 import MobileNetV1
from src.models.mobilenet_v2 import MobileNetV2
from src.models.mobilenet_v3 import MobileNetV3Large, MobileNetV3Small
from src.models.shufflenet_v1 import ShuffleNetV1
from src.models.shufflenet_v2 import ShuffleNetV2

NETWORKS = {
    "shufflenet_v1": ShuffleNetV1,
    "shufflenet_v2": ShuffleNetV2,
    "mobilenet_v2": MobileNetV2,
    "ghostnet": GhostNet,
    "mobilenet_v1": MobileNetV1,
    "mobilenet_v3_small": MobileNetV3Small,
    "mobilenet_v3_large": MobileNetV3Large,
    "mnasnet": MnasNet,
}

MINDCV = "mindcv/"  # a name that starts so is one of mindcv's networks


def mindcv_networks():
    """Return the names of mindcv's networks, each after MINDCV."""
    import mindcv  # takes seconds, and few runs need it

    return [MINDCV + name for name in mindcv.list_models()]


def create_model(model, data, classes):
    """Return a `Classifier` with fresh weights.

    `model` and `data` are the config's sections (`ModelConfig`, `DataConfig`), `classes` the number of outputs.
    """
    if model.name.startswith(MINDCV):
        import mindcv

        network = mindcv.create_model(
            model.name[len(MINDCV) :], num_classes=classes, in_channels=data.channels, pretrained=False
        )
        return Classifier(network, None, 0.0, data.mean, data.std)
    own = {key: getattr(model, key) for key in ("groups", "layout") if getattr(model, key) is not None}
    backbone = NETWORKS[model.name](width=model.width, in_channels=data.channels, stem_stride=model.stem_stride, **own)
    head = nn.Dense(backbone.out_features, classes)
    classifier = Classifier(backbone, head, model.dropout, data.mean, data.std)
    if model.norm_epsilon is not None or model.norm_momentum is not None:
        set_norm(classifier, model.norm_epsilon, model.norm_momentum)
    initialize_weights(classifier)
    return classifier
