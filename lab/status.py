#!/usr/bin/env python3
"""How far the runs of a study are, read from their folders alone: while workers train, and after all have died.

    ./run_grid.sh mlp --dry-run | python status.py            a table
    ./run_grid.sh mlp --dry-run | python status.py --watch    a bar, or a line per finished run, until it is ended
    ./run_grid.sh mlp --dry-run | python status.py --outcome  what is not finished, and why; exit code 1 if anything

`run_grid.sh … --status` is the first of these.
"""

import argparse
import os
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from store.run import STATES, Run, RunFolder, forget_failures

ENDED = {"finished", "failed"}


class Standing(NamedTuple):
    """Where a run stands, of so many epochs."""

    run: Run
    folder: RunFolder
    num_epochs: int

    @property
    def name(self) -> str:
        return f"{self.run.network}/{self.run.name}"

    @property
    def state(self) -> str:
        return self.run.state(self.num_epochs)

    @property
    def epochs(self) -> int:
        """Those that are done."""
        done = self.num_epochs if self.state == "finished" else len(self.run.rows)
        return min(done, self.num_epochs)

    @property
    def open_epochs(self) -> int:
        return 0 if self.state in ENDED else self.num_epochs - self.epochs

    @property
    def val_acc(self) -> float | None:
        """The best so far."""
        return max((row["val_acc"] for row in self.run.rows[:self.num_epochs]), default=None)


def read(folder: RunFolder, num_epochs: int) -> Standing:
    return Standing(folder.read(), folder, num_epochs)


def read_plan(lines) -> list[tuple[RunFolder, int]]:
    """The runs and their epochs in the lines that `main.py --dry-run` prints."""
    found = (re.fullmatch(r"(.+)  \((\d+) epochs?\)", line.rstrip("\n")) for line in lines)
    return [(RunFolder(Path(match[1])), int(match[2])) for match in found if match]


def seconds_left(standings: list[Standing]) -> float | None:
    """Time until all is done, with as many workers as are running now (at least one); None if nothing
    tells. A run without a speed gets the mean of those of its network and batch size, or network.
    """
    speeds: dict = {}
    for each in standings:
        if speed := each.run.seconds_per_epoch:
            for kind in kinds(each):
                speeds.setdefault(kind, []).append(speed)
    means = {kind: sum(those) / len(those) for kind, those in speeds.items()}
    total = 0.0
    for each in standings:
        if each.open_epochs:
            speed = each.run.seconds_per_epoch or next((means[kind] for kind in kinds(each) if kind in means), None)
            if speed is None:
                return None
            total += each.open_epochs * speed
    return total / workers(standings)


def kinds(each: Standing) -> list[tuple]:
    """Kinds of runs that take alike long, the narrowest first."""
    return [(each.run.network, each.run.name.split("_")[0]), (each.run.network,)]


def workers(standings: list[Standing]) -> int:
    """The processes that train, at least one; each may train several runs side by side."""
    return max(1, len({each.run.worker.split(" since ")[0] for each in standings if each.state == "running"}))


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


def summary(standings: list[Standing]) -> str:
    count = Counter(each.state for each in standings)
    text = f"{len(standings)} run{'s' * (len(standings) != 1)}: "
    text += ", ".join(f"{count[state]} {state}" for state in STATES)
    if any(each.open_epochs for each in standings):
        left, n = duration(seconds_left(standings)), workers(standings)
        text += f"; time left with {n} worker{'s' * (n != 1)}: {left}"
        if left != "unknown":
            text += time.strftime(", until about %H:%M", time.localtime(time.time() + seconds_left(standings)))
    return text


def print_table(standings: list[Standing]) -> None:
    width = max(len(each.name) for each in standings)
    print(f"{'run':{width}}  {'state':11}   epoch   s/epoch  best val acc")
    for each in standings:
        speed = f"{each.run.seconds_per_epoch:8.2f}" if each.run.seconds_per_epoch else f"{'-':>8}"
        accuracy = f"{each.val_acc:12.4f}" if each.val_acc else f"{'-':>12}"
        reason = f"  {(each.run.failure or {}).get('reason')}" if each.state == "failed" else ""
        print(f"{each.name:{width}}  {each.state:11} {each.epochs:3}/{each.num_epochs:3}  {speed}  "
              f"{accuracy}{reason}")
    print(summary(standings))


def watch(plan: list[tuple[RunFolder, int]]) -> None:
    """On a terminal a bar over all epochs; elsewhere a line for each run that ends. Goes on until it is ended."""
    from tqdm import tqdm

    terminal, parent = sys.stderr.isatty(), os.getppid()
    bar = tqdm(total=sum(epochs for _, epochs in plan), disable=not terminal, dynamic_ncols=True, unit="epoch",
               bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} epochs [{elapsed}{postfix}]")
    standings = [read(*entry) for entry in plan]
    told = {each.name for each in standings if each.state in ENDED}

    def show() -> None:
        standings[:] = [each if each.state == "finished" else read(each.folder, each.num_epochs)
                      for each in standings]
        count = Counter(each.state for each in standings)
        bar.n = sum(each.epochs for each in standings)
        bar.set_postfix_str(f"{count['finished']}/{len(plan)} runs, {count['running']} running, {count['failed']} "
                            f"failed, {duration(seconds_left(standings))} left")
        for each in standings:
            if each.state in ENDED and each.name not in told:
                told.add(each.name)
                if not terminal:
                    print(f"{each.state} {each.name}  ({count['finished']}/{len(plan)} finished)", flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        while os.getppid() == parent:  # else run_grid.sh was killed
            show()
            time.sleep(1)
    finally:
        show()
        bar.close()


def wait(plan: list[tuple[RunFolder, int]]) -> int:
    """Wait until nothing is being trained, then return 0; return 1 at once if an unfinished run has
    no worker."""
    while True:
        states = {folder.read().state(num_epochs) for folder, num_epochs in plan}
        if "running" not in states or states & {"interrupted", "missing"}:
            return int(not states <= ENDED)
        time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watch", action="store_true", help="go on showing the progress, until ended")
    parser.add_argument("--outcome", action="store_true", help="print what is not finished; exit code 1 if anything")
    parser.add_argument("--wait", action="store_true", help="wait while others train; exit code 1 if a run is left")
    parser.add_argument("--forget", action="store_true", help="let failed runs be trained again")
    options = parser.parse_args()
    plan = read_plan(sys.stdin)
    if not plan:
        parser.exit(2, "status.py: error: no runs on standard input; pipe in what run_grid.sh … --dry-run prints\n")
    if options.watch:
        watch(plan)
        return 0
    if options.forget:
        forget_failures(folder for folder, _ in plan)
        return 0
    if options.wait:
        return wait(plan)
    standings = [read(*entry) for entry in plan]
    if not options.outcome:
        print_table(standings)
        return 0
    unfinished = [each for each in standings if each.state != "finished"]
    for each in unfinished:
        reason = (each.run.failure or {}).get("reason", "")
        print(f"{each.state}: {each.name}  {reason}", file=sys.stderr)
    print(summary(standings))
    return 1 if unfinished else 0


if __name__ == "__main__":
    sys.exit(main())
