"""What a training changes: the network, the step's state, the weights' moving average and the progress of the run."""

import itertools
import math
import time
from typing import Any, NoReturn, Optional

import mindspore as ms
import numpy as np

from src.config.schema import Config
from src.data.loading import Loader
from src.errors import Interrupted, UserError
from src.models.classifier import Classifier
from src.runs.folder import RunFolder
from src.runs.progress import Clock, Progress
from src.runs.state import RunState
from src.runtime.parallel import Ranks
from src.training.interrupts import Interrupts
from src.training.moving_average import MovingAverage
from src.training.step import TrainStep
from src.training.validation import Validation
from src.weights.checkpoint import Checkpoint, fill


class DivergedError(UserError):
    """The loss of a batch is not finite."""


class Trainer:
    """Trains epoch by epoch, and saves in the run folder everything that a run needs to be resumed."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        ranks: Ranks,
        interrupts: Interrupts,
        classes: list[str],
        classifier: Classifier,
        step: TrainStep,
        average: Optional[MovingAverage] = None,
    ) -> None:
        self.config, self.folder, self.ranks, self.classes = config, folder, ranks, classes
        self.interrupts = interrupts
        self.classifier, self.step, self.average = classifier, step, average
        self.state = RunState(ranks=ranks.count)

    def train_epoch(self, loader: Loader, rates: np.ndarray, progress: Progress) -> Clock:
        """Train on what is left of the current epoch and return its `Clock`.

        `rates` is the learning rate of each update of the epoch, float32. A loss that is not finite is a
        `DivergedError`.
        """
        state, step = self.state, self.step
        self.classifier.set_train(True)
        clock = Clock()
        batches = len(rates) * step.accumulate
        asked = time.perf_counter()
        for images, labels in itertools.islice(loader.epoch(state.epoch + 1, state.batch), batches - state.batch):
            arrived = time.perf_counter()
            self.interrupts.hold()
            rate = rates[state.batch // step.accumulate]
            warm = images.shape in step.shapes  # a new shape is compiled first, and its time is left out
            loss, logits = step(
                ms.Tensor(images), ms.Tensor(labels), ms.Tensor(rate), number=state.epoch * batches + state.batch
            )
            loss_sum, correct, count = self.sum_over_ranks(loss, logits, labels)
            if not math.isfinite(loss_sum):
                raise DivergedError(
                    f"the loss became {loss_sum} in epoch {state.epoch + 1}, step {state.batch + 1}, "
                    f"at learning rate {rate:.4g}; a smaller optimizer.lr or a longer schedule.warmup_epochs may help"
                )
            state.batch += 1
            state.loss_sum += loss_sum
            state.correct += correct
            state.images += count
            done = time.perf_counter()
            state.epoch_seconds += done - asked
            if warm:
                clock.add(Clock(count, done - asked, arrived - asked))
            if state.batch % step.accumulate == 0:
                state.updates += 1
                if self.average is not None:
                    self.average.update(state.updates)
                if state.batch < batches:
                    self.save_if_due()
                self.interrupts.release()
            asked = done
            progress.step(state.loss_sum / state.images, rate, clock)
        return clock

    def sum_over_ranks(self, loss: ms.Tensor, logits: ms.Tensor, labels: np.ndarray) -> tuple[float, int, int]:
        """Return the sum of the losses, the hits and the number of images of one batch on all ranks."""
        hits = (logits.asnumpy().argmax(1) == labels).sum()
        loss_sum, correct, count = self.ranks.sum(
            np.array([float(loss.asnumpy()) * len(labels), hits, len(labels)], np.float64)
        )
        return loss_sum, int(correct), int(count)

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from the state that the `checkpoint` holds."""
        fill(self.classifier.parameters_dict(), checkpoint.weights, checkpoint.path)
        self.step.load(checkpoint.optimizer, checkpoint.path)
        if self.average is not None:
            self.average.load(checkpoint.average)
        state = RunState(**(checkpoint.state or {}))
        # With other ranks a batch has another size: a few images may be seen twice, but every image is seen.
        every = self.step.accumulate
        state.batch = state.batch * state.ranks // self.ranks.count // every * every
        state.ranks = self.ranks.count
        self.state = state

    def save(self) -> None:
        """Write the state that the run can be resumed from."""
        if self.ranks.is_first:
            self.folder.save_state(
                self.state,
                self.config.checkpoint.keep_last,
                weights=self.classifier.parameters_dict(),
                average=self.average.values if self.average is not None else None,
                optimizer=self.step.state,
                config=self.config,
                classes=self.classes,
            )

    def save_if_due(self) -> None:
        """Write the state where `checkpoint.every_steps` asks for it."""
        every = self.config.checkpoint.every_steps
        if every is not None and self.state.updates % every == 0:
            self.save()

    def roll_back(self, problem: DivergedError) -> None:
        """Return to the last state whose weights are numbers, with a smaller learning rate.

        Where `train.on_nonfinite` does not want that, or too often did, the `problem` is raised.
        """
        train, rollbacks, factor = self.config.train, self.state.rollbacks, self.state.rate_factor
        found = self.folder.newest_state(is_finite) if train.on_nonfinite == "rollback" else None
        if found is None or rollbacks == train.max_rollbacks:
            raise problem
        self.load(found)
        self.state.rollbacks, self.state.rate_factor = rollbacks + 1, factor * train.rollback_factor
        print(
            f"{problem}: back to epoch {self.state.epoch + 1}, step {self.state.batch}, with "
            f"{self.state.rate_factor:.3g} of the learning rate",
            flush=True,
        )
        self.interrupts.release()

    def is_over(self) -> bool:
        """Tell whether all epochs are done, or early stopping (`train.patience`) ends the training."""
        state, patience = self.state, self.config.train.patience
        stale = patience is not None and state.best is not None and state.epoch - state.best["epoch"] >= patience
        return state.epoch >= self.config.train.epochs or stale

    def end_epoch(self, validation: Validation, rates: np.ndarray, clock: Clock) -> dict[str, Any]:
        """Evaluate the weights, keep them if they are among the best, and write the record; return metrics.csv's row.

        `rates` are the epoch's learning rates, `clock` is its `Clock`.
        """
        state, began = self.state, time.perf_counter()
        result, shipped, tested = validation()
        self.interrupts.hold()
        state.epoch += 1
        row = {
            "epoch": state.epoch,
            "lr": float(rates[-1]),
            "train_loss": state.loss_sum / state.images,
            "train_top1": state.correct / state.images,
            **tested,
            "images_per_second": clock.images_per_second,
            "data_wait_fraction": clock.data_wait_fraction,
            "seconds": state.epoch_seconds + time.perf_counter() - began,
        }
        state.rows.append(row)
        state.seconds += row["seconds"]
        total = Clock(**state.clock)
        total.add(clock)
        state.clock = vars(total)
        state.begin_epoch()
        final = {"epoch": state.epoch, "top1": result.top1, "top5": result.top5, "loss": result.loss}
        state.rank(final, self.config.checkpoint.metric, self.config.checkpoint.keep_best)
        if self.ranks.is_first:
            self.save_best(final, shipped)
            self.save()
            self.folder.log_epoch(state, rates, result.confusion)
        self.interrupts.release()
        return row

    def leave(self) -> NoReturn:
        """Save the state after Ctrl-C or SIGTERM, and end the process."""
        # In the middle of a step the state says less than the weights hold; an earlier state is on the disk.
        if not self.interrupts.holding:
            self.save()
        raise Interrupted(f"interrupted; go on with: python train.py --resume {self.folder.path}") from None

    def save_best(self, result: dict[str, Any], shipped: dict[str, np.ndarray]) -> None:
        averaged = self.average is not None
        self.folder.save_best(
            self.state,
            result,
            weights=self.classifier.parameters_dict() if averaged else shipped,
            average=shipped if averaged else None,
            config=self.config,
            classes=self.classes,
        )

    def summary(self, params: int, macs: int) -> dict[str, Any]:
        """Return the content of summary.json."""
        state, total = self.state, Clock(**self.state.clock)
        kind = "test" if self.average is None else "average"
        last = state.rows[-1]
        return {
            "best": state.best,
            "final": {"epoch": last["epoch"], **{key: last[f"{kind}_{key}"] for key in ("top1", "top5", "loss")}},
            "params": params,
            "macs": macs,
            "images_per_second": total.images_per_second,
            "data_wait_fraction": total.data_wait_fraction,
            "seconds": state.seconds,
        }


def is_finite(checkpoint: Checkpoint) -> bool:
    """Say whether all weights of a checkpoint are numbers."""
    return all(np.isfinite(value.asnumpy()).all() for value in checkpoint.weights.values())
