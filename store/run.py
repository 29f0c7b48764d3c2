"""A run on disk, and what is known of it.

A run is the folder `runs/<mlp|cnn>/<name>/` with

    config.json     settings, versions, device, threads, data set; if several versions or machines
                    made the run, `origins`: each with its first epoch
    checkpoint.pt   everything to go on from, after the last finished epoch
    checkpoint.previous.pt   the one before, should the last one be damaged
    metrics.csv     a row per epoch
    best.pt         the network at its best validation accuracy
    predictions.npz   the class that it predicts for each validation and test image
    result.json     written last: the run is finished
    failed.json     why the run ended otherwise, in which epoch and step
    lock            held, and present, while a process trains the run

`checkpoint.pt` is the truth. `metrics.csv` and `best.pt` are written from it, after it, so a
process may be killed at any moment: the next one resumes from the checkpoint and writes them again.

`RunFolder` holds, writes and reads such a folder; `Run` is what is known of a run, read from a
folder or from results/. Neither knows a network or imports torch: a thousand runs are read in no
time.
"""

import contextlib
import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from store.code import canonical
from store.files import (
    UserError,
    as_csv,
    holder,
    is_number,
    is_same,
    is_whole,
    lock,
    one_line,
    read_file,
    read_json,
    write_file,
    write_json,
)
from store.settings import Settings

COLUMNS = ("epoch", "train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc",
           "seconds")
RESULT = ("epochs", "best_epoch", "val_loss", "val_acc", "test_loss", "test_acc", "seconds")
CHECKPOINTS = ("checkpoint.pt", "checkpoint.previous.pt")
FILES = ("config.json", "metrics.csv", "best.pt", "predictions.npz", "result.json", "failed.json",
         *CHECKPOINTS)
ORIGIN = ("code", "versions", "device", "processor", "threads", "arithmetic", "fast")  # in config
MAX_METRICS = 2 ** 24  # bytes: 200,000 epochs
STATES = ("finished", "running", "interrupted", "failed", "missing")


def metrics_row(cells: dict[str, str]) -> dict:
    """A row of metrics.csv as numbers; ValueError for what is none, or cannot be counted with."""
    row = {key: int(cells[key]) if key == "epoch" else float(cells[key]) for key in COLUMNS}
    if not all(map(is_number, row.values())):
        raise ValueError("a number that is not finite")
    return row


def duration(seconds: float | None) -> str:
    """In words."""
    if seconds is None:
        return "unknown"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Run:
    """What is known of one run, finished or not.

    Its name is SETTING_seedSEED[_VARIANT], the variant being empty at the defaults.
    """

    network: str
    name: str
    config: dict
    rows: list[dict]  # COLUMNS, one per epoch
    result: dict | None = None
    failure: dict | None = None
    worker: str = ""  # who trains it, if anybody does

    @cached_property
    def _parts(self) -> tuple[str, str, str]:
        match = re.fullmatch(r"(.+)_seed(\d+)(?:_(.+))?", self.name)
        return match.groups(default="") if match else (self.name, "0", "")

    setting = property(lambda self: self._parts[0])
    seed = property(lambda self: int(self._parts[1]))
    variant = property(lambda self: self._parts[2])

    @cached_property
    def settings(self) -> Settings | None:
        """As its name tells; None for a folder of another kind of name."""
        try:
            return Settings.parse(self.network, self.name)
        except ValueError:
            return None

    @cached_property
    def own_name(self) -> str:
        """As config.json tells; another than the folder's name if this is a copy."""
        try:
            return Settings.read(self.config).name if self.config else self.name
        except ValueError:
            return self.name

    @property
    def is_copy(self) -> bool:
        """Whether the folder was copied or renamed: it is no run of that name."""
        return self.own_name != self.name

    @property
    def codes(self) -> list[str]:
        """The versions of the code that made it, by the hash of their sources."""
        origins = self.config.get("origins")
        of = [*(origins if isinstance(origins, list) else []), self.config]
        codes = [origin.get("code") for origin in of if isinstance(origin, dict)]
        hashes = [canonical(str(code.get("hash"))) for code in codes if isinstance(code, dict)]
        return list(dict.fromkeys(hashes))

    @property
    def data(self) -> dict:
        """What data it learned from, as config.json tells."""
        data = self.config.get("data")
        data = data if isinstance(data, dict) else {}
        return {key: value for key, value in data.items()
                if key != "folder" or isinstance(value, str)}

    @property
    def fingerprint(self) -> str:
        return str(self.data.get("fingerprint", ""))

    @property
    def classes(self) -> int:
        """How many classes its data has; as many as CIFAR-10 where that is not known."""
        classes = self.data.get("classes")
        return len(classes) if isinstance(classes, list) and classes else 10

    @property
    def num_epochs(self) -> int:
        """How many epochs were asked for."""
        epochs = self.config.get("num_epochs")
        return epochs if isinstance(epochs, int) and epochs > 0 else len(self.rows)

    @property
    def seconds_per_epoch(self) -> float | None:
        return sum(row["seconds"] for row in self.rows) / len(self.rows) if self.rows else None

    def state(self, num_epochs: int) -> str:
        """One of STATES, for a run that is to have so many epochs."""
        if self.result and self.result["epochs"] >= num_epochs:
            return "finished"
        if self.worker:
            return "running"
        if self.failure:
            return "failed"
        return "interrupted" if self.config or self.rows else "missing"


class RunFolder:
    """The folder of one run. Reading is free; write only inside `with hold() as held`, if held."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.name = folder.name
        self.lock_file = None

    @contextlib.contextmanager
    def hold(self):
        with lock(self.folder / "lock", wait=False) as self.lock_file:
            yield self.lock_file is not None

    # reading

    def read(self) -> Run:
        worker = holder(self.folder / "lock")  # first: a run that ends now is not interrupted
        return Run(self.folder.parent.name, self.name, self.config() or {}, self.metrics(),
                   self.result(), self.failure(), worker)

    def config(self) -> dict | None:
        config = read_json(self.folder / "config.json", links=False)
        return config if config and isinstance(config.get("data"), dict) else None

    def result(self) -> dict | None:
        result = read_json(self.folder / "result.json", links=False)
        fits = result and all(is_number(result.get(key)) for key in RESULT)
        return result if fits and type(result["epochs"]) is int else None

    def failure(self) -> dict | None:
        failure = read_json(self.folder / "failed.json", links=False)
        return failure if failure and is_number(failure.get("time")) else None

    def finished(self, num_epochs: int) -> bool:
        result = self.result()
        return result is not None and result["epochs"] >= num_epochs

    def metrics(self) -> list[dict]:
        """The rows of metrics.csv, epochs as int and the rest as float; a damaged row ends them."""
        rows = []
        with contextlib.suppress(OSError, KeyError, TypeError, ValueError, csv.Error):
            text = read_file(self.folder / "metrics.csv", MAX_METRICS, links=False)
            text = text.decode("utf-8-sig", errors="replace")  # as spreadsheets save it
            separator = ";" if text.startswith("epoch;") else ","
            for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=separator):
                rows.append(metrics_row(row))
        return rows

    @cached_property  # a command tries it once
    def lost_views(self) -> bool:
        """Whether metrics.csv or best.pt is not as it was written, and a checkpoint has both."""
        if not self.has_checkpoint():
            return False
        metrics, best = self.folder / "metrics.csv", self.folder / "best.pt"
        try:
            written = read_file(metrics, MAX_METRICS, links=False)
            return (written != as_csv(COLUMNS, self.metrics())
                    or not is_whole(read_file(best, links=False)))
        except ValueError:
            return not (metrics.is_file() and best.is_file())  # they are too large to be compared
        except OSError:
            return True

    def link(self) -> Path | None:
        """A link in the place of one of its files: it may lead anywhere."""
        paths = (self.folder / name for name in FILES)
        return next((path for path in paths if path.is_symlink()), None)

    def checkpoints(self, most: int) -> Iterator[tuple[Path, bytes]]:
        """The checkpoints of at most so many bytes, last one first; a damaged one is named."""
        for path in (self.folder / name for name in CHECKPOINTS):
            if path.exists():
                try:
                    data = read_file(path, most, links=False)
                except ValueError:
                    data = b""
                if is_whole(data):
                    yield path, data
                else:
                    print(one_line(f"{path} is damaged and not used"), file=sys.stderr)

    def has_checkpoint(self) -> bool:
        return any((self.folder / name).exists() for name in CHECKPOINTS)

    # writing

    def start(self, config: dict, epochs: int, num_epochs: int) -> None:
        """Note settings and origin of a run that goes on from `epochs` to `num_epochs`."""
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        (self.folder / "failed.json").unlink(missing_ok=True)
        before = self.config() or {}
        if before and epochs >= num_epochs:
            return  # nothing is trained, but a lost file is written again
        made_by = origins(before, config, epochs)
        config |= {"origins": made_by} if len(made_by) > 1 else {}
        if before != config:
            write_json(self.folder / "config.json", config)

    def step_back(self) -> None:
        """Put the checkpoint before in the place of one that is missing or of no use."""
        os.replace(self.folder / "checkpoint.previous.pt", self.folder / "checkpoint.pt")

    def save(self, rows: list[dict], checkpoint: bytes, best: dict[str, bytes]) -> None:
        """Write the state after an epoch, with the files of the best one if it is that."""
        path = self.folder / "checkpoint.pt"
        if self.lock_file and not is_same(self.lock_file, self.folder / "lock"):
            raise UserError(f"{self.folder / 'lock'} was removed, so another process may train "
                            "this run; nothing more is written here, run the same command again")
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, self.folder / "checkpoint.previous.pt")
        write_file(path, checkpoint)
        self.save_views(rows, best)

    def save_views(self, rows: list[dict], best: dict[str, bytes]) -> None:
        """metrics.csv and the best epoch's files, which say what the checkpoint holds."""
        self.lost_views = False
        write_file(self.folder / "metrics.csv", as_csv(COLUMNS, rows))
        for name, content in best.items():
            write_file(self.folder / name, content)

    def finish(self, result: dict) -> None:
        write_json(self.folder / "result.json", result)

    def fail(self, failure: dict) -> None:
        write_json(self.folder / "failed.json", failure)


def origins(before: dict, config: dict, epochs: int) -> list[dict]:
    """What made which epochs, each from its first one on, where `config` makes those to come."""
    def origin(of: dict, epoch: int) -> dict:
        return {"epoch": epoch, **{key: of.get(key) for key in ORIGIN}}

    known = before.get("origins")
    if not isinstance(known, list) or not all(
            isinstance(one, dict) and is_number(one.get("epoch")) for one in known):
        known = [origin(before, 1)] if before else []
    known = [one for one in known if one["epoch"] <= epochs]
    new = origin(config, epochs + 1)
    same = known and {**known[-1], "epoch": 0} == {**new, "epoch": 0}
    return known if same else [*known, new]


def forget_failures(folders: Iterable[RunFolder]) -> None:
    """Let failed runs be trained again, but for one that another process has taken up already."""
    for folder in folders:
        if folder.failure():
            with folder.hold() as held:
                if held:
                    (folder.folder / "failed.json").unlink(missing_ok=True)
