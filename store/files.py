"""Safe files and locks: a file appears whole or not at all, and a lock goes with its holder."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import socket
import stat
import sys
import time
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    print("error: this needs the file locks of Linux or macOS; on Windows, run it in WSL",
          file=sys.stderr)
    sys.exit(2)

ROOT = Path(__file__).resolve().parents[1]
MAX_TEXT = 2 ** 26  # bytes of metrics.csv and of a JSON file
MAX_HOLDER = 300  # of the text in a lock file
SEAL = b"\nsha256 "  # and 64 letters
LENGTH = len(SEAL) + 64
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}  # for a folder: CIFS and some FUSE


class UserError(Exception):
    """What the user can mend, in one sentence; the program prints it and exits with code 2."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """Fit for one line of a terminal: names of files, folders and classes can hold anything."""
    line = " ".join(text.splitlines())
    return "".join(letter if letter.isprintable() or letter.isspace() else "?" for letter in line)


def plural(n: int, thing: str) -> str:
    """1 run, 2 runs."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def no_link(path: str, flags: int) -> int:
    """An `opener` for files to write: a link may lead anywhere, a pipe would wait for a reader."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _no_wait(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_file(path: Path, most: int = MAX_TEXT, links: bool = True) -> bytes:
    """The bytes of a file; ValueError for a pipe, which may never end, and for too many bytes.

    Without `links`, OSError for a link.
    """
    with open(path, "rb", opener=_no_wait if links else no_link) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise ValueError(f"{path} is no file of at most {most} bytes")
        return file.read()


def write_file(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds all of it or stays as it was, power cuts included."""
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
        raise UserError(f"cannot write {path}: {error.strerror}; mend that and run the same "
                        "command again") from error


_unsynced: set[int] = set()  # devices whose folders take no fsync


def _sync_folder(folder: Path) -> None:
    """A rename survives a power cut only once its folder has reached the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        device = os.fstat(descriptor).st_dev
        if error.errno not in NO_FSYNC:
            raise
        if device not in _unsynced:
            print(one_line(f"the file system of {folder} cannot sync folders: a power cut may undo "
                           "the last epochs"), file=sys.stderr)
        _unsynced.add(device)
    finally:
        os.close(descriptor)


def sealed(data: bytes) -> bytes:
    """The bytes of torch.save with their digest behind them, which torch.load passes over."""
    return data + SEAL + hashlib.sha256(data).hexdigest().encode()


def is_whole(data: bytes) -> bool:
    """Whether bytes of torch.save are as they were written: by their digest, or, where PyTorch
    alone or an older version wrote them, by the archive's own sums."""
    body, seal, digest = data[:-LENGTH], data[-LENGTH:-64], data[-64:]
    has_digest = seal == SEAL
    if not has_digest:
        body = data
    elif hashlib.sha256(body).hexdigest().encode() != digest:
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            parts = archive.infolist()
            # torch.save packs nothing, marks nothing as a folder, and ends with the directory
            plain = all(part.file_size == part.compress_size and not part.external_attr
                        for part in parts) and body[-22:-18] == b"PK\5\6"
            small = sum(part.file_size for part in parts) <= len(body)
            return plain and small and (has_digest or archive.testzip() is None)
    except Exception:  # zipfile raises many kinds on damaged input; each one means damaged
        return False


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}; name another "
                        "one") from error


@contextlib.contextmanager
def lock(path: Path, wait: bool = True):
    """Hold the lock file `path`; without `wait`, yield None if another process has it.

    The system releases the lock when its holder dies. The file names the holder, and its status is
    yielded: `is_same` tells whether it is still there.
    """
    taken = _try_lock(path)
    if taken is None and wait:
        print(one_line(f"waiting for {path}, held by {holder(path) or 'nobody'}"), file=sys.stderr)
    while taken is None and wait:
        time.sleep(0.2)
        taken = _try_lock(path)
    if taken is None:
        yield None
        return
    held, status = taken
    try:
        with contextlib.suppress(OSError), open(path, "w", opener=no_link) as file:
            file.write(f"process {os.getpid()} on {socket.gethostname()} since "
                       f"{time.strftime('%Y-%m-%d %H:%M:%S')}")  # a full disk keeps no one out
        yield status
    finally:
        with contextlib.suppress(OSError):
            if is_same(status, path):
                path.unlink()
        held.release()


def is_same(status: os.stat_result, path: Path) -> bool:
    """Whether a file is still the one at `path`."""
    try:
        return os.path.samestat(status, os.stat(path))
    except FileNotFoundError:
        return False


def _try_lock(path: Path) -> tuple | None:
    """A FileLock that holds `path`, and the file's status; None while another process has it."""
    from filelock import FileLock, Timeout  # not for --help

    make_folder(path.parent)
    held = FileLock(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a soft lock, which is refused
            held.acquire(blocking=False)
        _refuse_idle_locks(path)
        if not stat.S_ISREG((status := path.stat()).st_mode):
            raise OSError("it is no plain file")
        return held, status
    except (Timeout, FileNotFoundError):
        why = None  # held, or the file or its folder went just now
    except OSError as error:
        why = error
    with contextlib.suppress(OSError):
        held.release(force=True)
    if why and why.errno in NO_LOCKS:
        raise UserError(f"the file system of {path.parent} has no working locks ({why.strerror}), "
                        "so two processes could train one run; choose a --runs_dir on another file "
                        "system") from why
    if why:
        raise UserError(f"cannot lock {path}: {why.strerror or why}; mend that or choose another "
                        "--runs_dir") from why
    return None


def _refuse_idle_locks(path: Path) -> None:
    """A lock just taken must be refused when asked for again: some network mounts grant every one,
    and where a file system has none, FileLock makes do with the file's mere presence."""
    with open(path, opener=no_link) as second:
        try:
            fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    raise OSError(errno.ENOLCK, "it grants one lock twice")


def holder(path: Path) -> str:
    """Who holds the lock, in words; empty if nobody does."""
    try:
        with open(path, "rb", opener=no_link) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read(MAX_HOLDER).decode(errors="replace")
                return one_line(text) or "another process"
    except OSError:
        pass
    return ""


def read_json(path: Path, links: bool = True) -> dict | None:
    """The object in a JSON file; None if the file is missing or damaged."""
    try:
        value = json.loads(read_file(path, links=links))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: dict) -> None:
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def as_csv(columns: tuple[str, ...], rows: Iterable[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def is_number(value) -> bool:
    """Whether it is a number that can be counted with: finite, and its square too."""
    return isinstance(value, int | float) and abs(value) < 1e50
