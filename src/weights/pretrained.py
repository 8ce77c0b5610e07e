"""Load pretrained weights into a classifier: either every tensor finds its place, or nothing is loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Optional, Union

import mindspore as ms
import numpy as np

from src.config.schema import ModelConfig
from src.errors import UserError
from src.models.classifier import Classifier
from src.models.layers import set_norm
from src.weights.checkpoint import AVERAGE, OPTIMIZER, load_checkpoint
from src.weights.foreign_names import SOURCES, LayerNames
from src.weights.readers import read_tensors

TORCH_NAMES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
LISTED = 5  # number of tensors that an error names for each problem
OURS = "PocketSpore"


class Imported(NamedTuple):
    """The result of loading weights: where they come from, and what the network needs with them."""

    source: str  # PocketSpore, mindcv, torchvision or timm
    fresh_head: bool  # True: the file has another number of classes, so the classifier keeps its initial weights
    norm_epsilon: Optional[float]  # BatchNorm's epsilon, from `model.norm_epsilon` or the source; None: the default


def load_pretrained(classifier: Classifier, model: ModelConfig, path: Union[str, Path]) -> Imported:
    """Load the weights at `path` into `classifier`, which was built from the config's section `model`.

    The source is the library whose names and shapes fit. Its BatchNorm epsilon is used if `model.norm_epsilon` is null.
    If only the number of classes differs, the head keeps its initial weights. If a tensor is missing, unexpected or has
    a wrong shape, nothing is loaded, and a `UserError` is raised.
    """
    tensors = only_weights(read_tensors(path))
    candidates = [Match(classifier, name, source.names, tensors) for name, source in SOURCES[model.name].items()]
    candidates.append(Match(classifier, OURS, None, tensors))
    best = min(candidates, key=lambda match: len(match.problems()))
    if best.problems():
        raise UserError(
            f"model.pretrained: {path} does not fit {model.name} (best match: {best.source}): {best.report()}"
        )
    if best.source == OURS:
        trained = load_checkpoint(path).config.model
        epsilon, layout = trained.norm_epsilon, trained.layout
    else:
        _, epsilon, layout = SOURCES[model.name][best.source]
    if layout not in (None, model.layout):
        raise UserError(f"model.layout: does not fit the weights of {path} (found {model.layout}, expected {layout})")
    if model.norm_epsilon is None and epsilon is not None:
        set_norm(classifier, epsilon)
    parameters = classifier.parameters_dict()
    for ours, theirs in best.pairs.items():
        if not (best.fresh_head and ours.startswith("head.")):
            value = tensors[theirs].reshape(parameters[ours].shape)
            parameters[ours].set_data(ms.Tensor(value.astype("float32")))
    return Imported(best.source, best.fresh_head, epsilon if model.norm_epsilon is None else model.norm_epsilon)


def only_weights(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weights among the tensors of a PocketSpore checkpoint: their moving average if the file has it."""
    averages = {name[len(AVERAGE) :]: value for name, value in tensors.items() if name.startswith(AVERAGE)}
    return averages or {name: value for name, value in tensors.items() if not name.startswith(OPTIMIZER)}


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


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape without the last two axes of a 1x1 convolution, which some libraries use as a dense layer."""
    return tuple(shape[:2]) if len(shape) == 4 and shape[2:] == (1, 1) else tuple(shape)
