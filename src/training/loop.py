"""The training loop: it trains an epoch, evaluates it, and repeats until the training is over."""

import contextlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from src.data.loading import Loader
from src.runs.progress import Progress
from src.training.trainer import DivergedError, Trainer
from src.training.validation import Validation

Stage = TypeVar("Stage")


def fit(trainer: Trainer, loaders: Sequence[Loader], rates: np.ndarray, validation: Validation) -> None:
    """Train until all epochs are done, or early stopping ends the training.

    `loaders` has one loader for each stage of progressive resizing, usually a single loader. `rates` are the learning
    rates, float32 (epochs, updates per epoch). A loss that is not finite ends the training with a `DivergedError`, or
    rolls it back if `train.on_nonfinite` is `rollback`. Ctrl-C and SIGTERM save the state and end the process.
    """
    epochs = len(rates)
    with contextlib.closing(Progress(epochs, len(loaders[0]))) as progress:
        try:
            while not trainer.is_over():
                epoch = trainer.state.epoch
                progress.start_epoch(epoch + 1, trainer.state.batch)
                epoch_rates = rates[epoch] * np.float32(trainer.state.rate_factor)
                try:
                    clock = trainer.train_epoch(stage_of(epoch, epochs, loaders), epoch_rates, progress)
                    progress.end_epoch(trainer.end_epoch(validation, epoch_rates, clock))
                except DivergedError as problem:
                    trainer.roll_back(problem)
        except KeyboardInterrupt:
            trainer.leave()


def stage_of(epoch: int, epochs: int, stages: Sequence[Stage]) -> Stage:
    """Return the stage of an epoch, counted from 0; all stages have the same number of `epochs`, up to rounding."""
    return stages[epoch * len(stages) // epochs]
