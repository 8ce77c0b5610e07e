"""The cache folder and its libraries: damaged libraries, folders that cannot be used, compilers that do not run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from src.errors import UserError
from src.files import cache_folder
from src.kernels import build
from src.kernels.convert import use_kernels
from tests.conftest import ROOT
from tests.kernels.test_build import classifier_and_runtime

DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "last byte lost": lambda content: content[:-1],
    "empty": lambda content: b"",
    "pages of zeros, as after a crash": lambda content: content[:4096] + bytes(len(content) - 4096),
    "one bit": lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    "without a checksum, as of earlier code": lambda content: content[: -build.CHECKSUM_BYTES],
}


@pytest.fixture
def small_source(monkeypatch, tmp_path):
    """Take the place of kernels.cpp, so that compiling takes no seconds; return the folder of the libraries."""
    source = tmp_path / "small.cpp"
    source.write_text('extern "C" int threads_of(int count) { return count; }\n')
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pocketspore"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_library_is_compiled_again(small_source, capsys, damage):
    library = build.build()
    library.write_bytes(damage(library.read_bytes()))
    capsys.readouterr()
    assert build.build() == library
    assert "(the kept library is damaged) ..." in capsys.readouterr().out
    # A process of its own, because a library that is damaged ends it.
    code = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).threads_of(7) - 7)"
    assert subprocess.run([sys.executable, "-c", code, str(library)]).returncode == 0
    assert build.build() == library
    assert capsys.readouterr().out == ""
    assert [path.name for path in small_source.iterdir()] == [library.name]


def unable(path, text=""):
    """Write a program that the system cannot start."""
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        (lambda tmp: {"XDG_CACHE_HOME": str(tmp / "file")}, "file/pocketspore: Not a directory; set XDG_CACHE_HOME"),
        (lambda tmp: {"XDG_CACHE_HOME": "/proc/nowhere"}, "/proc/nowhere: No such file or directory; set XDG_CACHE"),
        (lambda tmp: {"CXX": unable(tmp / "cxx", "#!/nowhere\n")}, "cxx cannot be started: No such file or directory"),
        (lambda tmp: {"CXX": unable(tmp / "cxx", "\x7fELF")}, "cxx cannot be started: Exec format error; install g++"),
        (lambda tmp: {"CXX": "true"}, "true failed to compile them: it wrote no library; install g++"),
        (lambda tmp: {"CXX": "  cat  -"}, "cat failed to compile them: exit code 1; install g++"),
    ],
    ids=["file as cache", "cache that cannot be made", "no interpreter", "no program", "no library", "no compiler"],
)
def test_where_nothing_can_be_compiled_stock_operators_are_used(
    small_source, monkeypatch, capsys, tmp_path, environment, part
):
    (tmp_path / "file").touch()
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    classifier, runtime = classifier_and_runtime("auto")
    before = [type(cell) for _, cell in classifier.cells_and_names()]
    use_kernels(classifier, runtime)
    assert [type(cell) for _, cell in classifier.cells_and_names()] == before
    message = capsys.readouterr().out.splitlines()[-1]
    assert message.startswith("native kernels are not available, so this run is two to three times slower: ")
    assert part in message
    runtime.kernels = "native"
    with pytest.raises(UserError, match="runtime.kernels: native kernels are not available: ") as error:
        use_kernels(classifier, runtime)
    assert part in str(error.value)
    assert not small_source.exists() or list(small_source.iterdir()) == []
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize(
    ("named", "expected"),
    [("/somewhere/else", "/somewhere/else"), ("", "~/.cache"), ("here", "~/.cache"), ("./here", "~/.cache")],
)
def test_all_programs_have_the_same_cache_folder(monkeypatch, tmp_path, named, expected):
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = Path(expected).expanduser() / "pocketspore"
    assert cache_folder() == folder
    for script, name in (("setup_lite.sh", "lite"), ("setup_arm.sh", "arm64")):
        command = [str(ROOT / "tools" / script), "--folder"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{folder / name}\n"
    assert os.listdir() == []


def test_no_home_folder(small_source, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(build.UnavailableError, match="they cannot be kept: Could not determine home directory"):
        build.build()
