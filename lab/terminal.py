"""The terminal or notebook: Ctrl-C, output that nobody reads, modules loaded before.

Every command calls `begin` before it imports anything that takes time. Older Pythons read this
file too, up to the line that refuses them.
"""

import contextlib
import importlib
import io
import os
import select
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "numpy", "PIL", "tqdm", "matplotlib", "filelock", "pandas", "scipy", "jinja2")


class BestEffortOutput(io.FileIO):
    """Ignore a closed pipe or a full disk, so that the run survives."""

    def write(self, data) -> int:
        with contextlib.suppress(OSError):
            written = super().write(data)
            while written is None:  # not blocking, and full
                select.select([], [self], [])
                written = super().write(data)
            return written
        return len(data)


def begin() -> None:
    """Have Ctrl-C end a script in one line, and output never end it.

    A notebook keeps its signals, streams and hooks.
    """
    if sys.version_info < (3, 10):  # noqa: UP036
        refuse("Python {}.{} is too old, this needs 3.10 or newer".format(*sys.version_info))
    caller = sys._getframe(1)
    while caller.f_back and caller.f_globals.get("__name__") == "runpy":  # python -m
        caller = caller.f_back
    if caller.f_back or sys.flags.inspect:  # called by a session that goes on afterwards
        return load_afresh()
    on_interrupt(exit_now)
    sys.excepthook = explain
    for name in list(os.environ):  # each is used unchecked, and a wrong value would end a run
        if name == "MPLBACKEND" or name.startswith("TQDM_") and name != "TQDM_DISABLE":
            del os.environ[name]
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # else the next file would get its number
        if descriptor:
            stream = io.BufferedWriter(BestEffortOutput(descriptor, "w", closefd=False))
            old = getattr(sys, name)
            setattr(sys, name, io.TextIOWrapper(
                stream, old.encoding if old else "utf-8", "replace",
                line_buffering=name == "stderr" or stream.isatty()))
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        refuse("the working directory is gone; cd to another one")


def refuse(reason: str) -> None:
    print(f"{sys.argv[0]}: error: {reason}", file=sys.stderr)
    sys.exit(2)


def load_afresh() -> None:
    """Load our modules again, so that an edit trains; refuse the session's own of these names."""
    ours = {path.parent.name if path.stem == "__init__" else path.stem
            for path in (*ROOT.glob("*.py"), *ROOT.glob("*/__init__.py"))}
    loaded = [name for name in sys.modules if name.partition(".")[0] in ours]
    for name in loaded:
        file = getattr(sys.modules[name], "__file__", None)
        if not (file and ROOT in Path(file).resolve().parents):
            refuse(f"the module {name} of {file or 'this session'} is loaded in the place of this "
                   "project's own; restart the session, or run the command in a shell")
    for name in loaded:
        del sys.modules[name]
    held = []
    with contextlib.suppress(ImportError, ValueError):  # told where needed; not the main thread
        before = signal.signal(signal.SIGINT, lambda *_: held.append(True))
        try:  # an interrupted import of torch fails for the rest of the session
            importlib.import_module("fast.machine")
        finally:
            signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt


@contextlib.contextmanager
def graceful_interrupt():
    """Within, the first Ctrl-C raises KeyboardInterrupt: locks go, the last epoch is written."""
    ours = signal.getsignal(signal.SIGINT) is exit_now
    if ours:
        on_interrupt(raise_once)
    try:
        yield
    finally:
        if ours:
            on_interrupt(exit_now)


def explain(kind, error, trace) -> None:
    """Tell a package that is missing in one line; all else is a fault, with its traceback."""
    if not issubclass(kind, ModuleNotFoundError) or error.name not in PACKAGES:
        return sys.__excepthook__(kind, error, trace)
    print(f"{sys.argv[0]}: error: this Python has no {error.name}; take that of .venv (make "
          "train), or: pip install -r requirements.txt", file=sys.stderr)
    os._exit(2)


def on_interrupt(action) -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as for a job in the background
        signal.signal(signal.SIGINT, action)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # quickstart.py blocks it


def exit_now(*_) -> None:
    """End at once: an exception could abort torch while it is imported."""
    with contextlib.suppress(OSError):
        os.write(2, b"\n" * os.isatty(2) + b"interrupted\n")
    os._exit(130)


def raise_once(*_) -> None:
    on_interrupt(exit_now)
    raise KeyboardInterrupt
