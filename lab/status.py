#!/usr/bin/env python3
"""Show the progress of a study's runs, while workers train and after, from their folders alone.

    ./run_grid.sh mlp --plan | python lab/status.py            a table, as `--status` prints it
    ./run_grid.sh mlp --plan | python lab/status.py --outcome  what is left; the best settings

A plan is for programs: a line of JSON per run, with its folder, epochs and command line.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from lab.terminal import begin

if __name__ == "__main__":
    begin()  # before all that takes time, as Ctrl-C may come

import argparse
import json
import shlex
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from lab.table import columns, fitting, print_table
from store.files import UserError, make_folder, one_line
from store.run import STATES, Run, RunFolder, duration, forget_failures

ENDED = {"finished", "failed"}
BAR = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} epochs [{elapsed}{postfix}]"


class Entry(NamedTuple):
    """A line of a plan: a run that is to have so many epochs, and where it stands once read."""

    folder: RunFolder
    num_epochs: int
    command: str = ""
    run: Run | None = None

    def read(self) -> "Entry":
        return self._replace(run=self.folder.read())

    @property
    def name(self) -> str:
        return one_line(f"{self.run.network}/{self.run.name}")

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
    def best(self) -> dict | None:
        """The row of the best validation accuracy so far."""
        return max(self.run.rows[:self.num_epochs], key=lambda row: row["val_acc"], default=None)

    @property
    def reason(self) -> str:
        """Why it failed."""
        return one_line(str((self.run.failure or {}).get("reason", "")) * (self.state == "failed"))


def read_plan(lines: Iterable[str]) -> list[Entry]:
    plan = map(json.loads, lines)
    return [Entry(RunFolder(Path(each["folder"])), each["num_epochs"], each["command"])
            for each in plan]


def seconds_left(entries: list[Entry]) -> float | None:
    """Time until all is done, with as many workers as are running now (at least one).

    None if nothing tells. A run without a speed gets the mean of those of its network and batch
    size, or network.
    """
    speeds: dict[tuple, list[float]] = {}
    for each in entries:
        if speed := each.run.seconds_per_epoch:
            for kind in kinds(each.run):
                speeds.setdefault(kind, []).append(speed)
    means = {kind: fmean(those) for kind, those in speeds.items()}
    total = 0.0
    for each in entries:
        if each.open_epochs:
            known = [means[kind] for kind in kinds(each.run) if kind in means]
            if not known:
                return None
            total += each.open_epochs * known[0]
    return total / workers(entries)


def kinds(run: Run) -> list[tuple]:
    """Kinds of runs that take alike long, the narrowest first: it alone, its batch size, all."""
    return [(run.network, run.name), (run.network, run.name.split("_")[0]), (run.network,)]


def workers(entries: list[Entry]) -> int:
    """The processes that train, at least one; each may train several runs side by side."""
    return max(1, len({each.run.worker.split(" since ")[0] for each in entries
                       if each.state == "running"}))


def summary(entries: list[Entry]) -> str:
    count = Counter(each.state for each in entries)
    text = f"{len(entries)} run{'s' * (len(entries) != 1)}: "
    text += ", ".join(f"{count[state]} {state}" for state in STATES)
    if any(each.open_epochs for each in entries):
        left, n = seconds_left(entries), workers(entries)
        text += f"; time left with {n} worker{'s' * (n != 1)}: {duration(left)}"
        if left is not None:
            text += time.strftime(", until about %H:%M", time.localtime(time.time() + left))
    return text


def print_plan(plan: list[Entry]) -> None:
    """What --dry-run shows: folder, epochs, and the state of what is there."""
    for each in plan:
        state = each.read().state.replace("missing", "")
        epochs = f"{each.num_epochs} epoch{'s' * (each.num_epochs != 1)}"
        print(one_line(f"{each.folder.folder}  ({epochs})  {state}").rstrip())


def print_status(entries: list[Entry]) -> None:
    """A table of all runs, the most accurate first."""
    def row(each: Entry) -> tuple:
        speed, best = each.run.seconds_per_epoch, each.best
        cells = [f"{each.state:11}", f"{each.epochs}/{each.num_epochs}",
                 f"{speed:.2f}" if speed else "-",
                 *(f"{best[key]:.4f}" if best else "-" for key in ("val_acc", "test_acc"))]
        return each.name, cells, each.reason

    ranked = sorted(entries, key=lambda each: -each.best["val_acc"] if each.best else 1)
    print_table(["run", f"{'state':11}", "epoch", "s/epoch", "best val acc", "its test acc"],
                map(row, ranked), drop=["s/epoch", "its test acc", "epoch"])
    print(summary(entries))
    shorter = Counter(each.run.result["epochs"] for each in entries
                      if each.run.result and each.state != "finished")
    for epochs, n in shorter.items():
        print(f"{n} of these are finished with {epochs} epochs, as --num_epochs {epochs} shows")
    print_answer(entries)


def print_answer(entries: list[Entry]) -> None:
    """The best settings of each network, and what to do with them."""
    finished = [each for each in entries if each.state == "finished"]
    for network in sorted({each.run.network for each in finished}):
        settings: dict[str, list[Entry]] = {}
        for each in finished:
            if each.run.network == network:
                parts = filter(None, (each.run.setting, each.run.variant))
                settings.setdefault("_".join(parts), []).append(each)
        ranked = sorted(settings, key=lambda setting: -fmean(
            each.run.result["val_acc"] for each in settings[setting]))
        print()
        rows = [(setting, [spread(settings[setting], "val_acc"),
                           spread(settings[setting], "test_acc"),
                           str(len(settings[setting]))], "") for setting in ranked[:5]]
        print_table([f"best settings, {network}", "val acc", "test acc", "seeds"], rows, ["seeds"])
        best = sorted(settings[ranked[0]], key=lambda each: each.run.seed)
        seeds = " --seed " + " ".join(str(each.run.seed) for each in best)
        print(one_line(f"the best:  python {best[0].command}{seeds}"))
        print(one_line(f"evaluate:  python {network}/main.py --evaluate "
                       f"{shlex.quote(str(best[0].folder.folder))}"))
    if finished:
        runs = shlex.quote(str(finished[0].folder.folder.parents[1]))
        print("\n" + one_line(f"figures:   python plot.py --runs_dir={runs} --output my_report"))
        print(one_line(f"explore:   python plot.py --runs_dir={runs} --explore explore.html"))


def spread(entries: list[Entry], key: str) -> str:
    """The mean over the seeds, and from two on their standard deviation."""
    values = [each.run.result[key] for each in entries]
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def watch(plan: list[Entry], parent: int) -> None:
    """Show a bar over all epochs on a terminal, elsewhere a line per run that ends.

    Goes on as long as the process `parent` lives, which started it.
    """
    from tqdm import tqdm

    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # after `stty tostop` a write would stop it
    terminal = sys.stderr.isatty()
    bar = tqdm(total=sum(each.num_epochs for each in plan), disable=not terminal,
               dynamic_ncols=True, bar_format=BAR)
    entries = [each.read() for each in plan]
    told = {each.name for each in entries if each.state in ENDED}

    def show() -> None:
        entries[:] = [each if each.state == "finished" else each.read() for each in entries]
        count = Counter(each.state for each in entries)
        bar.n = sum(each.epochs for each in entries)
        runs, left = f"{count['finished']}/{len(plan)} runs", duration(seconds_left(entries))
        failed = f"{count['failed']} failed"
        bar.set_postfix_str(fitting([
            f"{runs}, {count['running']} running, {failed}, {left} left",
            f"{runs}, {failed}, {left} left", f"{runs}, {left}"], columns(sys.stderr) - 36))
        for each in entries:
            if each.state in ENDED and each.name not in told:
                told.add(each.name)
                if not terminal:
                    print(f"{each.state} {each.name}  ({count['finished']}/{len(plan)} finished)",
                          flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        while os.getppid() == parent:
            show()
            time.sleep(1)
    finally:
        show()
        bar.close()


def wait(plan: list[Entry]) -> int:
    """Wait until nothing is being trained, then return 0; 1 at once if a run left is idle."""
    while True:
        states = {each.read().state for each in plan}
        if "running" not in states or states & {"interrupted", "missing"}:
            return int(not states <= ENDED)
        time.sleep(0.5)


def print_logs(plan: list[Entry]) -> None:
    """The folder for what workers print, made and found to take files; in the bytes of its name."""
    logs = plan[0].folder.folder.parents[1] / "logs"
    make_folder(logs)
    try:
        tempfile.TemporaryFile(dir=logs).close()
    except OSError as error:
        raise UserError(f"cannot write in {logs}: {error.strerror}") from error
    sys.stdout.buffer.write(os.fsencode(logs))
    sys.stdout.buffer.flush()


def print_outcome(plan: list[Entry]) -> int:
    """What is not finished, and the best of what is; returns the exit code, 1 if any is left."""
    entries = [each.read() for each in plan]
    unfinished = [each for each in entries if each.state != "finished"]
    for each in unfinished:
        print(f"{each.state}: {each.name}  {each.reason}", file=sys.stderr)
    print(summary(entries))
    print_answer(entries)
    if any(each.state == "failed" for each in unfinished):
        print("the same call with --retry trains failed runs again", file=sys.stderr)
    return 1 if unfinished else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(do=lambda plan: print_status([each.read() for each in plan]))
    group = parser.add_mutually_exclusive_group()

    def add(flag: str, do, text: str) -> None:
        group.add_argument(flag, action="store_const", dest="do", const=do, help=text)

    group.add_argument("--watch", type=lambda pid: partial(watch, parent=int(pid)), dest="do",
                       metavar="PID", help="show the progress while that process lives")
    add("--outcome", print_outcome, "print what is not finished; exit code 1 if any")
    add("--wait", wait, "wait while others train; exit code 1 if a run is left")
    add("--forget", lambda plan: forget_failures(each.folder for each in plan),
        "let failed runs be trained again")
    add("--dry-run", print_plan, "print folder, epochs and state of each run")
    add("--logs", print_logs, "make the folder for what workers print, and name it")
    options = parser.parse_args()
    try:
        plan = read_plan(sys.stdin)
        if not plan:
            raise ValueError
    except (ValueError, TypeError, KeyError):
        parser.exit(2, "status.py: error: no plan on standard input; pipe in that of "
                       "run_grid.sh … --plan\n")
    try:
        return options.do(plan) or 0
    except UserError as error:
        parser.exit(2, f"run_grid.sh: error: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
