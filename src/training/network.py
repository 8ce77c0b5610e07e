"""The network, made ready to train. The order of the steps matters; each step says why it has its place."""

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
from src.training.moving_average import MovingAverage
from src.training.validation import Validation
from src.weights.checkpoint import Checkpoint
from src.weights.pretrained import load_pretrained


@dataclass(frozen=True)
class ReadyNetwork:
    """A network that a `TrainStep` can train, and what belongs to it."""

    classifier: Classifier
    config: Config  # with what the pretrained weights ask of the network
    scaler: Optional[LossScaler]  # of the loss, in float16
    average: Optional[MovingAverage]  # of the weights, with `train.ema_decay`
    validation: Validation
    params: int  # trainable ones, of the whole network
    macs: int  # of one image


def prepare_network(
    config: Config,
    classes: list[str],
    train_samples: Samples,
    test_batches: Loader,
    ranks: Ranks,
    resumed: Optional[Checkpoint] = None,
) -> ReadyNetwork:
    """Build the config's network and make it ready to train; with `resumed`, a run's state will fill it afterwards."""
    if resumed is not None:
        config = with_epsilon(config, resumed.config.model.norm_epsilon)
    classifier = create_model(config.model, config.data, len(classes))

    # The cost is counted on the network as published: below, parts are frozen and layers are replaced.
    params = count_params(classifier)
    macs = count_macs(classifier, config.data.image_size, config.data.channels)

    # Pretrained weights come first: they may replace BatchNorms by those of another epsilon, whose parameters every
    # later step takes hold of. A resumed state holds all weights, so it needs no pretrained weights.
    if config.model.pretrained and resumed is None:
        imported = load_pretrained(classifier, config.model, config.model.pretrained)
        config = with_epsilon(config, imported.norm_epsilon)
        loaded = "all but the classifier, which has another number of classes" if imported.fresh_head else "all"
        print(f"pretrained: {loaded} from {config.model.pretrained} ({imported.source})")

    # Freezing marks parameters. Recalibration, the native kernels and the optimizer read the marks.
    classifier.freeze(config.model.freeze)

    # Synchronised norms take the places of BatchNorms, so they come before precision, which keeps norms in float32.
    if config.runtime.sync_norm and ranks.count > 1:
        synchronise_norms(classifier, ranks.count)
    scaler = set_precision(classifier, config.runtime)

    # All ranks start from the weights of the first rank, and the moving average starts from these.
    ranks.broadcast(classifier.get_parameters())
    average = MovingAverage(classifier, config.train.ema_decay) if config.train.ema_decay is not None else None

    # Validation looks for BatchNorm, so it comes before the native kernels, which compute BatchNorm in other cells.
    validation = Validation(config, classifier, train_samples, test_batches, ranks, average)
    use_kernels(classifier, config.runtime)
    return ReadyNetwork(classifier, config, scaler, average, validation, params, macs)


def with_epsilon(config: Config, epsilon: Optional[float]) -> Config:
    """Return a copy of the config with another `model.norm_epsilon`."""
    return config.model_copy(update={"model": config.model.model_copy(update={"norm_epsilon": epsilon})})
