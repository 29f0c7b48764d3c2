"""Standard output and error, made safe: output that cannot be written never ends a run."""

import os
import sys


def open_closed_streams() -> None:
    """Some services start their programs without standard output or error."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
