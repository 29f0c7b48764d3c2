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
import errno
import fcntl
import io
import json
import os
import socket
import stat
import sys
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path

COLUMNS = ("epoch", "train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc", "seconds")
RESULT = ("epochs", "best_epoch", "val_loss", "val_acc", "test_loss", "test_acc", "seconds")
MAX_CHECKPOINT = 2 ** 32  # bytes: that of the largest network has 3.3 GB
MAX_TEXT = 2 ** 26  # of metrics.csv and of a JSON file
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


class UserError(Exception):
    """What the user can mend, in one sentence; the program prints it and exits with code 2."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """Fit for one line of a terminal: names of files, folders and classes can hold anything."""
    line = " ".join(text.splitlines())
    return "".join(letter if letter.isprintable() or letter.isspace() else "?" for letter in line)


def no_link(path: str, flags: int) -> int:
    """An `opener` for files to write: a link in their place may lead anywhere, and a pipe would wait for a reader."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def read_file(path: Path, most: int = MAX_TEXT) -> bytes:
    """The bytes of a file; ValueError for a pipe, which may never end, and for more bytes than we would write."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        raise ValueError(f"{path} is no file of at most {most} bytes")
    return path.read_bytes()


def write_file(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds all of it or stays as it was, whatever happens, power cuts included."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb", opener=no_link) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}; mend that and run the same command again") from error


def _sync_folder(folder: Path) -> None:
    """A rename survives a power cut only once its folder has reached the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}; name another one") from error


@contextlib.contextmanager
def lock(path: Path, wait: bool = True):
    """Hold the lock file `path`; yields False, without it, if another process has it and `wait` is False.
    Yields the open file otherwise.

    The system releases the lock when its holder dies. The file names the holder and goes when it is done.
    """
    file = _try_lock(path)
    while file is None and wait:
        time.sleep(0.2)
        file = _try_lock(path)
    if file is None:
        yield False
        return
    with file:
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
            file.truncate(0)
            holder = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
            os.write(file.fileno(), holder.encode())
        try:
            yield file
        finally:
            with contextlib.suppress(OSError):
                if is_same(file, path):
                    path.unlink()


def is_same(file, path: Path) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _try_lock(path: Path):
    make_folder(path.parent)
    try:
        file = open(path, "r+" if path.exists() else "a+", opener=no_link)  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_same(file, path):
                _refuse_idle_locks(path)
                return file
        except (BlockingIOError, FileNotFoundError):
            pass  # held by another process, or its file went just now
        except BaseException:
            file.close()
            raise
        file.close()
    except FileNotFoundError:
        pass  # the file, or the whole folder, went between two calls
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise UserError(f"the file system of {path.parent} has no working locks ({error.strerror}), so two "
                            "processes could train one run; choose a --runs_dir on another file system") from error
        raise UserError(f"cannot lock {path}: {error.strerror or error}; mend that or choose another "
                        "--runs_dir") from error
    return None


def _refuse_idle_locks(path: Path) -> None:
    """Some network mounts grant every lock: a lock just taken must be refused when it is asked for again."""
    with open(path) as second:
        try:
            fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    raise OSError(errno.ENOLCK, "it grants one lock twice")


def is_locked(path: Path) -> bool:
    try:
        with open(path, opener=no_link) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def read_json(path: Path) -> dict | None:
    """The object in a JSON file; None if the file is missing or damaged."""
    try:
        value = json.loads(read_file(path))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def metrics_row(cells: dict[str, str]) -> dict:
    """A row of metrics.csv as numbers."""
    return {key: int(cells[key]) if key == "epoch" else float(cells[key]) for key in COLUMNS}


def as_csv(columns: tuple[str, ...], rows: Iterable[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def is_number(value) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300  # no whole number that is too large for a float


def write_json(path: Path, value: dict) -> None:
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


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
