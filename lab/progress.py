"""What a run shows while it trains, and the table at the end."""

import os
import sys
import time

from tqdm import tqdm

from lab.table import columns, fitting, print_table, short
from store.files import plural
from store.run import RunFolder, duration
from store.settings import Settings

BAR = "{desc} |{bar}| {n:.1f}/{total} [{elapsed}<{remaining}{postfix}]"
ROOM = 32  # columns of the bar and of the numbers beside it
LEAST = len("acc 0.000")  # that follows them
DIGITS = {"epochs": 0, "best epoch": 0, "val loss": 4, "val acc": 4, "test loss": 4, "test acc": 4,
          "seconds": 1}


class Pace:
    """The time left for all runs of a command, by how fast this process has trained so far."""

    def __init__(self, folders: list[RunFolder], num_epochs: int):
        self.epochs = sum(max(0, num_epochs - len(folder.metrics())) for folder in folders
                          if not folder.finished(num_epochs) and not folder.failure())
        self.done, self.began = 0, time.monotonic()

    def left(self) -> str:
        """After one more epoch."""
        self.done += 1
        seconds = (time.monotonic() - self.began) / self.done * max(0, self.epochs - self.done)
        return f"all {duration(seconds)}"


class Progress:
    """A bar on a terminal; where the output goes elsewhere, a line per epoch."""

    def __init__(self, settings: Settings, place: str = "", pace: Pace | None = None):
        self.title = f"{place}{settings.network} {settings.name}"
        self.num_epochs, self.pace = settings.num_epochs, pace
        terminal = sys.stderr.isatty() and sys.stdout.isatty()
        self.bar = tqdm(total=settings.num_epochs, bar_format=BAR, dynamic_ncols=True,
                        desc=short(self.title, columns(sys.stderr) - ROOM - LEAST),
                        disable=not terminal or "TQDM_DISABLE" in os.environ)

    def begin(self, epoch: int) -> None:
        """The run goes on after so many epochs."""
        self.bar.initial = self.bar.n = self.bar.last_print_n = epoch

    def step(self, share: float) -> None:
        """One step is done: this share of an epoch."""
        self.bar.update(min(share, self.num_epochs - self.bar.n))  # shares are rounded

    def level(self, epoch: int) -> None:
        """Free the bar of the rounding of its shares."""
        self.bar.n = epoch

    def epoch(self, row: dict) -> None:
        left = f", {self.pace.left()}" if self.pace else ""
        if self.bar.disable:
            splits = (f"{split} {row[f'{split}_loss']:.4f} {row[f'{split}_acc']:.4f}"
                      for split in ("train", "val", "test"))
            self.say("  ".join([f"epoch {row['epoch']}/{self.num_epochs}", *splits,
                                f"{row['seconds']:.1f} s{left and f'{left} left'}"]))
            return
        room = columns(sys.stderr) - ROOM
        title = short(self.title, room - LEAST)
        loss, accuracy = f"val loss {row['val_loss']:.3f}", f"acc {row['val_acc']:.3f}"
        self.bar.set_description_str(title, refresh=False)
        self.bar.set_postfix_str(fitting(
            [f"{loss} {accuracy}, {row['seconds']:.1f} s/epoch{left}", f"{loss} {accuracy}{left}",
             f"val {accuracy}{left}", accuracy], room - len(title)))

    def say(self, text: str) -> None:
        tqdm.write(f"{self.title}  {text}", file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        self.bar.close()


def print_results(folders: dict[Settings, RunFolder]) -> int:
    """Print each run's outcome, metrics at the best validation accuracy; returns how many failed.

    A run that failed when it was asked for more epochs has not failed at these.
    """
    rows, failed = [], 0
    for settings, folder in folders.items():
        failure, result = folder.failure(), folder.result()
        if failure and not folder.finished(settings.num_epochs):
            failed += 1
            rows.append((folder.name, [], f"failed: {failure.get('reason')}"))
        elif result:
            longer = result["epochs"] > settings.num_epochs
            note = f"finished with {plural(result['epochs'], 'epoch')}" if longer else ""
            rows.append((folder.name, as_cells(result), note))
    print()
    if rows:
        print_table(["run", *DIGITS], rows,
                    drop=["seconds", "test loss", "val loss", "epochs", "best epoch"])
    if failed:
        print(f"{failed} of {plural(len(folders), 'run')} failed; "
              "the same command with --retry trains them again")
    return failed


def as_cells(result: dict) -> list[str]:
    """The columns DIGITS of a run's result."""
    return [f"{result[title.replace(' ', '_')]:.{digits}f}" for title, digits in DIGITS.items()]
