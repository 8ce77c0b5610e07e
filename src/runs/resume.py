"""Resume a run that ended early.

The ranks of a run may be on several machines, and only the first rank has the run folder. So the first rank alone reads
it, and sends what it found to the other ranks. Its errors end all ranks.
"""

import json
import os
from pathlib import Path
from typing import Any, Callable, Optional

import mindspore as ms
import numpy as np
from safetensors.numpy import load, save

from src.config.load import load_config, make_config
from src.config.schema import Config
from src.data.datasets import inputs_of
from src.data.loading import Loader, workers_of
from src.errors import UserError
from src.files import write_text
from src.outputs import CHECKPOINTS, CONFIG, MARK, is_run, located, refuse_input, refuse_place, run_of
from src.runs.folder import RunFolder
from src.runtime.parallel import Ranks
from src.weights.checkpoint import Checkpoint

AUTO = "auto"
FIRST_STATE = "state-00000-0000000.ckpt"  # the name of the state at the start of a run
DESCRIPTION = "description"  # name of the entry, beside the tensors, that has the rest of a `Checkpoint` as JSON
TENSORS = ("weights", "average", "optimizer")  # the parts of a `Checkpoint` that are tensors
# The settings that may change when a run is resumed; they do not change what is computed. train.epochs may increase.
FREE_KEYS = (
    "run.dir",
    "data.root",
    "data.workers",  # `refuse_workers` looks at it
    "checkpoint.every_steps",
    "checkpoint.keep_last",
    "checkpoint.keep_best",
    "log.tensorboard",
    "log.every_steps",
    "runtime.device_id",
    "runtime.memory_limit",
)


def open_run(
    config: Config, resume: Optional[str], overwrite: bool, ranks: Ranks
) -> tuple[RunFolder, Optional[Checkpoint]]:
    """Return the folder of the run, and the state to resume it from; None: a run starts at epoch 1.

    `resume` and `overwrite` are options of train.py. If anything would be lost, if a setting differs from the run's, or
    if all states are damaged, a `UserError` is raised.
    """
    folder = RunFolder(config.run.dir, overwrite)

    def find() -> Optional[Checkpoint]:
        if resume is not None and folder.contents():
            return state_to_resume(folder, config)
        refuse_place(f"run.dir: {folder.path}", located(folder.path / CONFIG))
        folder.refuse_contents()
        refuse_inputs(folder, config)
        return None

    return folder, from_first(find, ranks)


def refuse_inputs(folder: RunFolder, config: Config) -> None:
    """Raise a `UserError` if a run that starts in `folder` replaces what it reads, or is inside of images or a run."""
    if (outer := run_of(located(folder.path))) is not None:
        raise UserError(f"run.dir: {folder.path} is part of the run in {outer}; choose another run.dir=…")
    for key, value in (
        ("model.pretrained", config.model.pretrained),
        ("distill.teacher", config.distill.teacher),
        ("distill.pretrained", config.distill.pretrained),
    ):
        if value is not None and run_of(located(value)) == located(folder.path):
            raise UserError(
                f"{key}: {value} is a file of the run that --overwrite replaces; copy it to another folder, or choose "
                "another run.dir=…"
            )
    refuse_input(f"run.dir {folder.path}", located(folder.path), inputs_of(config.data))


def from_first(find: Callable[[], Optional[Checkpoint]], ranks: Ranks) -> Optional[Checkpoint]:
    """Return on every rank the checkpoint that `find` returns on the first rank; the other ranks do not call it."""
    if ranks.count == 1:
        return find()
    found: Optional[Checkpoint] = None

    def content() -> bytes:
        nonlocal found
        found = find()
        return b"" if found is None else pack(found)

    sent = ranks.from_first(content)
    return found if ranks.is_first or not sent else unpack(sent)


def pack(checkpoint: Checkpoint) -> bytes:
    """Return a checkpoint as bytes in the format safetensors, from which `unpack` makes it again."""
    described = {name: value for name, value in vars(checkpoint).items() if name not in TENSORS}
    described.update(path=str(checkpoint.path), config=checkpoint.config.model_dump())
    arrays = {DESCRIPTION: np.frombuffer(json.dumps(described).encode(), np.uint8)}
    for part in TENSORS:
        for name, value in getattr(checkpoint, part).items():
            arrays[f"{part}.{name}"] = value.asnumpy()
    return save(arrays)


def unpack(content: bytes) -> Checkpoint:
    """Return the checkpoint that `pack` has made into bytes; its tensors are `Tensor`s in place of `Parameter`s."""
    arrays = load(content)
    described: dict[str, Any] = json.loads(arrays.pop(DESCRIPTION).tobytes())
    path = Path(described.pop("path"))
    parts: dict[str, Any] = {part: {} for part in TENSORS}
    for key, value in arrays.items():
        part, _, name = key.partition(".")
        parts[part][name] = ms.Tensor(value)
    return Checkpoint(path=path, config=make_config(described.pop("config"), source=path), **described, **parts)


def refuse_changes(before: Config, now: Config) -> None:
    """Raise a `UserError` that names the first setting whose change does not allow resuming.

    `before` is the config of the run, `now` is the config to resume it with.
    """
    old, new = before.model_dump(), now.model_dump()
    for key in ("norm_epsilon", "padding"):
        if now.model.pretrained is not None and new["model"][key] is None:
            # The run's config has what its pretrained weights need; the user's config does not set it.
            new["model"][key] = old["model"][key]
    for section, settings in new.items():
        for name, value in settings.items():
            key, was = f"{section}.{name}", old[section][name]
            if key == "train.epochs" and value < was:
                raise UserError(f"{key}: {value} is fewer than the {was} epochs that the run was started with")
            if value != was and key not in (*FREE_KEYS, "train.epochs"):
                raise UserError(f"{key}: {value} differs from the run's value {was}; resuming cannot change it")


def state_to_resume(folder: RunFolder, config: Config) -> Optional[Checkpoint]:
    """Return the state to resume from, or None if the run ended before it saved anything.

    If a setting differs from the run's, if all states are damaged, or if states are missing, a `UserError` is raised.
    """
    path = folder.path
    if folder.states():
        folder.open()
        found = folder.newest_state()
        if found is None:
            raise UserError(
                f"--resume: all states in {path / CHECKPOINTS} are damaged; put undamaged files there, choose another "
                "run.dir=…, or start again with --overwrite"
            )
        refuse_changes(found.config, config)
        if not (path / CONFIG).exists():
            write_text(MARK + found.config.to_yaml(), path / CONFIG)
        print(f"resuming from {found.path}", flush=True)
        return found
    if is_run(path) and not folder.results():
        folder.open()
        refuse_changes(load_config(path / CONFIG), config)
        print(f"{path} has no state yet, so its run starts at epoch 1", flush=True)
        return None
    found_names, advice = ", ".join(folder.contents()), "choose another run.dir=…"
    if is_run(path):
        advice = f"put its state-….ckpt back, {advice}, or start again with --overwrite"
        if "last.ckpt" in folder.contents():
            advice = f"copy its last.ckpt to {path / CHECKPOINTS / FIRST_STATE}, {advice}"
    raise UserError(
        f"--resume: {path / CHECKPOINTS} has no state to resume from (found in {path}: {found_names}); {advice}"
    )


def choose_workers(config: Config, resumed: Optional[Checkpoint], ranks: Ranks) -> int:
    """Return `data.workers`; if it is null, the number of the run that is resumed, else the default of this machine.

    The run's number is not taken if this machine has fewer cores, or if the run had another number of ranks.
    """
    sharing = ranks.sharing()  # all ranks call it together
    if config.data.workers is None and resumed is not None and same_ranks(resumed, ranks):
        number = resumed.config.data.workers
        if number is not None and number <= (os.cpu_count() or 1):
            return number
    return workers_of(config.data, sharing)


def refuse_workers(resumed: Checkpoint, loader: Loader, ranks: Ranks) -> None:
    """Raise a `UserError` if the number of workers of the training `loader` would change the images of a resumed run.

    With another number of ranks the images change anyway, so any number of workers is allowed.
    """
    was, cores = resumed.config.data.workers, os.cpu_count() or 1

    def check() -> bytes:
        if was is None or was == loader.workers or not loader.depends_on_workers or not same_ranks(resumed, ranks):
            return b""
        advice = f"pass data.workers={was}"
        if was > cores:
            advice = f"resume on a machine with at least {was} cores (found {cores}), or with another number of ranks"
        raise UserError(
            f"data.workers: {loader.workers} differs from the run's value {was}, and the random augmentation of these "
            f"images depends on it; {advice}"
        )

    ranks.from_first(check)


def same_ranks(resumed: Checkpoint, ranks: Ranks) -> bool:
    """Return whether a run is resumed with the number of ranks that saved the state."""
    return resumed.state is not None and resumed.state["ranks"] == ranks.count
