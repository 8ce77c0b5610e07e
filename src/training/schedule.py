"""The learning rate schedule: the learning rate of every update depends on the config and the update's number only."""

from typing import Any

import numpy as np

from src.config.schema import Config
from src.errors import UserError

MOST_UPDATES = 50_000_000  # their learning rates take 2 GB while they are computed


def learning_rates(config: Config, steps_per_epoch: int, ranks: int = 1) -> np.ndarray:
    """Return the learning rate of every update of the run, float32 (epochs * steps_per_epoch).

    steps_per_epoch: updates per epoch; with gradient accumulation an epoch has more batches than updates. With
    `optimizer.lr_batch`, all learning rates are multiplied by (images per update on all `ranks`) / lr_batch: Goyal et
    al., Accurate, Large Minibatch SGD, section 2.1. More updates than MOST_UPDATES are a `UserError`.
    """
    settings: Any = config.schedule  # the schema has filled in the keys that the schedule uses
    peak: Any = config.optimizer.lr
    updates = config.train.epochs * steps_per_epoch
    if updates > MOST_UPDATES:
        raise UserError(
            f"train.epochs: too many updates of the weights (found {updates:,}, expected at most {MOST_UPDATES:,}); "
            "choose fewer epochs or larger batches"
        )
    steps = np.arange(config.train.epochs * steps_per_epoch)
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), len(steps))
    after = np.maximum(steps - warmup, 0)
    progress = after / max(len(steps) - warmup, 1)
    epochs = (
        steps + 1e-6
    ) / steps_per_epoch  # since the start of the run; 1e-6 corrects rounding, as in 2.4 epochs of 5 steps
    if settings.name == "cosine":
        rates = settings.end_lr + (peak - settings.end_lr) * falling_cosine(progress)
    elif settings.name == "linear":
        rates = settings.end_lr + (peak - settings.end_lr) * (1 - progress)
    elif settings.name == "polynomial":
        rates = settings.end_lr + (peak - settings.end_lr) * (1 - progress) ** settings.power
    elif settings.name == "constant":
        rates = np.full(len(steps), peak)
    elif settings.name == "step":
        rates = peak * settings.gamma ** (epochs // settings.step_epochs)
    elif settings.name == "multistep":
        rates = peak * settings.gamma ** np.searchsorted(settings.milestones, epochs, side="right")
    elif settings.name == "exponential":
        rates = peak * settings.gamma ** (after / steps_per_epoch / settings.decay_epochs)
    else:
        rates = one_cycle(peak, steps, settings.rise, settings.initial_divisor, settings.final_divisor)
    rates = np.where(steps < warmup, peak * (steps + 1) / max(warmup, 1), rates)
    return (rates * batch_factor(config, ranks)).astype(np.float32)


def falling_cosine(progress: np.ndarray) -> np.ndarray:
    """Return half a period of a cosine: 1 at `progress` 0, falling to 0 at `progress` 1."""
    return 0.5 * (1 + np.cos(np.pi * progress))


def one_cycle(peak: float, steps: np.ndarray, rise: float, initial_divisor: float, final_divisor: float) -> np.ndarray:
    """Return learning rates that rise from peak / initial_divisor to the peak and fall to the first / final_divisor.

    Both parts follow a cosine; the rising part takes the fraction `rise` of the `steps`. Smith and Topin,
    Super-Convergence, in the form of PyTorch's OneCycleLR with anneal_strategy="cos".
    """
    first, last_step = peak / initial_divisor, max(len(steps) - 1, 1)
    last = first / final_divisor
    top = np.clip(rise * len(steps) - 1, 0, last_step)
    rising = peak + (first - peak) * falling_cosine(np.minimum(steps / max(top, 1e-9), 1))
    falling = last + (peak - last) * falling_cosine(np.maximum(steps - top, 0) / max(last_step - top, 1e-9))
    return np.where(steps < top, rising, falling)


def batch_factor(config: Config, ranks: int) -> float:
    """Return the factor of all learning rates: images per update / `optimizer.lr_batch`, or 1 if that is null."""
    train, lr_batch = config.train, config.optimizer.lr_batch
    return 1.0 if lr_batch is None else train.batch_size * train.accumulate * ranks / lr_batch
