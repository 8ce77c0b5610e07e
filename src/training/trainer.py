"""The trainer: it changes the weights, the optimizer's state, the moving average and the progress of a run."""

import itertools
import math
import time
from typing import Any, NoReturn, Optional

import mindspore as ms
import numpy as np

from src import script
from src.config.schema import Config, resolved
from src.data.loading import Loader
from src.errors import Interrupted, UserError
from src.models.classifier import Classifier
from src.runs.folder import RunFolder
from src.runs.progress import Clock, Progress
from src.runs.resume import from_first
from src.runs.state import RunState
from src.runtime.parallel import Ranks
from src.runtime.setter import Setter
from src.training.interrupts import Interrupts, PolledInterrupt
from src.training.moving_average import MovingAverage
from src.training.step import TrainStep
from src.training.validation import Validation
from src.training.window import Window
from src.weights.checkpoint import Checkpoint, matching


class DivergedError(UserError):
    """The loss of a training batch, or of the test images, is not finite."""

    def __init__(self, loss: str, moment: str, rate: float) -> None:
        """`loss` is the name and the value of the loss, `rate` the learning rate at this `moment`."""
        super().__init__(
            f"the {loss} {moment}, at learning rate {rate:.4g}; a smaller optimizer.lr or a longer "
            "schedule.warmup_epochs may help"
        )


class Trainer:
    """Trains epoch by epoch, and saves to the run folder everything that is needed to resume the run."""

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
        self.window = Window(config.log.every_steps)

    def train_epoch(self, loader: Loader, rates: np.ndarray, progress: Progress) -> Clock:
        """Train on the remaining batches of the current epoch and return the `Clock` of them.

        `rates` has the learning rate of each update of the epoch, float32. A loss that is not finite raises a
        `DivergedError`. The host starts a step while the device works on earlier steps. It waits for the device only to
        fetch results and to save a state.
        """
        state, step, window = self.state, self.step, self.window
        self.classifier.set_train(True)
        self.rates = rates
        batches = len(rates) * step.accumulate
        step.begin(rates, state.epoch, state.batch)
        if self.average is not None:
            self.average.begin(state.updates, len(rates) - state.batch // step.accumulate)
        window.begin(loader.batch_size * self.ranks.count)
        asked = time.perf_counter()
        for images, labels in itertools.islice(loader.epoch(state.epoch + 1, state.batch), batches - state.batch):
            window.add(time.perf_counter() - asked)
            self.interrupts.hold()
            compiles = images.shape not in step.shapes
            step(ms.Tensor.from_numpy(images), ms.Tensor.from_numpy(labels))
            state.batch += 1
            is_update = state.batch % step.accumulate == 0
            if is_update:
                state.updates += 1
                if self.average is not None:
                    self.average.update()
            saves = is_update and state.batch < batches and self.is_save_due()
            if window.is_full or compiles or saves or state.batch == batches:
                self.fetch(compiles)
                window.choose_size(self.ranks)
                rate = rates[(state.batch - 1) // step.accumulate]
                progress.show(state.batch, state.loss_sum / state.images, rate, window.clock)
            if saves:
                self.save()
            if is_update:
                self.interrupts.release()
            asked = time.perf_counter()
        return window.clock

    def fetch(self, compiled: bool = False) -> None:
        """Add the results of the steps since the last call to the state; this waits for the device.

        The time of a step that `compiled` is not part of the speed.
        """
        state, window, first = self.state, self.window, self.step.fetched
        for number, (loss, hits) in enumerate(self.step.results(), first):
            if not math.isfinite(loss):
                moment = f"in epoch {state.epoch + 1}, step {number + 1}"
                raise DivergedError(f"loss became {loss}", moment, self.rates[number // self.step.accumulate])
            state.loss_sum += loss * window.images
            state.correct += int(hits)
            state.images += window.images
        state.epoch_seconds += window.close(compiled)

    def load(self, checkpoint: Checkpoint) -> None:
        """Set the weights, the optimizer, the moving average and the progress to the state in the `checkpoint`."""
        weights = self.classifier.parameters_dict()
        Setter(weights.values())(matching(weights, checkpoint.weights, checkpoint.path))
        self.step.load(checkpoint.optimizer, checkpoint.path)
        if self.average is not None:
            self.average.load(checkpoint.average)
        state = RunState(**(checkpoint.state or {}))
        # Another number of ranks changes the images per step. The batch number is rounded down to an update, so some
        # images may be seen twice in this epoch, but no image is left out.
        every = self.step.accumulate
        state.batch = state.batch * state.ranks // self.ranks.count // every * every
        state.ranks = self.ranks.count
        self.state = state

    def save(self) -> None:
        """Write the state from which the run can be resumed."""
        if self.window.steps:
            self.fetch()
        if self.ranks.is_first:
            self.folder.save_state(
                self.state,
                self.config.checkpoint.keep_last,
                weights=self.classifier.parameters_dict(),
                average=self.average.values() if self.average is not None else None,
                optimizer=self.step.state,
                config=self.config,
                classes=self.classes,
            )

    def is_save_due(self) -> bool:
        """Return whether `checkpoint.every_steps` asks for a state after this update."""
        every = self.config.checkpoint.every_steps
        return every is not None and self.state.updates % every == 0

    def roll_back(self, problem: DivergedError) -> None:
        """Load the newest state whose weights are finite, and reduce the learning rate.

        Raise the `problem` instead if `train.on_nonfinite` is `error`, if no such state exists, or if
        `train.max_rollbacks` is reached.
        """
        train, rollbacks, factor = self.config.train, self.state.rollbacks, self.state.rate_factor
        if train.on_nonfinite != "rollback" or rollbacks == train.max_rollbacks:
            raise problem
        found = from_first(lambda: self.folder.newest_state(is_finite), self.ranks)
        if found is None:
            raise problem
        self.load(found)
        self.state.rollbacks, self.state.rate_factor = rollbacks + 1, factor * resolved(train.rollback_factor)
        print(
            f"{problem}; returned to epoch {self.state.epoch + 1}, step {self.state.batch}, "
            f"and the learning rate is now multiplied by {self.state.rate_factor:.3g}",
            flush=True,
        )
        self.interrupts.release()

    def is_over(self) -> bool:
        """Return whether all epochs are done, or early stopping (`train.patience`) ends the training."""
        state, patience = self.state, self.config.train.patience
        stale = patience is not None and state.best is not None and state.epoch - state.best["epoch"] >= patience
        return state.epoch >= self.config.train.epochs or stale

    def end_epoch(self, validation: Validation, rates: np.ndarray, clock: Clock) -> dict[str, Any]:
        """Evaluate the weights, save them if they are among the best, and log the epoch; return the row of metrics.csv.

        `rates` are the learning rates of the epoch, `clock` is the result of `train_epoch`. A test loss that is not
        finite raises a `DivergedError`.
        """
        state, began = self.state, time.perf_counter()
        # The evaluation changes weights and statistics for a while, so a signal acts only at a call of `poll`.
        self.interrupts.hold()
        try:
            result, shipped, tested = validation(self.interrupts.poll)
        except PolledInterrupt:
            self.interrupts.holding = False  # training's weights and statistics are in place again
            raise
        for name in ("test_loss", "average_loss"):
            loss = tested.get(name, 0.0)
            if not math.isfinite(loss):
                raise DivergedError(f"{name} became {loss}", f"after epoch {state.epoch + 1}", rates[-1])
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
        script.handle(script.interrupt)  # A second signal, of an impatient user, does not disturb the saving.
        # In the middle of a step, the weights may be ahead of the state, so the state that was saved last is kept.
        if not self.interrupts.holding:
            self.save()
        raise Interrupted(f"interrupted; resume with: python train.py --resume {self.folder.path}") from None

    def save_best(self, result: dict[str, Any], shipped: dict[str, np.ndarray]) -> None:
        """Save the evaluated weights (`shipped`) if their `result` is among the best."""
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
    """Return whether all weights of a checkpoint are finite."""
    return all(np.isfinite(value.asnumpy()).all() for value in checkpoint.weights.values())
