"""Going on with a run that ended early."""

from pathlib import Path

from src.config import load_config
from src.engine.run_folder import CHECKPOINTS, CONFIG, RunFolder
from src.errors import UserError

AUTO = "auto"
# What may be another when a run goes on: how long it is, where it is, and what it writes when.
FREE_KEYS = (
    "run.dir",
    "data.root",
    "checkpoint.every_steps",
    "checkpoint.keep_last",
    "checkpoint.keep_best",
    "log.tensorboard",
)


def open_run(args):
    """Return (config, `RunFolder`, whether to resume) as train.py's arguments say.

    A run that would be lost, or is not there to be resumed, is a `UserError`.
    """
    if args.resume and args.overwrite:
        raise UserError("--resume: cannot be used with --overwrite")
    if args.resume in (None, AUTO):
        if args.config is None:
            raise UserError("--config: is needed, the YAML file of settings")
        config = load_config(args.config, args.overrides)
        folder = RunFolder(config.run.dir)
        if args.resume == AUTO:
            return config, folder, (folder.path / CONFIG).exists()
        present = folder.holds_run()
        if present and not args.overwrite:
            raise UserError(
                f"run.dir: {folder.path} already holds a run ({present}); go on with it by --resume {folder.path}, "
                "give another run.dir=…, or --overwrite"
            )
        return config, folder, False
    folder = RunFolder(args.resume)
    if not (folder.path / CONFIG).is_file():
        raise UserError(f"--resume: {folder.path} holds no run: {CONFIG} is missing")
    path = Path(args.config) if args.config else folder.path / CONFIG
    return load_config(path, [*args.overrides, f"run.dir={folder.path}"]), folder, True


def refuse_changes(before, now):
    """Raise a `UserError` that names the first setting, of two configs, that a run cannot go on with."""
    if now.model.pretrained is not None and now.model.norm_epsilon is None:
        now.model.norm_epsilon = before.model.norm_epsilon  # as the pretrained weights had it
    old, new = before.model_dump(), now.model_dump()
    for section, settings in new.items():
        for name, value in settings.items():
            key, was = f"{section}.{name}", old[section][name]
            if key == "train.epochs" and value < was:
                raise UserError(f"{key}: {value} is fewer than the {was} that the run was begun with")
            if value != was and key not in (*FREE_KEYS, "train.epochs"):
                raise UserError(f"{key}: {value} differs from the run's, {was}, which cannot be changed on resuming")


def state_to_resume(folder, config):
    """Return (path, `Checkpoint`) of the state to go on from, or None where the run was ended before its first one.

    Settings that differ from the run's, or states that are all damaged, are a `UserError`.
    """
    found = folder.newest_state()
    if found:
        refuse_changes(found[1].config, config)
        print(f"resuming from {found[0]}", flush=True)
    elif folder.states():
        raise UserError(
            f"--resume: none of the states in {folder.path / CHECKPOINTS} can be read; --overwrite begins anew"
        )
    return found
