"""The numbers, paths and names of options: every script refuses what cannot be, before it starts to work."""

import argparse
import importlib
import os

import pytest

from src.config.load import load_config
from src.errors import LONGEST_LINE, UserError, run
from tests.conftest import ROOT

SCRIPTS = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for pattern in ("*.py", "tools/*.py", "benchmarks/*.py", "tests/stress/*.py")
    for path in ROOT.glob(pattern)
    if "ArgumentParser(" in path.read_text()
)
NO_NUMBERS = ["nan", "inf", "-inf", "-1", "1e999", "1" + "0" * 30, "9" * 5000, "many", "", "0x10"]
EVAL, EXPORT = ["--checkpoint", __file__], ["--checkpoint", __file__, "--output", "net.onnx"]


class ParserMadeError(Exception):
    """Carries the parser of a script."""


def parser_of(module, monkeypatch):
    """Return the parser that a script makes."""

    def stop(parser, *_):
        raise ParserMadeError(parser)

    for method in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, method, stop)
    script = importlib.import_module(module)
    with pytest.raises(ParserMadeError) as made:
        getattr(script, "parse", script.main)()
    return made.value.args[0]


@pytest.mark.parametrize("module", SCRIPTS)
def test_every_number_of_every_script_has_limits(monkeypatch, module):
    for action in parser_of(module, monkeypatch)._actions:
        if action.type is None or action.choices or action.type.__name__.startswith("existing"):
            continue
        assert action.default is None or action.type(str(action.default)) == action.default
        for text in NO_NUMBERS:
            with pytest.raises(argparse.ArgumentTypeError, match="^must be a .*number"):
                action.type(text)


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("export", [*EXPORT, "--batch", "100000"], "--batch: must be a whole number from 1 to 256 (found 100000)"),
        ("export", [*EXPORT, "--batch", "1.5"], "--batch: must be a whole number from 1 to 256 (found 1.5)"),
        ("export", [*EXPORT, "--max-drop", "-0.1"], "--max-drop: must be a number from 0 to 100 (found -0.1)"),
        ("export", [*EXPORT, "--max-drop", "nan"], "--max-drop: must be a number from 0 to 100 (found nan)"),
        ("tools.import_weights", [__file__, "--channels", "2"], "--channels: invalid choice: 2"),
        ("train", ["--confg", "c.yaml"], "--confg: is not an option; did you mean --config?"),
        ("train", ["-config", "c.yaml"], "-config: is not an option; did you mean --config?"),
        ("train", ["--config=missing.yaml"], "--config: missing.yaml: no such file or folder"),
        ("eval", ["--checkpont=best.ckpt"], "--checkpont: is not an option; did you mean --checkpoint?"),
        ("eval", [*EVAL, "--jsn", "e.json"], "--jsn: is not an option; did you mean --json?"),
        ("eval", ["--checkpoint", "none.ckpt"], "--checkpoint: none.ckpt: no such file or folder"),
        ("eval", ["--checkpoint", "."], "--checkpoint: .: is not a file"),
        ("eval", ["--checkpoint", os.devnull], f"--checkpoint: {os.devnull}: is not a file"),
        ("eval", ["--checkpoint", "x" * 300], f"--checkpoint: {'x' * 300}: File name too long"),
        ("eval", [*EVAL, "--images", "none"], "--images: none: no such file or folder"),
        ("export", [*EXPORT, "--golden", "none.jpg"], "--golden: none.jpg: no such file or folder"),
        ("tools.import_weights", ["none.pth"], "source: none.pth: no such file or folder"),
        ("tools.cost", ["--modle", "ghostnet"], "--modle: is not an option; did you mean --model?"),
    ],
)
def test_a_mistake_names_the_option(monkeypatch, module, arguments, said):
    monkeypatch.setattr("sys.argv", [f"{module}.py", *arguments])
    with pytest.raises(UserError) as error:
        importlib.import_module(module).parse()
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("text", "override", "origin", "said"),
    [
        ("{}", "data.mean=[x]", "command line", "data.mean.0: 'x' must be"),
        ("{}", "data.mean=[0.5,0.5,x]", "command line", "data.mean.2: 'x' must be"),
        ("data: {mean: [x]}", "train.epochs=2", "c.yaml", "data.mean.0: 'x' must be"),
        ("data: {mean: [x]}", "data.mean=[y]", "command line", "data.mean.0: 'y' must be"),
        (
            "optimizer: {nesterov: true}",
            "optimizer.momentum=0.0",
            "command line and c.yaml",
            "optimizer.nesterov: true",
        ),
        ("optimizer: {nesterov: true, momentum: 0.0}", "train.epochs=2", "c.yaml", "optimizer.nesterov: true needs"),
        ("model: {name: ghostnet}", "model.width=9.0", "command line", "model.width: 9.0 is not one of"),
        ("model: {width: 2.0}", "model.name=ghostnet", "command line and c.yaml", "model.width: 2.0 is not one of"),
        ("model: {width: 9.0}", "train.epochs=2", "c.yaml", "model.width: 9.0 is not one of"),
        (
            "schedule: {name: step}",
            "train.epochs=2",
            "c.yaml",
            "schedule.step_epochs: must be given with schedule.name",
        ),
        (
            "{}",
            "augment.padding=3",
            "command line",
            "augment.padding: is used with augment.crop=pad only (found augment",
        ),
        ("{}", 'run.dir="a\\0b"', 'run.dir="a\\0b"', "is not valid YAML: the text has the character NUL"),
        ('run: {dir: "a\\0b"}', "train.epochs=2", "c.yaml", "is not valid YAML: the text has the character NUL"),
        ("{}", "train.batch_size=20000", "command line", "train.batch_size: 20000 must be less than or equal to 16384"),
        ("{}", "data.mean=[1e9,0.0,0.0]", "command line", "data.mean: [1000000000.0, 0.0, 0.0] must be from -1e6"),
        ("{}", "data.std=[1e-9,1.0,1.0]", "command line", "data.std: [1e-09, 1.0, 1.0] must be greater than 0"),
        ("{}", "train.clip_norm=1e300", "command line", "train.clip_norm: 1e+300 must be 0, or from 1e-30 to 1e30"),
        ("{}", "model.norm_epsilon=1e-300", "command line", "model.norm_epsilon: 1e-300 must be 0, or from 1e-30"),
        ("{}", "augment.ratio=[0.5,1e9]", "command line", "augment.ratio: [0.5, 1000000000.0] must be two numbers"),
        ("{}", f"train.recalibrate={10**30}", "command line", f"train.recalibrate: {10**30} is not auto, or a number"),
        ("{}", "augment.repeats=1000000000", "command line", "augment.repeats: 1000000000 must be less than"),
    ],
)
def test_an_error_of_a_setting_names_its_origin(tmp_path, monkeypatch, text, override, origin, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_config("c.yaml", [override])
    assert str(error.value).startswith(f"{origin}: {said}")


@pytest.mark.parametrize(
    "override", ["x" * 5000, f"data.{'x' * 5000}=1", f"data.name={'x' * 5000}", f"train.seed={'7' * 5000}"]
)
def test_a_long_word_gives_a_short_line(capsys, tmp_path, override):
    (tmp_path / "c.yaml").write_text("{}")
    with pytest.raises(SystemExit) as left:
        run(lambda: load_config(tmp_path / "c.yaml", [override]))
    line = capsys.readouterr().err
    assert (left.value.code, line.count("\n"), " … " in line) == (2, 1, True)
    assert len(line) < LONGEST_LINE + 20
