"""Which code makes the numbers: the commit, and a sum over the sources that decide them."""

import functools
import hashlib
import io
import subprocess
import tokenize
from pathlib import Path

from store.files import ROOT

# Folders count as a whole. Of fast/, gpu/ decides on a GPU alone.
DECIDING = ("layers", "mlp/model.py", "cnn/model.py", "training.py", "load_data.py",
            "lab/side_by_side.py", "store/dataset.py", "store/images.py", "fast")
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING}


@functools.cache  # the sources as they were when the first run began
def code_version(on_gpu: bool) -> dict:
    """`commit` and `dirty` (both None outside a git checkout) and the sources' `hash`."""
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit or None, "dirty": bool(changed) if commit else None,
            "hash": sources_hash(on_gpu)}


def sources_hash(on_gpu: bool, root: Path = ROOT) -> str:
    """The start of a SHA-256 over the sources, their comments and docstrings left out."""
    digest = hashlib.sha256()
    for place in DECIDING:
        paths = [root / place] if place.endswith(".py") else (root / place).rglob("*.py")
        for path in sorted(paths):
            name = path.relative_to(root).as_posix()
            hidden = name.startswith(".") or "/." in name  # ._x.py, checkpoints of notebooks
            if not hidden and (on_gpu or not name.startswith("fast/gpu/")):
                digest.update(f"{name}\n{_program(path.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()[:12]


def _program(source: str) -> str:
    """What of a source the interpreter acts on: no comment, no docstring, no layout of lines."""
    tokens, start = [], True
    for kind, text, *_ in tokenize.generate_tokens(io.StringIO(source).readline):
        if kind in SILENT or start and kind == tokenize.STRING:
            continue
        tokens.append({tokenize.INDENT: "{", tokenize.DEDENT: "}"}.get(kind, text))
        start = kind in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    return " ".join(tokens)


def _git(*arguments: str) -> str:
    """What git says of this repository; nothing where it is none, or there is no git."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True,
                              timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
