"""What the checks of run_grid.sh share: calling it, finding and killing its workers, comparing folders of runs."""

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GRID = ROOT / "run_grid.sh"
MARK = "RUN_GRID_CHECK"


def start(*arguments, **options) -> subprocess.Popen:
    """Start run_grid.sh; all its processes carry `.mark` in their environment, by which they can be found."""
    mark = uuid.uuid4().hex
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", MARK: mark, **options.pop("env", {})}
    # A parent in the background may have Ctrl-C ignored, under nohup SIGHUP too; a shell passes both on.
    process = subprocess.Popen([GRID, *map(str, arguments)], env=environment, start_new_session=True,
                               preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in (
                                   signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
                               **{"stdout": subprocess.DEVNULL, "stdin": subprocess.DEVNULL, **options})
    process.mark = mark
    return process


def call(*arguments, **options) -> subprocess.CompletedProcess:
    process = start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    output, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def processes(mark: str, part: str = "") -> list[int]:
    """The processes alive of a call of run_grid.sh, if `part` is in their command lines."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes() and (
                    part.encode() in (folder / "cmdline").read_bytes()):
                found.append(int(folder.name))
        except OSError:
            pass  # gone, or a stranger's
    return found


def workers(mark: str) -> list[int]:
    return processes(mark, "--worker")


def kill_worker(marks: list[str]) -> None:
    """kill -9 for a random worker."""
    wait_until(lambda: any(workers(mark) for mark in marks))
    os.kill(random.choice([pid for mark in marks for pid in workers(mark)]), signal.SIGKILL)


def wait_until(true, seconds: float = 120, every: float = 0.02) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(every)


def epochs_per_run(runs: Path) -> dict[str, int]:
    """How many epochs the workers have trained of each run, from their logs: more than it has, if any was lost."""
    lines = (line for log in runs.glob("logs/*") for line in log.read_text().splitlines())
    found = (re.match(r"(?:\d+/\d+ )?(\w+ \S+)  epoch \d+/", line) for line in lines)
    return dict(Counter(match[1] for match in found if match))


def differences(runs: Path, others: Path, count: int) -> list[str]:
    """In what the runs of one folder are not finished, or not the same as those of another; and stray files."""
    from store.run import RunFolder

    folders = sorted(others.glob("*/*/result.json"))
    found = [] if len(folders) == count else [f"{len(folders)} runs to compare with, not {count}"]
    for folder in (path.parent for path in folders):
        mine = runs / folder.relative_to(others)
        if not RunFolder(mine).result():
            found.append(f"{mine} is not finished")
            continue
        if essence(mine) != essence(folder):
            found.append(f"{mine} is not the same as {folder}")
        if names := {path.name for path in mine.iterdir()} ^ {path.name for path in folder.iterdir()}:
            found.append(f"{mine} has more or less files: {names}")
    return found + [f"{path} was left" for path in runs.glob("**/*.tmp")]


def essence(folder: Path) -> tuple:
    """What of a run must not depend on who died while it was trained: all but the time it took."""
    rows = [line.rsplit(",", 1)[0] for line in (folder / "metrics.csv").read_text().splitlines()]
    return rows, best(folder)


def best(folder: Path):
    """The network in best.pt, its tensors by their bytes."""
    import torch

    state = torch.load(folder / "best.pt", map_location="cpu", weights_only=True)
    digests = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in state["network"].items()}
    return digests, {key: value for key, value in state.items() if key not in ("network", "seconds")}
