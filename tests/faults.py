"""Faults to order: main.py in a forked child that is killed, or refused by the system, at a chosen operation."""

import ast
import contextlib
import faulthandler
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
import torch._dynamo  # the optimizer imports it at its first step, which would take each child seconds
from in_process import main, only_run, untimed

from store import files
from store.run import RunFolder

FULL = os.environ.get("FAULTS") == "full"  # the whole count, or a tenth


def count(whole: int) -> int:
    return whole if FULL else max(1, whole // 10)


class Operations:
    """Watches each write, fsync and rename of files; calls `fault(index, moment)` before, within and after each.

    `log` lists them: ("write", path), ("fsync", path), ("rename", from, to).
    """

    def __init__(self, fault=lambda index, moment: None):
        self.fault, self.log = fault, []

    def around(self, entry: tuple, action):
        index = len(self.log)
        self.log.append(entry)
        self.fault(index, "before")
        try:
            return action()
        finally:  # there may be nothing to rename
            self.fault(index, "after")

    def __enter__(self):
        self.stack = contextlib.ExitStack()
        fsync, replace = os.fsync, os.replace

        def watched_open(path, mode="r", **keywords):
            file = open(path, mode, **keywords)  # noqa: SIM115
            return Watched(file, self, path) if mode == "wb" else file

        def watched_fsync(descriptor):
            path = os.path.realpath(f"/proc/self/fd/{descriptor}") if sys.platform == "linux" else ""
            self.around(("fsync", path), lambda: fsync(descriptor))

        def watched_replace(source, target):
            self.around(("rename", str(source), str(target)), lambda: replace(source, target))

        for place, name, new in ((files, "open", watched_open), (os, "fsync", watched_fsync),
                                 (os, "replace", watched_replace)):
            self.stack.enter_context(patch.object(place, name, new, create=True))
        return self

    def __exit__(self, *exception):
        self.stack.close()


class Watched:
    """A file whose `write` is an operation, with half of the bytes on the disk at the moment "within"."""

    def __init__(self, file, operations: Operations, path):
        self.file, self.operations, self.path = file, operations, str(path)

    def write(self, data: bytes) -> None:
        def halves():
            half = len(data) // 2
            self.file.write(data[:half])
            self.file.flush()
            self.operations.fault(len(self.operations.log) - 1, "within")
            self.file.write(data[half:])

        self.operations.around(("write", self.path), halves)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()


def moments(log: list[tuple]) -> list[tuple[int, str]]:
    return [(index, moment) for index, entry in enumerate(log)
            for moment in ("before", "within", "after") if moment != "within" or entry[0] == "write"]


def at(point: tuple[int, str], action):
    """A fault for Operations: does `action` at (index, moment)."""
    return lambda index, moment: action() if (index, moment) == point else None


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Child:
    """A forked process that does `work()`, its output in the file `log`. Its exit code is what `work` returns."""

    def __init__(self, work, log: Path):
        self.log = log
        log.touch()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                # Text goes to the file as it comes, as a process may end at any moment.
                out = open(log, "a", buffering=1)  # noqa: SIM115
                sys.stdout = sys.stderr = out
                faulthandler.enable(out)
                torch.set_num_threads(1)
                code = work()
            except BaseException:
                traceback.print_exc()
            finally:
                with contextlib.suppress(Exception):
                    out.flush()
                os._exit(code)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self, limit: float = 120) -> int:
        """The exit code; -9 if it was killed."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        for number in (signal.SIGABRT, signal.SIGCONT):  # it leaves its stack in the log
            os.kill(self.pid, number)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"not finished after {limit} s: {self.log.read_text()}")


def outcome(folder: Path) -> dict:
    """All that a finished run leaves, but for the seconds; weights as their bytes."""
    best = torch.load(folder / "best.pt", weights_only=True)
    weights = {key: (tuple(value.shape), str(value.dtype), value.contiguous().numpy().tobytes())
               for key, value in best.pop("network").items()}
    lines = (folder / "metrics.csv").read_text().splitlines()
    best.pop("seconds")
    result = RunFolder(folder).result()
    result.pop("seconds")
    return {"metrics": [line.rpartition(",")[0] for line in lines], "weights": weights, "best": best, "result": result,
            # One that is killed after its last file leaves a lock file, which nobody holds.
            "files": {path.name for path in folder.iterdir()} - {"checkpoint.previous.pt", "lock"},
            "rows": untimed(torch.load(folder / "checkpoint.pt", weights_only=True)["rows"])}


class Case(NamedTuple):
    """A command line: a network and its flags, small enough for a second."""

    network: str
    flags: tuple

    def run(self, data: Path, place: Path) -> int:
        return main(self.network, "--device", "cpu", "--data_dir", data, "--runs_dir", place, *self.flags)

    def folder(self, place: Path) -> Path:
        return only_run(place, self.network).folder


def case(network: str, seed: int = 0) -> Case:
    own = {"mlp": ("--batch_size", 32, "--num_epochs", 3, "--hidden_size", 16),
           "cnn": ("--batch_size", 40, "--num_epochs", 2)}[network]
    return Case(network, (*own, "--seed", seed))


class Undisturbed:
    """What undisturbed runs leave, each trained once; and their operations."""

    def __init__(self, data: Path, place: Path):
        self.data, self.place, self.known, self.seconds = data, place, {}, {}

    def __call__(self, wanted: Case) -> tuple[dict, list, Path]:
        """Outcome, operations, and the folder for --runs_dir."""
        if wanted not in self.known:
            place = self.place / str(len(self.known))

            def work() -> int:
                with Operations() as operations:
                    code = wanted.run(self.data, place)
                (self.place / "operations").write_text(repr(operations.log))
                return code

            started = time.monotonic()
            child = Child(work, self.place / "log")
            assert child.wait() == 0, (self.place / "log").read_text()
            self.seconds[wanted] = time.monotonic() - started
            log = ast.literal_eval((self.place / "operations").read_text())
            self.known[wanted] = outcome(wanted.folder(place)), log, place
        return self.known[wanted]
