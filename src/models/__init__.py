"""The table of networks, and `create_model`, which builds an image classifier from the config."""

from mindspore import nn

from src.config.schema import MINDCV, SAME, DataConfig, DistillConfig, ModelConfig, listed, resolve_own_keys, resolved
from src.errors import did_you_mean
from src.models.classifier import Classifier
from src.models.ghostnet import GhostNet
from src.models.layers import initialize_weights, set_norm
from src.models.mnasnet import MnasNet
from src.models.mobilenet_v1 import MobileNetV1
from src.models.mobilenet_v2 import MobileNetV2
from src.models.mobilenet_v3 import MobileNetV3Large, MobileNetV3Small
from src.models.shufflenet_v1 import ShuffleNetV1
from src.models.shufflenet_v2 import ShuffleNetV2

NETWORKS: dict[str, type[nn.Cell]] = {
    "shufflenet_v1": ShuffleNetV1,
    "shufflenet_v2": ShuffleNetV2,
    "mobilenet_v2": MobileNetV2,
    "ghostnet": GhostNet,
    "mobilenet_v1": MobileNetV1,
    "mobilenet_v3_small": MobileNetV3Small,
    "mobilenet_v3_large": MobileNetV3Large,
    "mnasnet": MnasNet,
}


def resolve_model(model: ModelConfig) -> None:
    """Fill in the defaults of the settings that only the chosen network has.

    Raise a `ValueError` that begins with the key if the network or the width is unknown, or if the network does not
    have the setting.
    """
    if model.name.startswith(MINDCV):
        check_mindcv_name("model.name", model.name)
        for key, field in ModelConfig.model_fields.items():
            if key not in ("name", "classes") and getattr(model, key) != field.default:
                raise ValueError(
                    f"model.{key}: {getattr(model, key)} is not supported by mindcv's networks; leave it out"
                )
        return
    if model.name not in NETWORKS:
        raise ValueError(
            f"model.name: {model.name!r} is not one of {listed(NETWORKS)}{did_you_mean(model.name, NETWORKS)}"
        )
    network = NETWORKS[model.name]
    if model.width not in network.variants:
        raise ValueError(f"model.width: {model.width} is not one of {listed(network.variants)} ({model.name})")
    options = {name: getattr(network, "options", {}) for name, network in NETWORKS.items()}
    defaults = {name: {key: option.default for key, option in settings.items()} for name, settings in options.items()}
    try:
        resolve_own_keys(model, "name", model.name, defaults)
        for key, option in options[model.name].items():
            value = getattr(model, key)
            if value not in option.allowed:
                nearest = did_you_mean(value, option.allowed)
                raise ValueError(f"{key}: {value} is not one of {listed(option.allowed)}{nearest}")
    except ValueError as error:
        raise ValueError(f"model.{error}") from None
    if model.padding == SAME and not hasattr(network, "pad_same"):
        users = listed(name for name, network in NETWORKS.items() if hasattr(network, "pad_same"))
        raise ValueError(
            f"model.padding: same is used with model.name={users} only (found model.name={model.name}); leave it out"
        )


def resolve_teacher(distill: DistillConfig) -> None:
    """Raise a `ValueError` if `distill.teacher` names a network that mindcv does not have."""
    if distill.teacher is not None and distill.teacher.startswith(MINDCV):
        check_mindcv_name("distill.teacher", distill.teacher)


def check_mindcv_name(key: str, name: str) -> None:
    """Raise a `ValueError` that begins with `key` if `name` is not a network of mindcv."""
    known = mindcv_networks()
    if name not in known:
        raise ValueError(f"{key}: {name!r} is not a network of mindcv{did_you_mean(name, known)}")


def mindcv_networks() -> list[str]:
    """Return the names of mindcv's networks, each with the prefix MINDCV."""
    import mindcv  # imported here because it takes seconds and few runs need it

    return [MINDCV + name for name in mindcv.list_models()]


def create_model(model: ModelConfig, data: DataConfig, classes: int) -> Classifier:
    """Return the classifier that the config sections describe, with new weights and `classes` outputs."""
    mean, std = resolved(data.mean), resolved(data.std)
    if model.name.startswith(MINDCV):
        import mindcv

        network = mindcv.create_model(
            model.name[len(MINDCV) :], num_classes=classes, in_channels=data.channels, pretrained=False
        )
        return Classifier(network, None, 0.0, mean, std)
    network = NETWORKS[model.name]
    options = {key: getattr(model, key) for key in getattr(network, "options", {})}
    backbone = network(width=model.width, in_channels=data.channels, stem_stride=model.stem_stride, **options)
    head = nn.Dense(backbone.out_features, classes)
    if model.padding == SAME:
        backbone.pad_same()
    classifier = Classifier(backbone, head, model.dropout, mean, std)
    if model.norm_epsilon is not None or model.norm_momentum is not None:
        set_norm(classifier, model.norm_epsilon, model.norm_momentum)
    initialize_weights(classifier)
    return classifier
