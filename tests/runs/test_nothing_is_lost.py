"""A run folder, or a folder that looks like a run folder: starting and resuming delete nothing that they may not."""

import os
import shutil

import numpy as np
import pytest

from src.config.load import make_config
from src.errors import UserError
from src.runs.folder import RunFolder
from src.runs.resume import open_run
from src.runs.state import RunState
from src.runtime.parallel import Ranks

CONFIG = make_config({"run": {"dir": "R"}})
RESULT = {"epoch": 1, "top1": 0.5, "top5": 1.0, "loss": 0.5}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run in the folder R, with a state, the weights of an epoch, metrics and events."""
    monkeypatch.chdir(tmp_path)
    folder = RunFolder("R")
    folder.start(CONFIG)
    content = {"weights": {"w": np.float32([1, 2])}, "config": CONFIG, "classes": ["a", "b"]}
    state = RunState(epoch=1, best=RESULT, ranking=[RESULT])
    folder.save_best(state, RESULT, **content)
    folder.save_state(state, 2, **content)
    for name in ("metrics.csv", "curves.png", "summary.json"):
        (folder.path / name).write_text(name)
    (folder.path / "events").mkdir()
    (folder.path / "events" / "events.out.tfevents.1").write_bytes(b"1")
    folder.lock.close()
    return folder.path


def remove(*names):
    def change(path):
        for name in names:
            shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()

    return change


def foreign(config):
    """Return a change that makes R the folder of another program, with the same names."""

    def change(path):
        shutil.rmtree(path)
        for name in (
            "checkpoints/epoch-00001.ckpt",
            "checkpoints/model.ckpt",
            "events/events.out.tfevents.7",
            "best.ckpt",
        ):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text("precious")
        if config is not None:
            (path / "config.yaml").write_text(config)

    return change


def nothing(path):
    pass


def before_the_mark(path):
    """Make the run look like a run of earlier code."""
    (path / "config.yaml").write_text(CONFIG.to_yaml())


def early_kill(path):
    """Leave what a run leaves that was killed before its first state."""
    remove("best.ckpt", "last.ckpt", "metrics.csv", "curves.png", "summary.json", "checkpoints/epoch-00001.ckpt")(path)
    remove("checkpoints/state-00001-0000000.ckpt")(path)
    (path / "checkpoints" / ".state-00001-0000000.ckpt.partial.ckpt").write_text("half")


def as_the_error_says(path):
    """Remove the state, and put the copy of it in its place."""
    remove(STATE)(path)
    shutil.copy(path / "last.ckpt", path / "checkpoints" / "state-00000-0000000.ckpt")


def blocked(path):
    remove("metrics.csv")(path)
    (path / "metrics.csv").mkdir()


def contents(path):
    return {
        str(file.relative_to(path)): file.read_bytes() if file.is_file() else None
        for file in path.rglob("*")
        if not file.name.startswith(".")
    }


STATE = "checkpoints/state-00001-0000000.ckpt"
GONE = "--resume: R/checkpoints has no state to resume from (found in R: "
NOT_OURS = "run.dir: R has files that may not be of a run (found "
OVERWRITE, AUTO, NAMED, PLAIN = {"overwrite": True}, {"resume": "auto"}, {"resume": "R"}, {}
HANDWRITTEN = "model: {name: x}\n"


@pytest.mark.parametrize(
    ("change", "options", "parts"),
    [
        (nothing, PLAIN, ["run.dir: R already contains a run (found config.yaml)", "--overwrite"]),
        (before_the_mark, PLAIN, ["run.dir: R already contains a run"]),
        (
            remove(STATE),
            NAMED,
            [GONE, "best.ckpt, last.ckpt", "put its state-….ckpt back", "start again with --overwrite"],
        ),
        (remove(STATE), AUTO, [GONE]),
        (remove("checkpoints"), NAMED, [GONE, "copy its last.ckpt to R/checkpoints/state-00000-0000000.ckpt"]),
        (remove("checkpoints", "last.ckpt"), AUTO, [GONE, "best.ckpt"]),
        (remove("checkpoints", "config.yaml"), AUTO, [GONE, "choose another run.dir=…"]),
        (remove("config.yaml"), PLAIN, [NOT_OURS]),
        (remove("config.yaml"), OVERWRITE, [NOT_OURS]),
        (foreign(None), AUTO, [GONE]),
        (foreign(None), PLAIN, [NOT_OURS]),
        (foreign(None), OVERWRITE, [NOT_OURS, "best.ckpt, checkpoints, events"]),
        (foreign(HANDWRITTEN), AUTO, [GONE, "config.yaml"]),
        (foreign(HANDWRITTEN), NAMED, [GONE]),
        (foreign(HANDWRITTEN), OVERWRITE, [NOT_OURS]),
        (foreign("\0\xff"), OVERWRITE, [NOT_OURS]),
        (foreign("a: &a [*a]\n"), OVERWRITE, [NOT_OURS]),
        (blocked, AUTO, ["run.dir: R/metrics.csv is in the way (expected a file)"]),
    ],
)
def test_no_start_deletes_anything_without_a_reason(run, change, options, parts):
    change(run)
    before = contents(run)
    with pytest.raises(UserError) as caught:
        open_run(CONFIG, options.get("resume"), options.get("overwrite", False), Ranks())
    assert all(part in str(caught.value) for part in parts)
    assert contents(run) == before


@pytest.mark.parametrize(
    "change", [nothing, before_the_mark, remove("config.yaml"), remove("best.ckpt", "last.ckpt"), as_the_error_says]
)
@pytest.mark.parametrize("options", [AUTO, NAMED])
def test_a_run_that_has_a_state_is_resumed_and_keeps_its_files(run, change, options):
    change(run)
    before = contents(run)
    _, state = open_run(CONFIG, options["resume"], False, Ranks())
    assert state.epoch == 1
    after = contents(run)
    assert {**after, **before} == after
    assert CONFIG.to_yaml() in after["config.yaml"].decode()


@pytest.mark.parametrize("options", [AUTO, NAMED])
def test_a_run_without_any_result_starts_in_its_folder_and_deletes_nothing(run, options):
    early_kill(run)
    before = contents(run)
    folder, state = open_run(CONFIG, options["resume"], False, Ranks())
    assert state is None
    folder.start(CONFIG)
    assert contents(run) == before
    folder.lock.close()
    with pytest.raises(UserError, match="train.seed: 1 differs from the run's value 0"):
        open_run(make_config({"train": {"seed": 1}, "run": {"dir": "R"}}), "auto", False, Ranks())


@pytest.mark.parametrize("change", [nothing, before_the_mark, remove(STATE), early_kill])
def test_overwriting_replaces_the_files_of_the_run_only(run, change):
    change(run)
    mine = ["notes.txt", "checkpoints/mine.ckpt", "checkpoints/state-mine.ckpt", "checkpoints/epoch-00001-copy.ckpt"]
    mine += [".notes.txt.partial", "events/plan.txt"]
    for name in mine:
        (run / name).write_text("mine")
    folder, state = open_run(CONFIG, None, True, Ranks())
    assert state is None
    folder.start(CONFIG)
    left = [str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()]
    assert sorted(left) == sorted([*mine, "config.yaml", "checkpoints/.lock"])


def test_a_run_keeps_the_users_files_among_its_checkpoints(run):
    folder = RunFolder(run)
    folder.open()
    for name in ("state-00001-backup.ckpt", "epoch-best.ckpt", ".thesis.partial"):
        (run / "checkpoints" / name).write_text("mine")
    content = {"weights": {"w": np.float32([1, 2])}, "config": CONFIG, "classes": ["a", "b"]}
    for epoch in (2, 3):
        result = {**RESULT, "epoch": epoch, "top1": 0.5 + epoch / 10}
        state = RunState(epoch=epoch, best=result, ranking=[result])
        folder.save_best(state, result, **content)
        folder.save_state(state, 1, **content)
    names = {file.name for file in (run / "checkpoints").iterdir()}
    assert names == {
        *("state-00003-0000000.ckpt", "state-00001-backup.ckpt", "epoch-00003.ckpt", "epoch-best.ckpt"),
        *(".lock", ".thesis.partial"),
    }


def test_the_lock_does_not_empty_the_file_that_it_is_a_link_to(run, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    (run / "checkpoints" / ".lock").unlink()
    os.symlink(tmp_path / "letter.txt", run / "checkpoints" / ".lock")
    RunFolder(run).open()
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_a_run_that_appears_after_the_check_is_not_replaced(run):
    shutil.move(run, "kept")
    folder, _ = open_run(CONFIG, None, False, Ranks())
    shutil.move("kept", run)
    before = contents(run)
    with pytest.raises(UserError, match="already contains a run"):
        folder.start(CONFIG)
    assert contents(run) == before


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"model": {"pretrained": "R/best.ckpt"}}, "model.pretrained: R/best.ckpt is a file of the run"),
        ({"distill": {"teacher": "R/checkpoints/epoch-00001.ckpt"}}, "distill.teacher: R/checkpoints/epoch-00001.ckpt"),
    ],
)
def test_a_run_that_is_read_is_not_overwritten(run, settings, part):
    before = contents(run)
    with pytest.raises(UserError, match=part):
        open_run(make_config({**settings, "run": {"dir": "R"}}), None, True, Ranks())
    assert contents(run) == before


@pytest.mark.parametrize("name", ["R/checkpoints", "R/events/x", "R/best.ckpt", "R/checkpoints/new/../y"])
def test_a_run_is_not_part_of_another_run(run, name):
    before = contents(run)
    with pytest.raises(UserError, match=r"is part of the run in|is not a folder"):
        open_run(make_config({"run": {"dir": name}}), None, True, Ranks())
    assert contents(run) == before


@pytest.mark.parametrize(
    ("folder", "part"),
    [
        ("photos/train/run", r"run.dir photos/train/run: is in a folder of inputs \(data.root, train: photos/train\)"),
        ("photos/val", "run.dir photos/val: is an input, data.root, val"),
        ("photos/train/china/0.jpg", "photos/train/china/0.jpg is not a folder"),
        ("photos/train/china/0.jpg/run", "photos/train/china/0.jpg is not a folder"),
    ],
)
def test_a_run_is_not_written_into_its_images(photos, tmp_path, monkeypatch, folder, part):
    monkeypatch.chdir(tmp_path)
    config = make_config({"data": {"name": "image_folder", "root": "photos"}, "run": {"dir": folder}})
    with pytest.raises(UserError, match=part):
        open_run(config, None, False, Ranks())
