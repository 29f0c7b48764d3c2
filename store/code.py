"""Which code makes the numbers: the commit, and a sum over the sources that decide them."""

import ast
import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from store.files import ROOT, one_line

# What these import of those decides the numbers; of fast/, gpu/ does so on a GPU alone.
STARTS = ("training.py", "mlp/model.py", "cnn/model.py", "load_data.py", "fast/machine.py",
          "lab/side_by_side.py", "fast/gpu/blocks.py")
DECIDING = (*STARTS, "layers/", "fast/", "store/dataset.py", "store/images.py")
# Published with results/: as Python up to 3.11 summed it, as newer ones did, and by bytes.
SAME = (("6e1545c81b77", "8baf973f65f3", "2b20ce0f42cf"),)
PATIENCE = 5  # seconds for git to answer


@functools.cache  # run_experiment asks at once, when the sources have just been loaded
def code_version(on_gpu: bool) -> dict:
    """`commit` and `dirty` (None where git does not tell) and the sources' `hash`."""
    return {**_git(), "hash": sources_hash(on_gpu)}


def sources_hash(on_gpu: bool, root: Path = ROOT) -> str:
    """The start of a SHA-256 over the bytes of the sources, comments too."""
    digest = hashlib.sha256()
    for name, content in sorted((_loaded() if root == ROOT else _sources(root)).items()):
        if on_gpu or not name.startswith("fast/gpu/"):
            digest.update(b"%s %d\n%s" % (name.encode(), len(content), content))
    return digest.hexdigest()[:12]


def canonical(sources: str) -> str:
    """One hash for all that stand for the same code."""
    return next((same[0] for same in SAME if sources in same), sources)


@functools.cache  # as they were when the program was loaded
def _loaded() -> dict[str, bytes]:
    return _sources(ROOT)


def _sources(root: Path) -> dict[str, bytes]:
    """The sources that decide the numbers, by name: what nothing imports is none of them."""
    found, todo = {}, list(STARTS)
    while todo:
        name = todo.pop()
        if name in found or not name.startswith(DECIDING) or not (root / name).is_file():
            continue
        found[name] = (root / name).read_bytes()
        for node in ast.walk(ast.parse(found[name])):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = name.split("/")[:-node.level] if node.level else []
                module = ".".join(filter(None, (*above, node.module)))
                modules = [module, *(f"{module}.{alias.name}" for alias in node.names)]
            for module in modules:
                parts = module.split(".")
                todo += ["/".join(parts) + ".py"]
                todo += ["/".join((*parts[:i], "__init__.py")) for i in range(1, len(parts) + 1)]
    return found


@functools.cache
def _git() -> dict:
    """What git says of this very repository: it only reads, and nothing that GIT_* names."""
    unknown = {"commit": None, "dirty": None}
    if not (ROOT / ".git").exists():
        return unknown
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    own |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_CEILING_DIRECTORIES": str(ROOT.parent)}
    command = ["git", "-C", str(ROOT), "-c", "core.fsmonitor=false", "status", "--porcelain=v2",
               "--branch", "--untracked-files=no", "--ignore-submodules"]
    try:
        done = subprocess.run(command, capture_output=True, env=own, timeout=PATIENCE, check=True,
                              stdin=subprocess.DEVNULL)
        lines = done.stdout.decode(errors="replace").splitlines()
        commit, = (line.split()[2] for line in lines if line.startswith("# branch.oid "))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        why = (getattr(error, "stderr", b"") or b"").decode(errors="replace").strip() or error
        print(one_line(f"git does not tell the version, so config.json names none: {why}"),
              file=sys.stderr)
        return unknown
    if commit == "(initial)":
        return unknown
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines)}
