"""Preparation of the network for training. The order of the steps matters; a comment at each step says why."""

from dataclasses import dataclass
from typing import Optional

from mindspore.amp import LossScaler

from src.config.schema import Config
from src.cost.count import count_macs, count_params
from src.data.loading import Loader
from src.data.samples import Samples
from src.kernels.convert import use_kernels
from src.models import create_model
from src.models.classifier import Classifier
from src.runtime.parallel import Ranks, synchronise_norms
from src.runtime.precision import set_precision
from src.training.moving_average import MovingAverage, create_average
from src.training.validation import Validation
from src.weights.checkpoint import Checkpoint
from src.weights.pretrained import load_pretrained


@dataclass(frozen=True)
class ReadyNetwork:
    """A network that a `TrainStep` can train, with its moving average, validation and cost."""

    classifier: Classifier
    config: Config  # with the BatchNorm epsilon and the padding that the pretrained weights need
    scaler: Optional[LossScaler]  # loss scaler, with float16 only
    average: Optional[MovingAverage]  # moving average of the weights, with `train.ema_decay`
    validation: Validation
    params: int  # number of trainable parameters, before freezing
    macs: int  # multiply-accumulates per image


def prepare_network(
    config: Config,
    classes: list[str],
    train_samples: Samples,
    test_batches: Loader,
    ranks: Ranks,
    resumed: Optional[Checkpoint] = None,
) -> ReadyNetwork:
    """Build the network of the config and prepare it for training.

    `resumed` is the state that the caller loads afterwards, if a run is resumed.
    """
    if resumed is not None:
        trained = resumed.config.model
        config = with_imported(config, trained.norm_epsilon, trained.padding)
    classifier = create_model(config.model, config.data, len(classes))

    # The cost belongs to the network as published, so it is counted before parts are frozen and layers are replaced.
    params = count_params(classifier)
    macs = count_macs(classifier, config.data.image_size, config.data.channels)

    # Pretrained weights may replace BatchNorms by new BatchNorms with another epsilon. All later steps keep references
    # to the parameters, so they come after. A resumed state has all weights, so it needs no pretrained weights.
    if config.model.pretrained and resumed is None:
        imported = load_pretrained(classifier, config.model, config.model.pretrained)
        config = with_imported(config, imported.norm_epsilon, imported.padding)
        excluded = " except the classifier, whose number of classes differs" if imported.fresh_head else ""
        print(f"pretrained: loaded all weights{excluded} from {config.model.pretrained} ({imported.origin()})")

    # Freezing marks parameters as not trainable. Recalibration, the native kernels and the optimizer read these marks.
    classifier.freeze(config.model.freeze)

    # Precision treats synchronised norms and BatchNorms differently, so the synchronised norms must exist before.
    if config.runtime.sync_norm and ranks.count > 1:
        synchronise_norms(classifier, ranks.count)
    scaler = set_precision(classifier, config.runtime)

    # All ranks start from the weights of the first rank. The moving average starts from the same weights.
    ranks.broadcast(classifier.get_parameters())
    decay, compiled = config.train.ema_decay, config.runtime.mode == "graph"
    average = None if decay is None else create_average(classifier, decay, compiled)

    # Validation looks for BatchNorms, so it comes before the native kernels, which replace BatchNorms by other cells.
    validation = Validation(config, classifier, train_samples, test_batches, ranks, average)
    use_kernels(classifier, config.runtime, ranks.sharing())
    return ReadyNetwork(classifier, config, scaler, average, validation, params, macs)


def with_imported(config: Config, epsilon: Optional[float], padding: Optional[str]) -> Config:
    """Return a copy of the config with the settings that pretrained weights need."""
    changes = {"norm_epsilon": epsilon, "padding": padding}
    return config.model_copy(update={"model": config.model.model_copy(update=changes)})
