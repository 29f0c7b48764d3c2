"""A copy of the sources, and Python that runs in it: forked from one process that has loaded torch and pytest."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT

# Each line of its input is a folder and code; it answers with the exit code. What is imported before the fork is
# imported once for all.
SERVER = """
import gc, json, os, sys
import hypothesis.extra.pytestplugin, pytest, torch, torch.testing
from torch.autograd import gradcheck
gc.freeze()  # spares the children the collection of what was imported
for line in sys.stdin:
    folder, code = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        for name, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        torch.set_num_threads(1)
        status = 1
        try:
            exec(code)
            status = 0
        except SystemExit as end:
            status = int(end.code)
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def run_in() -> Iterator[Callable[[Path, str], tuple[int, str, str]]]:
    """A function that runs code in a folder and returns its exit code, stdout and stderr."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}) as server:
        def run(folder: Path, code: str) -> tuple[int, str, str]:
            print(json.dumps([str(folder), code]), file=server.stdin, flush=True)
            return int(server.stdout.readline()), (folder / "out").read_text(), (folder / "err").read_text()

        yield run
        server.stdin.close()


def copied(folder: Path, *sources: str) -> Path:
    for source in sources:
        (folder / source).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, folder / source)
    return folder


def edit(folder: Path, changes: dict[str, dict[str, str]]) -> None:
    """Replace texts of files, each of which has to stand there once."""
    for name, replacements in changes.items():
        text = (folder / name).read_text()
        for old, new in replacements.items():
            assert text.count(old) == 1, f"stands {text.count(old)} times in {name}: {old}"
            text = text.replace(old, new)
        (folder / name).write_text(text)
