"""What a run saves, when it ends, and how it is resumed."""

import json
import resource
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from src.config.load import make_config
from src.errors import UserError
from src.runs.folder import RunFolder
from src.runs.resume import refuse_changes
from src.runs.state import RunState
from src.runtime.parallel import Ranks
from src.training.interrupts import Interrupts
from src.training.loop import stage_of
from src.training.trainer import Trainer
from src.weights.checkpoint import load_checkpoint
from tests.conftest import ROOT, SMALL
from tests.stress.kill_and_resume import kill_and_compare

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
CONTENT = {"weights": {"w": np.float32([1, 2])}, "config": make_config({}), "classes": ["a", "b"]}


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open()
    return folder


def names(folder):
    return sorted(path.name for path in (folder.path / "checkpoints").glob("*.ckpt"))


def test_the_newest_states_are_kept(folder):
    for epoch, batch in [(0, 5), (1, 0), (1, 5), (2, 0)]:
        folder.save_state(RunState(epoch=epoch, batch=batch), keep=2, **CONTENT)
    assert names(folder) == ["state-00001-0000005.ckpt", "state-00002-0000000.ckpt"]
    assert load_checkpoint(folder.path / "last.ckpt").epoch == 2


@pytest.mark.parametrize(
    ("metric", "kept", "best"), [("top1", [2, 4, 5], 4), ("loss", [1, 3, 4], 1), ("top5", [3, 4, 5], 5)]
)
def test_the_best_epochs_are_kept(folder, metric, kept, best):
    state = RunState()
    results = [(0.5, 0.6, 0.1), (0.8, 0.6, 0.9), (0.6, 0.7, 0.3), (0.8, 0.7, 0.2), (0.7, 0.9, 0.8)]
    for epoch, (top1, top5, loss) in enumerate(results, 1):
        result = {"epoch": epoch, "top1": top1, "top5": top5, "loss": loss}
        state.rank(result, metric, 3)
        folder.save_best(state, result, **CONTENT)
    assert names(folder) == [f"epoch-0000{epoch}.ckpt" for epoch in kept]
    assert state.best["epoch"] == best
    assert load_checkpoint(folder.path / "best.ckpt").epoch == best


def test_a_damaged_state_is_reported_and_skipped(folder, capsys):
    for epoch in (1, 2, 3):
        folder.save_state(RunState(epoch=epoch), keep=3, **CONTENT)
    truncated, damaged, _ = folder.states()
    truncated.write_bytes(truncated.read_bytes()[:-40])
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(bytes(content))
    checkpoint = folder.newest_state()
    assert checkpoint.epoch == 1
    output = capsys.readouterr().out
    assert f"skipped: {truncated}: " in output
    assert f"skipped: {damaged}: " in output


def test_only_one_process_trains_in_a_folder(folder):
    with pytest.raises(UserError, match="run.dir: another process trains in"):
        RunFolder(folder.path).open()


def test_temporary_files_of_a_killed_process_are_removed(folder):
    (folder.path / ".metrics.csv.partial").write_text("epoch,")
    (folder.path / "checkpoints" / ".state-1.ckpt.partial.tmp").write_text("x")
    folder.lock.close()
    RunFolder(folder.path).open()
    assert [path.name for path in folder.path.rglob("*") if path.is_file()] == [".lock"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=0.2", "optimizer.lr: 0.2 differs from the run's value 0.1"),
        ("train.seed=3", "train.seed: 3 differs from the run's value 0"),
        ("train.epochs=29", "train.epochs: 29 is fewer than the 30"),
        ("model.width=0.5", "model.width: 0.5 differs"),
    ],
)
def test_a_changed_setting_is_an_error_that_names_it(override, message):
    before = make_config({})
    with pytest.raises(UserError) as caught:
        refuse_changes(before, make_config({}, [override]))
    assert message in str(caught.value)
    refuse_changes(before, make_config({}, ["train.epochs=40", "run.dir=x", "checkpoint.every_steps=5"]))


def test_settings_that_pretrained_weights_set_may_stay_null_when_a_run_is_resumed():
    settings = {"name": "mobilenet_v3_small", "pretrained": "w.ckpt"}
    before = make_config({"model": {**settings, "norm_epsilon": 1e-5, "padding": "same"}})
    refuse_changes(before, make_config({"model": settings}))
    with pytest.raises(UserError, match=r"model.padding: symmetric differs from the run's value same"):
        refuse_changes(before, make_config({"model": {**settings, "padding": "symmetric"}}))


@pytest.mark.parametrize(("epochs", "count"), [(7, 3), (6, 3), (5, 1), (3, 3)])
def test_stages_of_progressive_resizing_are_equally_long_and_in_order(epochs, count):
    stages = [stage_of(epoch, epochs, range(count)) for epoch in range(epochs)]
    assert stages == sorted(stages)
    lengths = np.bincount(stages, minlength=count)
    assert lengths.max() - lengths.min() <= 1


def test_early_stopping_ends_the_training():
    config = make_config({"train": {"epochs": 9, "patience": 3}})
    trainer = Trainer(config, None, Ranks(), None, [], None, SimpleNamespace(accumulate=1))
    losses = [0.9, 0.5, 0.6, 0.7, 0.5, 0.4, 0.4]
    over = []
    for epoch, loss in enumerate(losses, 1):
        trainer.state.rank({"epoch": epoch, "top1": 0.5, "top5": 1.0, "loss": loss}, "loss", 1)
        trainer.state.epoch = epoch
        over.append(trainer.is_over())
    assert over == [False, False, False, False, True, False, False]


def test_a_signal_waits_until_release():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        interrupts = Interrupts()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        interrupts = Interrupts()
        interrupts.hold()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupts.release()
        interrupts = Interrupts()
        interrupts.hold()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before):
            signal.signal(number, handler)


@pytest.mark.slow
def test_killed_runs_end_with_the_results_of_an_uninterrupted_run(tmp_path):
    counts = kill_and_compare(tmp_path, kills=4, mode="pynative", seed=1)
    assert counts["kills"] == 4
    assert counts["different"] == 0


@pytest.mark.slow
def test_a_finished_run_is_resumed_with_more_epochs(quickstart, script, mistake, tmp_path):
    _, run, _ = quickstart
    shutil.copytree(run, tmp_path / "run")
    assert "differs from the run's" in mistake("train.py", "--resume", "run", "train.batch_size=16", cwd=tmp_path)
    done = script("train.py", "--resume", "run", "train.epochs=4", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    state = load_checkpoint(tmp_path / "run" / "last.ckpt").state
    assert [row["epoch"] for row in state["rows"]] == [1, 2, 3, 4]
    before = json.loads((run / "summary.json").read_text())
    after = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert after["best"]["top1"] >= before["best"]["top1"]
    assert after["seconds"] > before["seconds"]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_or_is_rolled_back(script, tmp_path):
    fast = [
        "optimizer.lr=1e6",
        "schedule.name=constant",
        "schedule.warmup_epochs=0",
        "train.epochs=1",
        "runtime.mode=pynative",
    ]
    arguments = ["--config", QUICKSTART, *SMALL, *fast, "model.name=mobilenet_v1", "model.width=0.25"]
    done = script("train.py", *arguments, "run.dir=stops", "train.batch_size=256", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the loss became ")
    assert "in epoch 1, step " in done.stderr
    assert "at learning rate 1e+06" in done.stderr
    assert done.stderr.count("\n") == 1
    rollback = ["train.on_nonfinite=rollback", "train.rollback_factor=1e-8"]
    # With two updates, only the test loss is not finite. With five, the first batch of a gradient sum diverges.
    for accumulate, batch_size, loss in [(1, 256, "loss"), (2, 256, "test_loss"), (2, 128, "loss")]:
        options = [*rollback, f"train.accumulate={accumulate}", f"train.batch_size={batch_size}"]
        folder = f"returns-{accumulate}-{batch_size}"
        done = script("train.py", *arguments, f"run.dir={folder}", *options, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"the {loss} became " in done.stdout
        assert "returned to epoch 1, step 0, and the learning rate is now multiplied by 1e-08" in done.stdout
        assert load_checkpoint(tmp_path / folder / "last.ckpt").state["rollbacks"] == 1


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_one_line_and_keeps_the_saved_states(quickstart, command, tmp_path):
    _, run, _ = quickstart
    shutil.copytree(run, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.ckpt")}
    largest = max(map(len, before.values()))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, old[1]))
    try:
        done = command("train.py", "--resume", "run", "train.epochs=4", cwd=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert done.returncode == 2
    assert done.stderr.startswith("error: run/checkpoints/")
    assert done.stderr.endswith(": File too large\n")
    assert done.stderr.count("\n") == 1
    assert all(path.read_bytes() == content for path, content in before.items() if path.name.startswith("state"))
    assert not list((tmp_path / "run").rglob(".*.partial*"))
