"""Safe files and locks: a file appears whole or not at all, and a lock goes with its holder."""

import contextlib
import csv
import errno
import io
import json
import os
import socket
import stat
import sys
import time
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


def read_file(path: Path, most: int = MAX_TEXT) -> bytes:
    """The bytes of a file; ValueError for a pipe, which may never end, and for too many bytes."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        raise ValueError(f"{path} is no file of at most {most} bytes")
    return path.read_bytes()


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


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}; name another "
                        "one") from error


@contextlib.contextmanager
def lock(path: Path, wait: bool = True):
    """Hold the lock file `path` and yield it open; without `wait`, yield False if another has it.

    The system releases the lock when its holder dies. The file names the holder and goes with it.
    """
    file = _try_lock(path)
    if file is None and wait:
        print(one_line(f"waiting for {path}, held by {holder(path) or 'nobody'}"), file=sys.stderr)
    while file is None and wait:
        time.sleep(0.2)
        file = _try_lock(path)
    if file is None:
        yield False
        return
    with file:
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
            file.truncate(0)
            text = (f"process {os.getpid()} on {socket.gethostname()} since "
                    f"{time.strftime('%Y-%m-%d %H:%M:%S')}")
            os.write(file.fileno(), text.encode())
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
            raise UserError(f"the file system of {path.parent} has no working locks "
                            f"({error.strerror}), so two processes could train one run; choose a "
                            "--runs_dir on another file system") from error
        raise UserError(f"cannot lock {path}: {error.strerror or error}; mend that or choose "
                        "another --runs_dir") from error
    return None


def _refuse_idle_locks(path: Path) -> None:
    """Some network mounts grant every lock: one just taken must be refused when asked again."""
    with open(path) as second:
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


def read_json(path: Path) -> dict | None:
    """The object in a JSON file; None if the file is missing or damaged."""
    try:
        value = json.loads(read_file(path))
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
    """Whether it is a number that can be counted with: finite, and no whole one beyond floats."""
    return isinstance(value, int | float) and abs(value) < 1e300
