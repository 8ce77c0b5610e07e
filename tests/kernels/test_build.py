"""Compiling the kernels: only once, safely in several processes, and with a clear message if it fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import pytest

from src.config.load import make_config
from src.errors import UserError
from src.kernels import build
from src.kernels.convert import use_kernels
from src.models import create_model
from tests.conftest import ROOT


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pocketspore"


def classifier_and_runtime(kernels):
    config = make_config({"model": {"width": 0.5}, "runtime": {"kernels": kernels}})
    return create_model(config.model, config.data, 10), config.runtime


def test_library_is_compiled_once(cache, capfd):
    library = build.build()
    assert re.fullmatch(r"compiling the native kernels .+\ncompiled in \d+ s: .+\n", capfd.readouterr().out)
    written = library.stat().st_mtime_ns
    assert build.build() == library
    assert (library.stat().st_mtime_ns, capfd.readouterr().out) == (written, "")
    assert list(cache.iterdir()) == [library]


def test_each_source_compiler_and_cpu_has_its_own_library(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "compile_library", lambda command, library: None)
    names = {build.build()}
    changed = tmp_path / "kernels.cpp"
    changed.write_text(build.SOURCE.read_text() + "\n")
    with monkeypatch.context() as patched:
        patched.setattr(build, "SOURCE", changed)
        names.add(build.build())
    with monkeypatch.context() as patched:
        patched.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
        names.add(build.build())
    with monkeypatch.context() as patched:
        patched.setattr(build, "cpu", lambda: "another")
        names.add(build.build())
    with monkeypatch.context() as patched:
        patched.setenv("CXX", "echo")
        names.add(build.build())
    assert len(names) == 5


def test_processes_that_start_together_compile_one_library(cache):
    command = [sys.executable, "-c", "import src; from src.kernels import build; build.load(build.build(), 2)"]
    both = [subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    ("compiler", "part"),
    [
        ("no-such-compiler", "no C++ compiler is installed as CXX=no-such-compiler; install g++"),
        ("false", "false failed to compile them"),
    ],
)
def test_without_a_compiler_stock_operators_are_used(cache, monkeypatch, capsys, compiler, part):
    monkeypatch.setenv("CXX", compiler)
    classifier, runtime = classifier_and_runtime("auto")
    before = [type(cell) for _, cell in classifier.cells_and_names()]
    use_kernels(classifier, runtime)
    assert [type(cell) for _, cell in classifier.cells_and_names()] == before
    message = capsys.readouterr().out.splitlines()[-1]
    assert message.startswith("native kernels are not available, so this run is two to three times slower: ")
    assert part in message
    classifier, runtime = classifier_and_runtime("native")
    with pytest.raises(UserError, match=f"runtime.kernels: native kernels are not available: {re.escape(part)}"):
        use_kernels(classifier, runtime)
    assert not list(cache.glob("*.so"))


def test_parameters_keep_names_shapes_and_values(capsys):
    classifier, runtime = classifier_and_runtime("native")
    before = {parameter.name: parameter for parameter in classifier.get_parameters()}
    use_kernels(classifier, runtime)
    after = {parameter.name: parameter for parameter in classifier.get_parameters()}
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_stock_changes_nothing():
    classifier, runtime = classifier_and_runtime("stock")
    before = [type(cell) for _, cell in classifier.cells_and_names()]
    use_kernels(classifier, runtime)
    assert [type(cell) for _, cell in classifier.cells_and_names()] == before


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path):
    onednn = next((Path(ms.__file__).parent / "lib").glob("libdnnl.so.*"))
    flags = [
        "-std=c++17",
        "-O1",
        "-g",
        "-march=native",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover",
        "-pthread",
    ]
    sources = [str(build.SOURCE), str(ROOT / "tests" / "kernels" / "sanitize.cpp"), str(onednn)]
    program = tmp_path / "sanitize"
    command = [*build.find_compiler(), *flags, *sources, f"-Wl,-rpath,{onednn.parent}", "-o", str(program)]
    subprocess.run(command, check=True)
    # The thread pool deliberately stays until the process ends, so leaks are not checked.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run([str(program)], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "clean\n", "")
