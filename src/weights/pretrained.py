"""Loading foreign weights into a classifier: every tensor is accounted for, or nothing is loaded."""

from pathlib import Path
from typing import NamedTuple, Optional, Union

import mindspore as ms

from src.config.schema import ModelConfig
from src.errors import UserError
from src.models.classifier import Classifier
from src.models.layers import set_norm
from src.weights.checkpoint import AVERAGE, OPTIMIZER, load_checkpoint
from src.weights.foreign_names import SOURCES
from src.weights.readers import read_tensors

TORCH_NAMES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
LISTED = 5  # tensors that an error names of each kind


OURS = "PocketSpore"


class Imported(NamedTuple):
    """What loading weights tells: the library that they come from, and what it asks of the network."""

    source: str  # PocketSpore, mindcv, torchvision or timm
    fresh_head: bool  # the file has another number of classes, so the classifier's weights stay as initialised
    norm_epsilon: Optional[float]  # BatchNorm's epsilon, given by `model.norm_epsilon` or the source; None: ours


def load_pretrained(classifier: Classifier, model: ModelConfig, path: Union[str, Path]) -> Imported:
    """Load the weights at `path` into `classifier`, which was made from the config's section `model`.

    The source is the library whose names and shapes fit; its BatchNorm epsilon is used where `model.norm_epsilon` is
    null. Where only the number of classes differs, the head keeps its fresh weights. A missing, unexpected or
    mis-shaped tensor is a `UserError`, and nothing is loaded.
    """
    tensors = weights_alone(read_tensors(path))
    candidates = [Match(classifier, name, source.names, tensors) for name, source in SOURCES[model.name].items()]
    candidates.append(Match(classifier, OURS, None, tensors))
    best = min(candidates, key=lambda match: len(match.problems()))
    if best.problems():
        raise UserError(f"model.pretrained: {path} does not fit {model.name} (nearest: {best.source}): {best.report()}")
    if best.source == OURS:
        trained = load_checkpoint(path).config.model
        epsilon, layout = trained.norm_epsilon, trained.layout
    else:
        _, epsilon, layout = SOURCES[model.name][best.source]
    if layout not in (None, model.layout):
        raise UserError(f"model.layout: {model.layout} does not fit the weights of {path}, which need {layout}")
    if model.norm_epsilon is None and epsilon is not None:
        set_norm(classifier, epsilon)
    parameters = classifier.parameters_dict()
    for ours, theirs in best.pairs.items():
        if not (best.fresh_head and ours.startswith("head.")):
            value = tensors[theirs].reshape(parameters[ours].shape)
            parameters[ours].set_data(ms.Tensor(value.astype("float32")))
    return Imported(best.source, best.fresh_head, epsilon if model.norm_epsilon is None else model.norm_epsilon)


def weights_alone(tensors):
    """Return the weights among what a checkpoint of ours holds: their moving average where the run kept one."""
    averages = {name[len(AVERAGE) :]: value for name, value in tensors.items() if name.startswith(AVERAGE)}
    return averages or {name: value for name, value in tensors.items() if not name.startswith(OPTIMIZER)}


class Match:
    """How a file's tensors fit a classifier if `source` named them; `names` is its function, or None for our names."""

    def __init__(self, classifier, source, names, tensors):
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
        # mindcv's ShuffleNets have no bias in the classifier: it stays at its initial zeros.
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
            f"{theirs} {tensors[theirs].shape} for {shapes[ours]}"
            for ours, theirs in misfits.items()
            if not ours.startswith("head.")
        ]

    def problems(self):
        return self.missing + self.unexpected + self.misshaped

    def report(self):
        """Return one line that lists the first of each kind."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.misshaped}
        return "; ".join(
            f"{len(items)} {kind}: {', '.join(items[:LISTED])}{', …' if len(items) > LISTED else ''}"
            for kind, items in kinds.items()
            if items
        )


def squeezed(shape):
    """A dense layer's weight may come as a 1x1 convolution's."""
    return tuple(shape[:2]) if len(shape) == 4 and shape[2:] == (1, 1) else tuple(shape)
