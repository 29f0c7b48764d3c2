"""The house: which folder may import which, and how long a file may be (CONTRIBUTING.md, 'The map')."""

import ast

import pytest
from conftest import ROOT

SOURCES = sorted(path for path in ROOT.rglob("*.py")
                 if path.relative_to(ROOT).parts[0] not in ("tests", "bench", ".venv", "runs", "data")
                 and not path.relative_to(ROOT).parts[0].startswith("."))
# What a folder may import. A file at the top is a room of its own.
MAY_IMPORT = {
    "layers": {"layers"},
    "fast": {"fast", "layers", "load_data", "store", "training"},
    "store": {"store"},
    "load_data": {"store"},
    "training": {"fast", "load_data", "store"},
    "mlp": {"fast", "layers"},
    "cnn": {"fast", "layers"},
    "studies": {"store"},
    "lab": {"lab", "studies", "fast", "load_data", "store", "training"},
    "report": {"report", "studies", "cnn", "mlp", "fast", "layers", "load_data", "store", "training"},
}
HEART = ("layers", "mlp", "cnn", "training.py", "load_data.py")


def room(path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path) -> set[str]:
    """The project's own rooms that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found & {room(source) for source in SOURCES}


@pytest.mark.parametrize("path", [path for path in SOURCES if room(path) in MAY_IMPORT and path.name != "main.py"],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    assert imported(path) <= MAY_IMPORT[room(path)]


def imported_modules(path, names: dict) -> set[str]:
    """The project's own modules that a file imports, by their dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & names.keys()


def test_imports_run_in_no_circle():
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
             for path in SOURCES}
    left = {name: imported_modules(path, names) - {name} for name, path in names.items()}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left, f"these import each other: {sorted(left)}"


def test_every_folder_that_is_imported_is_a_package():
    """Without __init__.py an installed package of the same name wins."""
    for folder in {path.parent for path in SOURCES} - {ROOT}:
        text = (folder / "__init__.py").read_text()
        assert ast.get_docstring(ast.parse(text)), f"{folder.name}/__init__.py does not say what it is for"


def test_no_file_has_two_subjects():
    for path in SOURCES:
        lines = path.read_text().splitlines()
        assert len(lines) <= 400, f"{path} has {len(lines)} lines"


def test_the_heart_is_read_in_an_hour():
    lines = sum(len(path.read_text().splitlines()) for path in SOURCES
                if room(path) in HEART or path.name in HEART)
    assert lines <= 750, f"a student reads {lines} lines of the heart, which may have 750: shorten it elsewhere"
