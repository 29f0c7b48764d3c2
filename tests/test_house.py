"""What a reader of the house feels: no circle of folders, one class for a run, one list of studies."""

import ast
from collections import defaultdict

import pytest
from conftest import ROOT

ELSEWHERE = ("tests", "bench", "docs", "findings", "runs", "data")
SOURCES = sorted(path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in ELSEWHERE
                 and not any(part.startswith(".") for part in path.relative_to(ROOT).parts))
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}
# What a folder may import of the others. A file at the top is a room of its own.
MAY_IMPORT = {
    "layers": set(),
    "store": set(),
    "studies": {"store"},
    "load_data": {"store"},
    "fast": {"layers", "store"},
    "mlp": {"fast", "layers"},
    "cnn": {"fast", "layers"},
    "training": {"fast", "load_data", "store"},
    "lab": {"studies", "fast", "layers", "load_data", "store", "training", "mlp", "cnn"},
    "report": {"studies", "cnn", "mlp", "fast", "layers", "load_data", "store", "training"},
}
OF_STORE = {"fast": {"store.settings", "store.files"}}  # a faster function knows no data


def room(path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def name_of(path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path) -> set[str]:
    """The project's own modules that a file imports, by their dotted names."""
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(map(name_of, SOURCES))


def assert_no_circle(needs: dict[str, set[str]]) -> None:
    left = dict(needs)
    while free := {name for name, others in left.items() if not others & left.keys() - {name}}:
        left = {name: others for name, others in left.items() if name not in free}
    assert not left, f"these import each other: {sorted(left)}"


def test_files_and_folders_import_in_no_circle():
    files = {name_of(path): imported(path) for path in SOURCES}
    assert_no_circle(files)
    rooms = defaultdict(set)
    for path in SOURCES:
        if path.name != "main.py":  # a command, which no file imports
            rooms[room(path)] |= {name.split(".")[0] for name in imported(path)}
    assert_no_circle(rooms)


@pytest.mark.parametrize("path", [path for path in SOURCES if room(path) in MAY_IMPORT and path.name != "main.py"],
                         ids=name_of)
def test_imports_run_one_way(path):
    others = {name for name in imported(path) if name.split(".")[0] != room(path)}
    assert {name.split(".")[0] for name in others} <= MAY_IMPORT[room(path)]
    of_store = {name for name in others if name.startswith("store.")}
    assert of_store <= OF_STORE.get(room(path), of_store)


def test_every_folder_that_is_imported_is_a_package():
    """Without __init__.py an installed package of the same name wins."""
    for folder in {path.parent for path in SOURCES} - {ROOT}:
        assert ast.get_docstring(TREES[folder / "__init__.py"]), f"{folder.name}/__init__.py does not say what it is for"


def test_a_run_is_one_class_and_a_study_one_list():
    classes, lists = defaultdict(list), defaultdict(list)
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(name_of(path))
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                for target in getattr(node, "targets", [getattr(node, "target", None)]):
                    if isinstance(target, ast.Name):
                        lists[target.id].append(name_of(path))
    places = {"Run": "store.run", "RunFolder": "store.run", "Settings": "store.settings", "Study": "studies",
              "STUDIES": "studies", "GROUPS": "studies"}
    for name, place in places.items():
        assert set(classes[name] + lists[name]) - {"report.studies"} == {place}, name


def test_lines_are_reported(record_property):
    """No wall: a file that has to be long may be."""
    lines = {path: len(path.read_text().splitlines()) for path in SOURCES}
    heart = sum(count for path, count in lines.items()
                if room(path) in ("layers", "mlp", "cnn", "training", "load_data"))
    longest = sorted(lines, key=lines.get)[-3:]
    record_property("lines of Python", f"{sum(lines.values())}, of which a student reads {heart}; longest: "
                    + ", ".join(f"{name_of(path)} {lines[path]}" for path in reversed(longest)))
