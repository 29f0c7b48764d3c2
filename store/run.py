"""A run on disk: its folder, its lock, and files that appear whole or not at all.

A run is the folder `runs/<mlp|cnn>/<name>/` with

    config.json     settings, versions, device, threads, data set
    checkpoint.pt   everything to go on from, after the last finished epoch
    checkpoint.previous.pt   the one before, should the last one be damaged
    metrics.csv     a row per epoch
    best.pt         the network at its best validation accuracy
    result.json     written last: the run is finished
    failed.json     instead of a result: why the run ended, in which epoch and step
    lock            held, and present, while a process trains the run

`checkpoint.pt` is the truth. `metrics.csv` and `best.pt` are written from it, after it, so a process may
be killed at any moment: the next one takes up the checkpoint and writes them again.

Nothing in here knows what a network is or imports torch, so the state of a thousand runs is read in no time.
"""

import contextlib
import csv
import io
import os
import sys
import zipfile
from pathlib import Path

from store.files import (
    MAX_CHECKPOINT,
    UserError,
    as_csv,
    is_locked,
    is_number,
    is_same,
    lock,
    one_line,
    read_file,
    read_json,
    write_file,
    write_json,
)

COLUMNS = ("epoch", "train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc", "seconds")
RESULT = ("epochs", "best_epoch", "val_loss", "val_acc", "test_loss", "test_acc", "seconds")


def metrics_row(cells: dict[str, str]) -> dict:
    """A row of metrics.csv as numbers."""
    return {key: int(cells[key]) if key == "epoch" else float(cells[key]) for key in COLUMNS}


class Run:
    """The folder of one run. Reading is free for all; write only inside `with run.hold() as held`, if held."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.name = folder.name
        self.lock_file = None

    @contextlib.contextmanager
    def hold(self):
        with lock(self.folder / "lock", wait=False) as self.lock_file:
            yield bool(self.lock_file)

    def holder(self) -> str:
        """Who holds the lock, in words; empty if nobody does."""
        path = self.folder / "lock"
        if not is_locked(path):
            return ""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return path.read_text() or "another process"
        return "another process"

    def config(self) -> dict | None:
        config = read_json(self.folder / "config.json")
        return config if config and isinstance(config.get("data"), dict) else None

    def result(self) -> dict | None:
        result = read_json(self.folder / "result.json")
        return result if result and all(is_number(result.get(key)) for key in RESULT) else None

    def failure(self) -> dict | None:
        failure = read_json(self.folder / "failed.json")
        return failure if failure and is_number(failure.get("time")) else None

    def finished(self, num_epochs: int) -> bool:
        result = self.result()
        return result is not None and result["epochs"] >= num_epochs

    def metrics(self) -> list[dict]:
        """The rows of metrics.csv, epochs as int and the rest as float; a damaged row ends them."""
        rows = []
        try:
            text = read_file(self.folder / "metrics.csv").decode(errors="replace")
            for row in csv.DictReader(io.StringIO(text, newline="")):
                rows.append(metrics_row(row))
        except (OSError, KeyError, TypeError, ValueError, csv.Error):
            pass
        return rows

    def state(self, num_epochs: int) -> str:
        """finished, failed, running, interrupted or missing."""
        held = is_locked(self.folder / "lock")  # asked first: a run that ends just now must not look interrupted
        if self.finished(num_epochs):
            return "finished"
        if held:
            return "running"
        if self.failure():
            return "failed"
        return "interrupted" if (self.folder / "config.json").exists() else "missing"

    def start(self, config: dict) -> None:
        """Note the settings of a new run, or of one that goes on."""
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        for outcome in ("failed.json", "result.json"):
            (self.folder / outcome).unlink(missing_ok=True)
        if self.config() != config:
            write_json(self.folder / "config.json", config)

    def checkpoints(self):
        """The bytes of the checkpoints, last one first; a damaged one is named and passed over."""
        for path in (self.folder / "checkpoint.pt", self.folder / "checkpoint.previous.pt"):
            if path.exists():
                try:
                    data = read_file(path, MAX_CHECKPOINT)
                except ValueError:
                    data = b""
                if intact(data):
                    yield path, data
                else:
                    print(one_line(f"{path} is damaged and not used"), file=sys.stderr)

    def step_back(self) -> None:
        """Put the checkpoint before in the place of one that is missing or of no use."""
        os.replace(self.folder / "checkpoint.previous.pt", self.folder / "checkpoint.pt")

    def save(self, rows: list[dict], checkpoint: bytes, best: bytes | None) -> None:
        """Write the state after an epoch. `best` is given when that epoch's network is the best so far."""
        self.save_checkpoint(checkpoint)
        self.save_views(rows, best)

    def save_checkpoint(self, data: bytes) -> None:
        path = self.folder / "checkpoint.pt"
        if self.lock_file and not is_same(self.lock_file, self.folder / "lock"):
            raise UserError(f"{self.folder / 'lock'} was removed, so another process may train this run; nothing more "
                            "is written here, run the same command again")
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, self.folder / "checkpoint.previous.pt")
        write_file(path, data)

    def save_views(self, rows: list[dict], best: bytes | None) -> None:
        """metrics.csv and best.pt, which say what the checkpoint holds."""
        write_file(self.folder / "metrics.csv", as_csv(COLUMNS, rows))
        if best is not None:
            write_file(self.folder / "best.pt", best)

    def finish(self, result: dict) -> None:
        write_json(self.folder / "result.json", result)

    def fail(self, failure: dict) -> None:
        write_json(self.folder / "failed.json", failure)


def intact(data: bytes) -> bool:
    """Whether bytes that torch.save wrote are whole: it writes a zip archive with a CRC-32 of every part.

    It never compresses, so what would take more room unpacked is refused unread. It sets no attributes, which no CRC
    covers, either: torch.load skips a part that is marked as a folder, and its tensor is what was in memory before.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = archive.infolist()
            marked = any(part.external_attr for part in parts)
            small = sum(part.file_size for part in parts) <= len(data)
            return small and not marked and archive.testzip() is None
    except Exception:  # zipfile raises many kinds on damaged input; each one means damaged
        return False
