"""What a training changes: the network, the optimizer's state, the weights' average and the run's progress."""

import time

import numpy as np

from src.engine.checkpoint import fill
from src.engine.fit import Clock
from src.engine.run_folder import RunState
from src.errors import Interrupted


class Training:
    """Everything that has to be saved for a run to go on, and its place in the run folder.

    `scaler` is a `mindspore.amp.LossScaler` or None, `average` a `MovingAverage` or None.
    """

    def __init__(self, config, folder, ranks, interrupts, classes, classifier, optimizer, average=None, scaler=None):
        self.config, self.folder, self.ranks, self.classes = config, folder, ranks, classes
        self.interrupts = interrupts
        self.classifier, self.average = classifier, average
        self.tensors = {parameter.name: parameter for parameter in optimizer.state}
        if scaler is not None:
            self.tensors.update({parameter.name: parameter for parameter in (scaler.scale_value, scaler.counter)})
        self.state = RunState(ranks=ranks.count)

    def load(self, path, checkpoint):
        """Go on from the state that the `checkpoint` at `path` holds."""
        fill(self.classifier.get_parameters(), checkpoint.weights, path)
        fill(self.tensors.values(), checkpoint.optimizer, path)
        if self.average is not None:
            self.average.load(checkpoint.average)
        state = RunState(**checkpoint.state)
        # With other ranks a batch is of another size: a few images may be seen twice, none is left out.
        every = self.config.train.accumulate
        state.batch = state.batch * state.ranks // self.ranks.count // every * every
        state.ranks = self.ranks.count
        self.state = state

    def save(self):
        """Write the state to go on from."""
        if self.ranks.is_first:
            self.folder.save_state(
                self.state,
                self.config.checkpoint.keep_last,
                weights=self.classifier.parameters_dict(),
                average=self.average.values if self.average is not None else None,
                optimizer=self.tensors,
                config=self.config,
                classes=self.classes,
            )

    def save_if_due(self):
        """Write the state where `checkpoint.every_steps` asks for it."""
        every = self.config.checkpoint.every_steps
        if every is not None and self.state.updates % every == 0:
            self.save()

    def roll_back(self, problem):
        """Return to the last state whose weights are numbers, with a smaller learning rate.

        Where `train.on_nonfinite` does not want that, or too often did, the `problem` is raised.
        """
        train, rollbacks, factor = self.config.train, self.state.rollbacks, self.state.rate_factor
        found = self.folder.newest_state(is_finite) if train.on_nonfinite == "rollback" else None
        if found is None or rollbacks == train.max_rollbacks:
            raise problem
        self.load(*found)
        self.state.rollbacks, self.state.rate_factor = rollbacks + 1, factor * train.rollback_factor
        print(
            f"{problem}: back to epoch {self.state.epoch + 1}, step {self.state.batch}, with "
            f"{self.state.rate_factor:.3g} of the learning rate",
            flush=True,
        )
        self.interrupts.release()

    def is_over(self):
        """Say whether all epochs are done, or no better one has come for too long."""
        state, patience = self.state, self.config.train.patience
        stale = patience is not None and state.best is not None and state.epoch - state.best["epoch"] >= patience
        return state.epoch >= self.config.train.epochs or stale

    def end_epoch(self, judge, rates, clock):
        """Evaluate the weights, keep them if they are among the best, and write the record; return metrics.csv's row.

        `rates` are the epoch's learning rates, `clock` is its `Clock`.
        """
        state, began = self.state, time.perf_counter()
        result, shipped, tested = judge()
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

    def leave(self):
        """Save what can be gone on with after Ctrl-C or SIGTERM, and end the process."""
        # In the middle of a step the state says less than the weights hold; an earlier one is on the disk.
        if not self.interrupts.holding:
            self.save()
        raise Interrupted(f"interrupted; go on with: python train.py --resume {self.folder.path}") from None

    def save_best(self, result, shipped):
        averaged = self.average is not None
        self.folder.save_best(
            self.state,
            result,
            weights=self.classifier.parameters_dict() if averaged else shipped,
            average=shipped if averaged else None,
            config=self.config,
            classes=self.classes,
        )

    def summary(self, params, macs):
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


def is_finite(checkpoint):
    """Say whether all weights of a checkpoint are numbers."""
    return all(np.isfinite(value.asnumpy()).all() for value in checkpoint.weights.values())
