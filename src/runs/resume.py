"""Resuming a run that ended early."""

from typing import Optional

from src.config.schema import Config
from src.errors import UserError
from src.runs.folder import CHECKPOINTS, CONFIG, RunFolder
from src.weights.checkpoint import Checkpoint

AUTO = "auto"
# The settings that may change when a run is resumed; train.epochs may grow. They do not change what is computed.
FREE_KEYS = (
    "run.dir",
    "data.root",
    "checkpoint.every_steps",
    "checkpoint.keep_last",
    "checkpoint.keep_best",
    "log.tensorboard",
)


def open_run(config: Config, resume: Optional[str], overwrite: bool) -> tuple[RunFolder, bool]:
    """Return the folder of the run, and whether to resume the run that is in it.

    `resume` and `overwrite` are train.py's options. A run that would be overwritten is a `UserError`.
    """
    folder = RunFolder(config.run.dir)
    if resume == AUTO:
        return folder, (folder.path / CONFIG).exists()
    if resume is not None:
        return folder, True
    present = folder.holds_run()
    if present and not overwrite:
        raise UserError(
            f"run.dir: {folder.path} already holds a run ({present}); go on with it by --resume {folder.path}, "
            "give another run.dir=…, or --overwrite"
        )
    return folder, False


def refuse_changes(before: Config, now: Config) -> None:
    """Raise a `UserError` that names the first setting, of two configs, with which a run cannot be resumed."""
    old, new = before.model_dump(), now.model_dump()
    if now.model.pretrained is not None and now.model.norm_epsilon is None:
        # The run's config has the epsilon that its pretrained weights brought; the user's says nothing of it.
        new["model"]["norm_epsilon"] = before.model.norm_epsilon
    for section, settings in new.items():
        for name, value in settings.items():
            key, was = f"{section}.{name}", old[section][name]
            if key == "train.epochs" and value < was:
                raise UserError(f"{key}: {value} is fewer than the {was} that the run was begun with")
            if value != was and key not in (*FREE_KEYS, "train.epochs"):
                raise UserError(f"{key}: {value} differs from the run's, {was}, which cannot be changed on resuming")


def state_to_resume(folder: RunFolder, config: Config) -> Optional[Checkpoint]:
    """Return the state to resume from, or None where the run ended before it saved a state.

    Settings that differ from the run's, and states that are all damaged, are a `UserError`.
    """
    found = folder.newest_state()
    if found:
        refuse_changes(found.config, config)
        print(f"resuming from {found.path}", flush=True)
    elif folder.states():
        raise UserError(
            f"--resume: none of the states in {folder.path / CHECKPOINTS} can be read; --overwrite begins anew"
        )
    return found
