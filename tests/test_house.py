"""The house's rules, read from the source: who may import whom, no circles, no shadows, torch's private names in one file."""

import ast
import importlib
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from lae_fast.experiments.sources import imports

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lae_fast"

# Rooms by floor: a room imports itself and lower floors, never its neighbours.
FLOORS = (
    ("_version",),
    ("checks", "console", "isolation", "progress"),
    ("attacks", "beside", "checkpoint", "data", "provenance", "seeds", "sharing"),
    ("ops",),
    ("graphs",),
    ("sampling",),
    ("models",),
    ("augmentation", "evaluation", "hub", "mixtures"),
    ("training",),
    ("info", "view"),
    ("experiments", "score", "train"),
    ("__main__",),
    ("lae_fast",),  # the package's own names: for users, not for its rooms
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module):
    return module.split(".")[1] if "." in module else module


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"}


def test_every_file_belongs_to_a_room():
    assert {room_of(module) for module in MODULES} | {"lae_fast"} == set(FLOOR_OF)


def test_every_file_is_on_the_page_of_the_house():
    """In its room's own row, or in the experiments' own table."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+/(?:\w+/|\*\.py)?)` \| (.*)", page, re.M))
    rows["lae_fast/experiments/"] = page.split("### The experiments")[1].split("## Who may")[0]
    missing = []
    for path in (*PACKAGE.rglob("*"), *ROOT.glob("csrc/**/*.h")):
        folder = path.parent.relative_to(ROOT).as_posix()
        row = rows[
            "csrc/"
            if folder.startswith("csrc")
            else "lae_fast/*.py"
            if folder == "lae_fast"
            else f"{folder}/"
        ]
        is_own = path.suffix in (".py", ".js", ".css", ".html", ".h") and not path.name.startswith("__")
        if (
            is_own
            and not path.name.endswith("_ops.h")
            and not re.search(rf"`{re.escape(path.stem)}(\.\w+)?`", row)
        ):
            missing.append(str(path.relative_to(ROOT)))
    assert not missing, f"CONTRIBUTING.md does not say what these are: {missing}"


@pytest.mark.parametrize("module", MODULES)
def test_no_arrow_leads_up_or_sideways(module):
    room = room_of(module)
    wrong = [
        other
        for other in imports(module)
        if room_of(other) != room and FLOOR_OF[room_of(other)] >= FLOOR_OF[room]
    ]
    assert not wrong, f"{module} imports {wrong}; expected its own room or lower floors"


def test_no_circles():
    try:
        list(TopologicalSorter({module: set(imports(module)) for module in MODULES}).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("package", ["lae_fast", *(m for m, p in MODULES.items() if p.name == "__init__.py")])
def test_no_public_name_shadows_a_module(package):
    folder = PACKAGE if package == "lae_fast" else MODULES[package].parent
    files = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    room = importlib.import_module(package)
    for name in files & set(getattr(room, "__all__", ())):
        assert getattr(room, name) is importlib.import_module(f"{package}.{name}"), name


def imported_names(path):
    """What a file calls the modules and classes of this package that it imports."""
    nodes = ast.walk(ast.parse(path.read_text()))
    froms = [n for n in nodes if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("lae_fast")]
    return [alias.asname or alias.name for node in froms for alias in node.names]


def test_users_and_benchmarks_see_public_names_only():
    readers = [*(ROOT / "bench").rglob("*.py"), *(PACKAGE / "experiments").glob("*.py")]
    readers += [path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    for path in readers:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lae_fast"):
                private = [a.name for a in node.names if re.match(r"_[a-z]", a.name)]
                assert not private, f"{path.name} imports {private} from {node.module}"
        names = "|".join(imported_names(path)) or "-"
        used = re.findall(rf"\b(?:{names})\._[a-z]\w*", path.read_text())
        assert not used, f"{path.name} uses {used}"


def test_torch_s_private_names_are_in_one_file():
    pattern = re.compile(
        r"torch(\.\w+)*\._[a-zA-Z]|\._(forward|backward)\w*_hooks|\._(parameters|buffers|modules)\b"
    )
    for module, path in MODULES.items():
        if module != "lae_fast.ops.torch_private":
            assert not pattern.search(path.read_text()), module


# The kernels: headers for one element, then the ops' arguments, then a backend; each includes lower floors only.
INCLUDES = (
    {"philox.h"},
    {"fma.h"},
    {"langevin_math.h", "energy_math.h"},
    {"check.h", "tensors.h"},
    {"langevin_ops.h", "energy_ops.h", "dense_ops.h", "adam_ops.h", "layer_ops.h"},
    {"cpu", "cuda"},
)


def test_the_kernels_include_lower_floors_only():
    floors = {name: floor for floor, names in enumerate(INCLUDES) for name in names}
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cpp", ".cu")]
    for path in sources:
        own = path.parent.name if path.parent.name in ("cpu", "cuda") else path.name
        if own == "build_info.cpp":
            continue
        for included in re.findall(r'#include "([^"]+)"', path.read_text()):
            target = (path.parent / included).resolve()
            room = target.parent.name if target.parent.name in ("cpu", "cuda") else target.name
            assert room == own or floors[room] < floors[own], f"{path.name} includes {included}"
