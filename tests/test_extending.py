"""The worked examples of docs/extending.md, made in a copy of the project and run."""

import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

# A change: **New file**, **Add** or **Change**, a path, and a block of code; or a block of commands.
STEP = re.compile(
    r"\*\*(New file|Add|Change)\*\*(?: to| in)? `([^`]+)`\n\n```\w*\n(.*?)```|^```\n(.*?)```", re.S | re.M
)


def steps_of(heading):
    """Return (kind, path, block) of each change, and (None, "", commands), in the section with this heading."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.S | re.M)[1]
    return [(kind or None, path, block or commands) for kind, path, block, commands in STEP.findall(section)]


def make_change(project, kind, path, block):
    """Make one change of the page; what is already there must be there exactly once."""
    file = project / path
    if kind == "New file":
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block, encoding="utf-8")
        return
    text = file.read_text(encoding="utf-8")
    if kind == "Add":
        old, new = block.splitlines(keepends=True)[0], block
    else:
        old, new = ("".join(re.findall(rf"^\{sign}(.*\n)", block, re.M)) for sign in "-+")
    assert text.count(old) == 1, f"{path}: {old}"
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with the changes of all sections, in which the commands are run in order."""
    copy = tmp_path_factory.mktemp("project")
    for name in ("src", "tools", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "eval.py", "export.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture
def arrays(project, digit_images):
    """The archives that the example of a data set reads."""
    images, labels = digit_images
    (project / "arrays").mkdir(exist_ok=True)
    for name, part in (("train", slice(0, 1000)), ("test", slice(1000, None))):
        np.savez(project / "arrays" / f"{name}.npz", images=images[part, ..., None], labels=labels[part])


@pytest.mark.parametrize("heading", ["Add a network", "Add a data set", "Add an export format"])
@pytest.mark.usefixtures("arrays")
def test_the_worked_example_runs(project, heading):
    steps = steps_of(heading)
    assert [kind for kind, _, _ in steps].count(None) == 1
    for kind, path, block in steps:
        if kind is not None:
            make_change(project, kind, path, block)
    for command in steps[-1][2].splitlines():
        done = subprocess.run(
            [sys.executable, *shlex.split(command)[1:]], cwd=project, capture_output=True, text=True, timeout=300
        )
        assert (done.returncode, done.stderr) == (0, ""), command
        if "export.py" in command:
            assert "verified on" in done.stdout
    style = subprocess.run([sys.executable, "-m", "ruff", "check", "src"], cwd=project, capture_output=True, text=True)
    assert style.returncode == 0, style.stdout
