"""What a run shows while it trains, and the table at the end."""

import sys
import time

from tqdm import tqdm

from lab.table import columns, fitting, print_table, short
from store.run import RunFolder, duration
from store.settings import Settings

BAR = "{desc} |{bar}| {n:.1f}/{total} [{elapsed}<{remaining}{postfix}]"
ROOM = 32  # columns of the bar and of the numbers beside it
LEAST = len("acc 0.000")  # that follows them


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
        self.num_epochs = settings.num_epochs
        self.pace = pace
        self.bar = None
        if sys.stderr.isatty() and sys.stdout.isatty():
            self.bar = tqdm(total=settings.num_epochs, bar_format=BAR, dynamic_ncols=True,
                            desc=short(self.title, columns(sys.stderr) - ROOM - LEAST))

    def begin(self, epoch: int) -> None:
        """The run goes on after so many epochs."""
        if self.bar is not None:
            self.bar.initial = self.bar.n = self.bar.last_print_n = epoch

    def step(self, share: float) -> None:
        """One step is done: this share of an epoch."""
        if self.bar is not None:
            self.bar.update(min(share, self.bar.total - self.bar.n))  # shares are rounded

    def level(self, epoch: int) -> None:
        """Free the bar of the rounding of its shares."""
        if self.bar is not None:
            self.bar.n = epoch

    def epoch(self, row: dict) -> None:
        left = f", {self.pace.left()}" if self.pace else ""
        if self.bar is not None:
            room = columns(sys.stderr) - ROOM
            self.bar.set_description_str(short(self.title, room - LEAST), refresh=False)
            loss, accuracy = f"val loss {row['val_loss']:.3f} acc ", f"{row['val_acc']:.3f}"
            self.bar.set_postfix_str(fitting(
                [f"{loss}{accuracy}, {row['seconds']:.1f} s/epoch{left}", f"{loss}{accuracy}{left}",
                 f"val acc {accuracy}{left}", f"acc {accuracy}"], room - len(self.bar.desc)))
        else:
            self.say(f"epoch {row['epoch']}/{self.num_epochs}  "
                     f"train {row['train_loss']:.4f} {row['train_acc']:.4f}  "
                     f"val {row['val_loss']:.4f} {row['val_acc']:.4f}  "
                     f"test {row['test_loss']:.4f} {row['test_acc']:.4f}  {row['seconds']:.1f} s"
                     f"{left}{' left' * bool(left)}")

    def say(self, text: str) -> None:
        tqdm.write(f"{self.title}  {text}", file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        if self.bar is not None:
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
            more = f"finished with {result['epochs']} epochs" * longer
            rows.append((folder.name, [
                str(result["epochs"]), str(result["best_epoch"]),
                *(f"{result[key]:.4f}" for key in ("val_loss", "val_acc", "test_loss", "test_acc")),
                f"{result['seconds']:.1f}"], more))
    print()
    if rows:
        print_table(["run", "epochs", "best epoch", "val loss", "val acc", "test loss", "test acc",
                     "seconds"], rows,
                    drop=["seconds", "test loss", "val loss", "epochs", "best epoch"])
    if failed:
        print(f"{failed} of {len(folders)} run{'s' * (len(folders) > 1)} failed; "
              "the same command with --retry trains them again")
    return failed
