"""Signals, closed streams and the exit of the scripts."""

import os
import signal
import subprocess
import sys

import pytest

from src import script as process
from src.errors import Interrupted, UserError, run
from tests.conftest import ROOT, SMALL

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
SCRIPTS = [path.relative_to(ROOT).as_posix() for folder in (ROOT, ROOT / "tools") for path in folder.glob("*.py")]
# Runs a script in a process that sends itself a signal at a moment: when it imports a module, when it opens a file, or
# at the exit. SIGTERM comes from another process, because MindSpore sends it to its own process.
STRIKE = """
import atexit, os, runpy, signal, subprocess, sys

number, moment, script = int(sys.argv[1]), sys.argv[2], sys.argv[3]
sys.argv = sys.argv[3:]
sys.path[0] = os.path.dirname(script)

def strike():
    if number == signal.SIGTERM:
        subprocess.run(["kill", "-TERM", str(os.getpid())])
    else:
        os.kill(os.getpid(), number)

def watch(event, arguments):
    if event in ("import", "open") and str(arguments[0]).endswith(moment):
        strike()

atexit.register(strike) if moment == "exit" else sys.addaudithook(watch)
runpy.run_path(script, run_name="__main__")
"""


def struck(number, moment, name, *arguments, cwd):
    command = [sys.executable, "-c", STRIKE, str(int(number)), moment, str(ROOT / name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_signal_during_the_first_imports_ends_every_script_with_one_line(tmp_path, name):
    done = struck(signal.SIGINT, "src.data.libjpeg", name, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


MOMENTS = [
    ("src.errors", []),
    ("pydantic", []),
    ("quickstart.yaml", ["--config", QUICKSTART]),
    ("mindspore", ["--config", QUICKSTART, "run.dir=run"]),
    ("exit", ["--help"]),
]


@pytest.mark.parametrize(("moment", "arguments"), MOMENTS, ids=[moment for moment, _ in MOMENTS])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_at_any_moment_gives_one_line(tmp_path, number, moment, arguments):
    done = struck(number, moment, "train.py", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (128 + number, "error: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_after_an_error_adds_no_line(tmp_path):
    done = struck(signal.SIGINT, "exit", "train.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "error: --config: is missing; give a YAML file of settings\n")


@pytest.fixture
def handlers():
    """Restore the signal handlers that `run` replaces."""
    before = {number: signal.getsignal(number) for number in process.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def fail(error):
    raise error


def strike(number=signal.SIGINT, then=None):
    """Send a signal to this process; a library catches the exception and raises `then`, or goes on without it."""
    try:
        os.kill(os.getpid(), number)
    except BaseException:
        if then is not None:
            raise then from None


def strike_twice():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("main", "code", "line"),
    [
        (strike, 130, "interrupted"),
        (lambda: strike(signal.SIGTERM), 143, "interrupted"),
        (lambda: strike(signal.SIGHUP), 129, "interrupted"),
        (lambda: strike(then=RuntimeError("from C++")), 130, "interrupted"),
        (lambda: strike(then=UserError("the worker crashed")), 130, "interrupted"),
        (lambda: strike(then=Interrupted("interrupted; resume")), 130, "interrupted; resume"),
        (strike_twice, 130, "interrupted"),
        (lambda: fail(UserError("a mistake")), 2, "a mistake"),
        (lambda: fail(FileNotFoundError(2, "No such file", "x")), 2, "x: No such file"),
    ],
)
def test_whatever_a_signal_becomes_the_script_ends_with_its_code(handlers, capsys, main, code, line):
    with pytest.raises(SystemExit) as left:
        run(main)
    assert (left.value.code, capsys.readouterr().err) == (code, f"error: {line}\n")


@pytest.mark.parametrize(("raised", "code"), [(SystemExit(1), 1), (SystemExit(0), 0), (SystemExit(), 0)])
def test_exit_codes_of_a_script_are_kept(handlers, capsys, raised, code):
    with pytest.raises(SystemExit) as left:
        run(lambda: fail(raised))
    assert (left.value.code, capsys.readouterr().err) == (code, "")


def test_a_mistake_in_the_code_keeps_its_traceback(handlers):
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)


# How the shell starts a script, and what it then says on stderr.
STREAMS = {
    'exec "$@" >&-': "",
    'exec "$@" >&- 2>&-': "",
    'exec "$@" <&- >&- 2>&-': "",
    'exec "$@" >/dev/full': "note: stdout cannot be written, so its further text is lost: No space left on device\n",
    'exec "$@" >/dev/full 2>&1': "",
    # `read` is closed before the script writes: the shell waits for it.
    '{ read wait; exec "$@"; } <"$FIFO" 3>&- | { exec <&-; echo >"$FIFO"; }': "",
}


def in_shell(redirection, name, *arguments, cwd):
    os.mkfifo(cwd / "fifo")
    command = ["bash", "-o", "pipefail", "-c", redirection, "bash", sys.executable, str(ROOT / name)]
    environment = {**os.environ, "FIFO": str(cwd / "fifo")}
    done = subprocess.run(
        [*command, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    (cwd / "fifo").unlink()
    return done


@pytest.mark.parametrize(("redirection", "note"), STREAMS.items())
def test_a_script_goes_on_without_output(tmp_path, redirection, note):
    done = in_shell(redirection, "train.py", "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, note)


@pytest.mark.parametrize("redirection", ['exec "$@" >&- 2>&-', 'exec "$@" >/dev/full 2>&1'])
def test_a_mistake_without_output_has_its_exit_code(tmp_path, redirection):
    assert in_shell(redirection, "train.py", "--surprise", cwd=tmp_path).returncode == 2


@pytest.mark.slow
def test_training_evaluation_and_export_write_their_files_without_output(tmp_path):
    closed, cut = list(STREAMS)[1], list(STREAMS)[-1]
    settings = [*SMALL, "train.epochs=1", "train.batch_size=256", "runtime.mode=pynative"]
    checkpoint = ["--checkpoint", "run/best.ckpt"]
    for redirection, name, arguments in [
        (cut, "train.py", ["--config", QUICKSTART, "run.dir=run", *settings]),
        (closed, "eval.py", [*checkpoint, "--json", "e.json"]),
        (closed, "export.py", [*checkpoint, "--output", "n.onnx", "--verify", "8"]),
    ]:
        done = in_shell(redirection, name, *arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "e.json",
        "e.png",
        "e.reliability.png",
        "n.onnx",
        "n.onnx.json",
        "run",
    ]
    assert (tmp_path / "run" / "summary.json").exists()


def test_output_goes_on_after_an_error(tmp_path):
    reader, writer = os.pipe()
    output = process.Output(writer, "w")
    os.close(reader)
    assert [output.write(b"some text"), output.write(b"more")] == [9, 4]
    output.close()
