"""Load pretrained weights into a classifier: either every tensor finds its place, or nothing is loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Optional, Union

import mindspore as ms
import numpy as np

from src.config.schema import SAME, ModelConfig
from src.errors import UserError
from src.models.classifier import Classifier
from src.models.layers import set_norm
from src.weights.checkpoint import AVERAGE, OPTIMIZER, load_checkpoint
from src.weights.foreign_names import SOURCES, LayerNames
from src.weights.readers import AVERAGE_KEYS, Weights, read_weights

TORCH_NAMES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
AVERAGE_KEY = AVERAGE.rstrip(".")  # how the log names the moving average in a checkpoint of PocketSpore
LISTED = 5  # number of tensors that an error names for each problem
OURS = "PocketSpore"


class Imported(NamedTuple):
    """The result of loading weights: where they come from, and what the network needs with them."""

    source: str  # PocketSpore, mindcv, torchvision or timm
    fresh_head: bool  # True: the file has another number of classes, so the classifier keeps its initial weights
    norm_epsilon: Optional[float]  # BatchNorm's epsilon, from `model.norm_epsilon` or the source; None: the default
    padding: Optional[str]  # from `model.padding` or the source; None: symmetric
    remarks: tuple[str, ...]  # what a reader of the log should know: moving averages, a changed stem

    def origin(self) -> str:
        """Return the source and the remarks, for the log."""
        return "; ".join((self.source, *self.remarks))


def load_pretrained(classifier: Classifier, model: ModelConfig, path: Union[str, Path]) -> Imported:
    """Load the weights at `path` into `classifier`, which was built from the config's section `model`.

    The source is the library whose names and shapes fit. Its BatchNorm epsilon is used if `model.norm_epsilon` is null,
    its padding if `model.padding` is null. If only the number of classes differs, the head keeps its initial weights.
    If the weights are for color images and the classifier is for gray images, or the other way round, the stem's
    weights are converted. If a tensor is missing, unexpected or has a wrong shape, nothing is loaded, and a `UserError`
    is raised.
    """
    tensors, part = only_weights(read_weights(path))
    candidates = [Match(classifier, name, source.names, tensors) for name, source in SOURCES[model.name].items()]
    candidates.append(Match(classifier, OURS, None, tensors))
    best = min(candidates, key=lambda match: len(match.problems()))
    if best.problems():
        raise UserError(
            f"model.pretrained: {path} does not fit {model.name} (best match: {best.source}): {best.report()}"
        )
    padding: Optional[str]
    if best.source == OURS:
        trained = load_checkpoint(path).config.model
        epsilon, layout, padding = trained.norm_epsilon, trained.layout, trained.padding
    else:
        _, epsilon, layout, padding = SOURCES[model.name][best.source]
    if layout not in (None, model.layout):
        raise UserError(f"model.layout: does not fit the weights of {path} (found {model.layout}, expected {layout})")
    if model.norm_epsilon is None and epsilon is not None:
        set_norm(classifier, epsilon)
    if model.padding is None and padding == SAME:
        classifier.backbone.pad_same()
    remarks = []
    if part is not None:
        remarks.append(
            f"the moving average in {part}" if part in (AVERAGE_KEY, *AVERAGE_KEYS) else f"the weights in {part}"
        )
    parameters = classifier.parameters_dict()
    for ours, theirs in best.pairs.items():
        if not (best.fresh_head and ours.startswith("head.")):
            value = tensors[theirs].astype("float32")
            if ours == best.stem and value.shape != parameters[ours].shape:
                value, remark = convert_stem(value, parameters[ours].shape[1])
                remarks.append(remark)
            parameters[ours].set_data(ms.Tensor(value.reshape(parameters[ours].shape)))
    return Imported(
        best.source,
        best.fresh_head,
        epsilon if model.norm_epsilon is None else model.norm_epsilon,
        padding if model.padding is None else model.padding,
        tuple(remarks),
    )


def only_weights(weights: Weights) -> Weights:
    """Return the weights among the tensors of a PocketSpore checkpoint: their moving average if the file has it."""
    tensors, key = weights
    averages = {name[len(AVERAGE) :]: value for name, value in tensors.items() if name.startswith(AVERAGE)}
    if averages:
        return Weights(averages, AVERAGE_KEY)
    return Weights({name: value for name, value in tensors.items() if not name.startswith(OPTIMIZER)}, key)


def convert_stem(weight: np.ndarray, channels: int) -> tuple[np.ndarray, str]:
    """Return the weight of the first convolution for `channels` (1 or 3) input channels, and the remark for the log.

    `weight`, float32 (out_channels, 3 or 1, H, W), is for the other number of channels. The new convolution gives a
    gray image the same output as `weight`, if all channels have the same mean and standard deviation.
    """
    if channels == 1:
        return weight.sum(1, keepdims=True), "the stem's weights for 3 channels are summed for 1 channel"
    return weight.repeat(3, 1) / 3, "the stem's weights for 1 channel are repeated for 3 channels and divided by 3"


class Match:
    """How well the `tensors` of a file fit a classifier, if their names are from the library `source`.

    `names` is the function of `foreign_names` that gives the library's layer names, or None for PocketSpore's names.
    """

    def __init__(
        self,
        classifier: Classifier,
        source: str,
        names: Optional[LayerNames],
        tensors: Mapping[str, np.ndarray],
    ) -> None:
        self.source = source
        shapes = {parameter.name: tuple(parameter.shape) for parameter in classifier.get_parameters()}
        self.pairs = {name: name for name in shapes}
        self.stem = next(iter(shapes))
        if names is not None:
            kinds = {} if source == "mindcv" else TORCH_NAMES
            layers = {
                ("" if ours == "head" else "backbone.") + ours: theirs for ours, theirs in names(classifier.backbone)
            }
            for name in shapes:
                layer, _, kind = name.rpartition(".")
                self.pairs[name] = f"{layers[layer]}.{kinds.get(kind, kind)}"
        # The classifier of mindcv's ShuffleNets has no bias. Our bias keeps its initial zeros.
        if source == "mindcv" and self.pairs["head.bias"] not in tensors:
            del self.pairs["head.bias"]
        self.missing = [theirs for theirs in self.pairs.values() if theirs not in tensors]
        known = set(self.pairs.values())
        self.unexpected = [key for key in tensors if key not in known and not key.endswith("num_batches_tracked")]
        misfits = {
            ours: theirs
            for ours, theirs in self.pairs.items()
            if theirs in tensors and squeezed(tensors[theirs].shape) != squeezed(shapes[ours])
        }
        if self.stem in misfits and convertible(tensors[misfits[self.stem]].shape, shapes[self.stem]):
            del misfits[self.stem]
        self.fresh_head = any(ours.startswith("head.") for ours in misfits)
        self.misshaped = [
            f"{theirs} (found {tensors[theirs].shape}, expected {shapes[ours]})"
            for ours, theirs in misfits.items()
            if not ours.startswith("head.")
        ]

    def problems(self) -> list[str]:
        return self.missing + self.unexpected + self.misshaped

    def report(self) -> str:
        """Return one line that lists the first tensors of each problem."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "with another shape": self.misshaped}
        return "; ".join(
            f"{len(items)} {kind}: {', '.join(items[:LISTED])}{', …' if len(items) > LISTED else ''}"
            for kind, items in kinds.items()
            if items
        )


def convertible(theirs: Sequence[int], ours: Sequence[int]) -> bool:
    """Return whether two shapes of a convolution's weight differ only in the number of input channels, 1 and 3."""
    others = [(*shape[:1], *shape[2:]) for shape in (theirs, ours)]
    return len(theirs) == len(ours) == 4 and others[0] == others[1] and {theirs[1], ours[1]} == {1, 3}


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape without the last two axes of a 1x1 convolution, which some libraries use as a dense layer."""
    return tuple(shape[:2]) if len(shape) == 4 and shape[2:] == (1, 1) else tuple(shape)
