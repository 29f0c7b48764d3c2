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
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from store.run import Run

STATES = ("finished", "running", "interrupted", "failed", "missing")
ENDED = {"finished", "failed"}


@dataclass
class Report:
    """What the folder of a run says, now."""

    run: Run
    num_epochs: int
    state: str
    epochs: int  # done
    speed: float | None  # seconds per epoch
    val_acc: float | None  # the best so far
    worker: str  # who trains it, if it is running

    @property
    def name(self) -> str:
        return f"{self.run.folder.parent.name}/{self.run.name}"

    @property
    def open_epochs(self) -> int:
        return 0 if self.state in ENDED else self.num_epochs - self.epochs


def read(run: Run, num_epochs: int) -> Report:
    state, rows = run.state(num_epochs), run.metrics()
    epochs = num_epochs if state == "finished" else min(len(rows), num_epochs)
    worker = run.holder().split(" since ")[0] if state == "running" else ""
    return Report(run, num_epochs, state, epochs,
                  sum(row["seconds"] for row in rows) / len(rows) if rows else None,
                  max((row["val_acc"] for row in rows[:num_epochs]), default=None), worker)


def read_plan(lines) -> list[tuple[Run, int]]:
    """The runs and their epochs in the lines that `main.py --dry-run` prints."""
    found = (re.fullmatch(r"(.+)  \((\d+) epochs?\)", line.rstrip("\n")) for line in lines)
    return [(Run(Path(match[1])), int(match[2])) for match in found if match]


def seconds_left(reports: list[Report]) -> float | None:
    """Time until all is done, with as many workers as are running now (at least one); None if nothing tells.

    A run that has no speed yet gets the mean of those with the same network and batch size, or else network.
    """
    def kind(report: Report, parts: int) -> tuple:
        return (report.run.folder.parent.name, report.run.name.split("_")[0])[:parts]

    known = [report for report in reports if report.speed]
    total = 0.0
    for report in reports:
        if report.open_epochs:
            alike = [report.speed] if report.speed else (
                [other.speed for other in known if kind(other, 2) == kind(report, 2)]
                or [other.speed for other in known if kind(other, 1) == kind(report, 1)])
            if not alike:
                return None
            total += report.open_epochs * sum(alike) / len(alike)
    return total / workers(reports)


def workers(reports: list[Report]) -> int:
    """The processes that train, at least one; each may train several runs side by side."""
    return max(1, len({report.worker for report in reports if report.state == "running"}))


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


def summary(reports: list[Report]) -> str:
    count = Counter(report.state for report in reports)
    text = f"{len(reports)} run{'s' * (len(reports) != 1)}: " + ", ".join(f"{count[state]} {state}" for state in STATES)
    if any(report.open_epochs for report in reports):
        left, n = duration(seconds_left(reports)), workers(reports)
        text += f"; time left with {n} worker{'s' * (n != 1)}: {left}"
        if left != "unknown":
            text += time.strftime(", until about %H:%M", time.localtime(time.time() + seconds_left(reports)))
    return text


def print_table(reports: list[Report]) -> None:
    width = max(len(report.name) for report in reports)
    print(f"{'run':{width}}  {'state':11}   epoch   s/epoch  best val acc")
    for report in reports:
        speed = f"{report.speed:8.2f}" if report.speed else f"{'-':>8}"
        accuracy = f"{report.val_acc:12.4f}" if report.val_acc else f"{'-':>12}"
        reason = f"  {(report.run.failure() or {}).get('reason')}" if report.state == "failed" else ""
        print(f"{report.name:{width}}  {report.state:11} {report.epochs:3}/{report.num_epochs:3}  {speed}  "
              f"{accuracy}{reason}")
    print(summary(reports))


def watch(plan: list[tuple[Run, int]]) -> None:
    """On a terminal a bar over all epochs; elsewhere a line for each run that ends. Goes on until it is ended."""
    from tqdm import tqdm

    terminal, parent = sys.stderr.isatty(), os.getppid()
    bar = tqdm(total=sum(epochs for _, epochs in plan), disable=not terminal, dynamic_ncols=True, unit="epoch",
               bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} epochs [{elapsed}{postfix}]")
    reports = [read(*entry) for entry in plan]
    told = {report.name for report in reports if report.state in ENDED}

    def show() -> None:
        reports[:] = [report if report.state == "finished" else read(report.run, report.num_epochs)
                      for report in reports]
        count = Counter(report.state for report in reports)
        bar.n = sum(report.epochs for report in reports)
        bar.set_postfix_str(f"{count['finished']}/{len(plan)} runs, {count['running']} running, {count['failed']} "
                            f"failed, {duration(seconds_left(reports))} left")
        for report in reports:
            if report.state in ENDED and report.name not in told:
                told.add(report.name)
                if not terminal:
                    print(f"{report.state} {report.name}  ({count['finished']}/{len(plan)} finished)", flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        while os.getppid() == parent:  # else run_grid.sh was killed
            show()
            time.sleep(1)
    finally:
        show()
        bar.close()


def wait(plan: list[tuple[Run, int]]) -> int:
    """Until no run is in the hands of a process: 0. At once if one is in nobody's hands, and neither finished nor
    failed: 1."""
    while True:
        states = {run.state(num_epochs) for run, num_epochs in plan}
        if "running" not in states or states & {"interrupted", "missing"}:
            return int(not states <= ENDED)
        time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watch", action="store_true", help="go on showing the progress, until ended")
    parser.add_argument("--outcome", action="store_true", help="print what is not finished; exit code 1 if anything")
    parser.add_argument("--wait", action="store_true", help="wait while others train; exit code 1 if a run is left")
    options = parser.parse_args()
    plan = read_plan(sys.stdin)
    if not plan:
        parser.exit(2, "status.py: error: no runs on standard input; pipe in what run_grid.sh … --dry-run prints\n")
    if options.watch:
        watch(plan)
        return 0
    if options.wait:
        return wait(plan)
    reports = [read(*entry) for entry in plan]
    if not options.outcome:
        print_table(reports)
        return 0
    unfinished = [report for report in reports if report.state != "finished"]
    for report in unfinished:
        reason = (report.run.failure() or {}).get("reason", "")
        print(f"{report.state}: {report.name}  {reason}", file=sys.stderr)
    print(summary(reports))
    return 1 if unfinished else 0


if __name__ == "__main__":
    sys.exit(main())
