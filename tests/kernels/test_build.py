"""Compiling the kernels: only once, safely in several processes, and with a clear message if it fails."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import pytest

from src.config.load import make_config
from src.errors import UserError
from src.kernels import build, convert
from src.kernels.convert import use_kernels
from src.models import create_model
from tests.conftest import ROOT


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pocketspore"


@pytest.fixture
def small_source(monkeypatch, tmp_path):
    """Take the place of operators.cpp, so that compiling takes no seconds; return its path."""
    source = tmp_path / "small.cpp"
    source.write_text('extern "C" void set_threads(int) {}\n')
    monkeypatch.setattr(build, "SOURCE", source)
    return source


def classifier_and_runtime(kernels):
    config = make_config({"model": {"width": 0.5}, "runtime": {"kernels": kernels}})
    return create_model(config.model, config.data, 10), config.runtime


def test_library_is_compiled_once(cache, small_source, capfd):
    library = build.build()
    assert re.fullmatch(r"compiling the native kernels .+\ncompiled in \d+ s: .+\n", capfd.readouterr().out)
    written = library.stat().st_mtime_ns
    assert build.build() == library
    assert (library.stat().st_mtime_ns, capfd.readouterr().out) == (written, "")
    assert list(cache.iterdir()) == [library]


def test_each_source_compiler_and_cpu_has_its_own_library(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "compile_library", lambda command, library: None)
    names = {build.build()}
    copy = tmp_path / "kernels"
    shutil.copytree(build.SOURCE.parent, copy)
    with monkeypatch.context() as patched:
        patched.setattr(build, "SOURCE", copy / build.SOURCE.name)
        sources = [build.SOURCE, *copy.glob("*.h")]
        for source in sources:
            source.write_text(source.read_text() + "\n")
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
    with monkeypatch.context() as patched:
        patched.setenv("CXXFLAGS", "-mno-avx512f")
        names.add(build.build())
    assert len(sources) > 5
    assert len(names) == 5 + len(sources)


def test_processes_that_start_together_compile_one_library(cache, small_source):
    code = "import sys; from pathlib import Path; from src.kernels import build; build.SOURCE = Path(sys.argv[1]); "
    command = [sys.executable, "-c", code + "build.load(build.build(), 2)", str(small_source)]
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


@pytest.mark.parametrize(
    ("machine", "flags", "fast"),
    [
        ("x86_64", "flags\t\t: fpu sse4_1 avx avx2 fma", True),
        ("x86_64", "flags\t\t: fpu sse4_1 avx", False),
        ("x86_64", "flags\t\t: fpu sse4_1 avx fma4", False),
        ("aarch64", "Features\t: fp asimd", True),
    ],
)
def test_auto_uses_the_kernels_where_they_can_be_faster(monkeypatch, capsys, machine, flags, fast):
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    monkeypatch.setattr(build, "cpu", lambda: flags)
    monkeypatch.setattr(build, "build", lambda: Path("no-such-library"))
    loaded = []
    monkeypatch.setattr(build, "load", lambda library, threads: loaded.append(threads))
    use_kernels(*classifier_and_runtime("auto"))
    assert (len(loaded), "need a processor with AVX2 and FMA" in capsys.readouterr().out) == (fast, not fast)
    use_kernels(*classifier_and_runtime("native"))
    assert len(loaded) == fast + 1


def test_processes_share_the_processors(monkeypatch):
    monkeypatch.setattr(convert, "usable", lambda: 8)
    monkeypatch.setattr(build, "build", lambda: Path("no-such-library"))
    loaded = []
    monkeypatch.setattr(build, "load", lambda library, threads: loaded.append(threads))
    before = ms.get_context("runtime_num_threads")
    try:
        for most in (30, 4):
            ms.set_context(runtime_num_threads=most)
            for sharing in (1, 3, 9):
                use_kernels(*classifier_and_runtime("native"), sharing)
    finally:
        ms.set_context(runtime_num_threads=before)
    assert loaded == [8, 2, 1, 4, 2, 1]


# The program calls all kernels from two threads at once, while a third thread changes the number of the pool's threads.
@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(tmp_path, sanitizers):
    # With -g, an error of the address sanitizer would name its line, and the compilation would take twice as long.
    flags = ["-std=c++17", "-O1", "-march=native", "-fno-sanitize-recover", "-pthread"]
    sources = [str(build.SOURCE), str(ROOT / "tests" / "kernels" / "sanitize.cpp")]
    program = tmp_path / "sanitize"
    command = [*build.find_compiler(), *flags, f"-fsanitize={sanitizers}", *sources, "-o", str(program)]
    subprocess.run(command, check=True)
    # The thread pool deliberately stays until the process ends, so leaks are not checked.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run([str(program)], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "clean\n", "")
