"""The terminal, or whatever stands in its place: Ctrl-C, output nobody takes, names it cannot show.

Every command calls `begin` before it imports anything that takes time.
"""

import contextlib
import io
import os
import select
import signal
import sys
from collections.abc import Iterator

PACKAGES = ("torch", "numpy", "PIL", "tqdm", "matplotlib")


class Unfailing(io.FileIO):
    """A reader may go, a disk may fill: the rest is dropped, and the run goes on."""

    def write(self, data) -> int:
        with contextlib.suppress(OSError):
            while (written := super().write(data)) is None:  # not blocking, and full
                select.select([], [self], [])
            return written
        return len(data)


def begin() -> None:
    """Have Ctrl-C end this process in one line, and output never end it."""
    _on_interrupt(_leave)
    sys.excepthook = _explain
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # else the next file would get its number
        if descriptor:
            stream = io.BufferedWriter(Unfailing(descriptor, "w", closefd=False))
            old = getattr(sys, name)
            setattr(sys, name, io.TextIOWrapper(
                stream, old.encoding if old else "utf-8", "replace",
                line_buffering=name == "stderr" or stream.isatty()))
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        print(f"{sys.argv[0]}: error: the working directory is gone; cd to another one",
              file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def gently() -> Iterator[None]:
    """Within, the first Ctrl-C raises KeyboardInterrupt: locks go, the last epoch is written."""
    before = signal.getsignal(signal.SIGINT)
    _on_interrupt(_raise)
    try:
        yield
    finally:
        _on_interrupt(before)


def _explain(kind: type, error: BaseException, trace) -> None:
    """Tell a package that is missing in one line; all else is a fault, with its traceback."""
    if not issubclass(kind, ModuleNotFoundError) or error.name not in PACKAGES:
        return sys.__excepthook__(kind, error, trace)
    print(f"{sys.argv[0]}: error: this Python has no {error.name}; take that of .venv (make "
          "train), or: pip install -r requirements.txt", file=sys.stderr)
    os._exit(2)


def _on_interrupt(action) -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as for a job in the background
        signal.signal(signal.SIGINT, action)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # quickstart.py blocks it


def _leave(*_) -> None:
    """End at once: an exception could abort torch while it is imported."""
    with contextlib.suppress(OSError):
        os.write(2, b"\n" * os.isatty(2) + b"interrupted\n")
    os._exit(130)


def _raise(*_) -> None:
    _on_interrupt(_leave)
    raise KeyboardInterrupt
