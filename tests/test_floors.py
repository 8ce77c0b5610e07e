"""The plan of `src`: a module imports modules of its own room and of the floors below, and no imports form a circle."""

import ast
import graphlib

import pytest

from tests.conftest import ROOT

# From the ground floor up; rooms of one line do not import each other. docs/architecture.md draws the same floors.
FLOORS = [
    ("script",),
    ("arguments", "errors", "files", "figures", "launch", "processors", "versions", "data.libjpeg"),
    ("config.schema", "config.yaml_text", "outputs"),
    ("models",),
    ("data", "kernels", "cost"),
    ("config.load", "runtime"),
    ("weights", "evaluation"),
    ("runs",),
    ("training", "deploy"),
    ("report", "doctor"),
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FRONT_DOOR = "src"  # src/__init__.py, which prepares the process before MindSpore is imported


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in (ROOT / "src").rglob("*.py")}


def room_of(module):
    """Return the room of a module: the longest name of FLOORS that its own name begins with."""
    name = module.removeprefix("src.")
    rooms = [room for room in FLOOR_OF if f"{name}.".startswith(f"{room}.")]
    return max(rooms, key=len, default=None)


def imports_of(module):
    """Return the modules of `src` that a module imports, anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            # `from src.models import NETWORKS` imports src.models, `from src.kernels import build` src.kernels.build.
            known = name if name in MODULES else name.rpartition(".")[0]
            found |= {known} & MODULES.keys() - {module}
    return found


IMPORTS = {module: imports_of(module) for module in MODULES}
# The package file of a folder whose rooms stand on several floors, such as src/config, has a docstring and no code.
PLACED = [module for module in MODULES if module != FRONT_DOOR and len(ast.parse(MODULES[module].read_text()).body) > 1]


@pytest.mark.parametrize("module", PLACED)
def test_imports_go_down_the_floors_only(module):
    room = room_of(module)
    assert room is not None, f"{module}: has no floor in FLOORS"
    for imported in IMPORTS[module] - {FRONT_DOOR}:
        below = FLOOR_OF[room_of(imported)] < FLOOR_OF[room]
        assert below or room_of(imported) == room, f"{module} imports {imported}, which is not below it"


def test_no_imports_form_a_circle():
    inner = {module: imports - {FRONT_DOOR} for module, imports in IMPORTS.items() if module != FRONT_DOOR}
    order = list(graphlib.TopologicalSorter(inner).static_order())
    assert len(order) == len(inner)


def test_the_front_door_imports_what_imports_nothing():
    assert IMPORTS[FRONT_DOOR] == {"src.script", "src.data.libjpeg"}
    assert all(IMPORTS[module] <= {FRONT_DOOR} for module in IMPORTS[FRONT_DOOR])


def test_package_files_without_a_floor_have_no_imports():
    for module in MODULES.keys() - set(PLACED) - {FRONT_DOOR}:
        assert not IMPORTS[module], module


def test_architecture_draws_these_floors():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = [line.strip("│ ").split() for line in text.splitlines() if line.startswith("│ ")]
    assert [sorted(rooms) for rooms in reversed(drawn)] == [sorted(rooms) for rooms in FLOORS]


def test_only_scripts_import_what_is_beside_src():
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in ("tools", "tests", "benchmarks"), module
