"""Resume a run that ended early."""

from typing import Optional

from src.config.schema import Config
from src.errors import UserError
from src.runs.folder import CHECKPOINTS, CONFIG, RunFolder
from src.weights.checkpoint import Checkpoint

AUTO = "auto"
# The settings that may change when a run is resumed; they do not change what is computed. train.epochs may increase.
FREE_KEYS = (
    "run.dir",
    "data.root",
    "checkpoint.every_steps",
    "checkpoint.keep_last",
    "checkpoint.keep_best",
    "log.tensorboard",
)


def open_run(config: Config, resume: Optional[str], overwrite: bool) -> tuple[RunFolder, bool]:
    """Return the folder of the run, and whether to resume the run in it.

    `resume` and `overwrite` are options of train.py. If a run would be overwritten, a `UserError` is raised.
    """
    folder = RunFolder(config.run.dir)
    if resume == AUTO:
        return folder, (folder.path / CONFIG).exists()
    if resume is not None:
        return folder, True
    present = folder.holds_run()
    if present and not overwrite:
        raise UserError(
            f"run.dir: {folder.path} already contains a run (found {present}); resume it with --resume {folder.path}, "
            "choose another run.dir=…, or replace it with --overwrite"
        )
    return folder, False


def refuse_changes(before: Config, now: Config) -> None:
    """Raise a `UserError` that names the first setting whose change does not allow resuming.

    `before` is the config of the run, `now` is the config to resume it with.
    """
    old, new = before.model_dump(), now.model_dump()
    if now.model.pretrained is not None and now.model.norm_epsilon is None:
        # The run's config has the epsilon of its pretrained weights; the user's config does not set the epsilon.
        new["model"]["norm_epsilon"] = before.model.norm_epsilon
    for section, settings in new.items():
        for name, value in settings.items():
            key, was = f"{section}.{name}", old[section][name]
            if key == "train.epochs" and value < was:
                raise UserError(f"{key}: {value} is fewer than the {was} epochs that the run was started with")
            if value != was and key not in (*FREE_KEYS, "train.epochs"):
                raise UserError(f"{key}: {value} differs from the run's value {was}; resuming cannot change it")


def state_to_resume(folder: RunFolder, config: Config) -> Optional[Checkpoint]:
    """Return the state to resume from, or None if the run ended before it saved a state.

    If a setting differs from the run's, or if all states are damaged, a `UserError` is raised.
    """
    found = folder.newest_state()
    if found:
        refuse_changes(found.config, config)
        print(f"resuming from {found.path}", flush=True)
    elif folder.states():
        raise UserError(
            f"--resume: all states in {folder.path / CHECKPOINTS} are damaged; start again with --overwrite"
        )
    return found
