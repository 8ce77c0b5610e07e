"""The networks by name, and `create_model`, which turns one into a classifier of images."""

from src.models.classifier import Classifier
from src.models.ghostnet import GhostNet
from src.models.layers import initialize_weights
from src.models.mobilenet_v2 import MobileNetV2
from src.models.shufflenet_v1 import ShuffleNetV1
from src.models.shufflenet_v2 import ShuffleNetV2

NETWORKS = {
    "shufflenet_v1": ShuffleNetV1,
    "shufflenet_v2": ShuffleNetV2,
    "mobilenet_v2": MobileNetV2,
    "ghostnet": GhostNet,
}


def create_model(model, data, classes):
    """Return a `Classifier` with fresh weights.

    `model` and `data` are the config's sections (`ModelConfig`, `DataConfig`), `classes` the number of outputs.
    """
    arguments = {"width": model.width, "in_channels": data.channels, "stem_stride": model.stem_stride}
    if model.groups is not None:
        arguments["groups"] = model.groups
    classifier = Classifier(NETWORKS[model.name](**arguments), classes, model.dropout, data.mean, data.std)
    initialize_weights(classifier)
    return classifier
