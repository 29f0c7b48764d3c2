"""Text cut to the width of the terminal; all of it where there is none."""

import os
import sys
from collections.abc import Iterable, Sequence

from store.files import one_line

DEFAULTS = ("_seed0", "_2d", "_False_False")  # of a run's name, which --evaluate does not need


def columns(stream=None) -> int:
    """Of the terminal; very many if there is none."""
    try:
        return os.get_terminal_size((stream or sys.stdout).fileno()).columns or 10 ** 6
    except (OSError, ValueError, AttributeError):
        return 10 ** 6


def short(name: str, room: int = 10 ** 6) -> str:
    """A run's name without its defaults, then without its middle, to fit the room."""
    for part in DEFAULTS:
        name = name.replace(part, "")
    half = max(2, room // 2 - 1)
    return name if len(name) <= room else f"{name[:half]}…{name[-half:]}"


def fitting(texts: Sequence[str], room: int) -> str:
    """The first text that fits, if any."""
    return next((text for text in texts if len(text) <= room), "")


def print_table(titles: Sequence[str], rows: Iterable[tuple[str, Sequence[str], str]],
                drop: Sequence[str] = ()) -> None:
    """Rows of a name, cells and a note; a row may lack its cells.

    If there is no room, names get short, then the columns in `drop` go in their order.
    """
    rows = [(one_line(name), cells, one_line(note)) for name, cells, note in rows]
    widths = {title: max([len(title), *(len(cells[i]) for _, cells, _ in rows if cells)])
              for i, title in enumerate(titles[1:])}
    shown, total = list(widths), columns()

    def room() -> int:  # for names
        return total - 1 - sum(widths[title] + 2 for title in shown)

    if max(len(name) for name, _, _ in rows) > room():
        longest = max(len(short(name)) for name, _, _ in rows)
        for title in drop:
            if longest > room():
                shown.remove(title)
        rows = [(short(name, room()), cells, note) for name, cells, note in rows]
    width = max(map(len, [titles[0], *(name for name, _, _ in rows)]))
    for name, cells, note in [(titles[0], titles[1:], ""), *rows]:
        parts = [f"{cell:>{widths[title]}}" for title, cell in zip(titles[1:], cells, strict=False)
                 if title in shown]
        print("  ".join([f"{name:{width}}", *parts, note]).rstrip())
