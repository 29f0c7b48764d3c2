"""The progress of a study's runs, while workers train and after, from their folders alone."""

import sys

if __name__ == "__main__":
    sys.exit("status.py: error: ./run_grid.sh STUDY --status shows how far a study is")

import contextlib
import shlex
import time
from collections import Counter
from statistics import fmean, stdev
from typing import NamedTuple

from lab.table import columns, fitting, print_table
from store.files import one_line, plural
from store.run import STATES, Run, RunFolder, duration

ENDED = {"finished", "failed"}
BAR = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} epochs [{elapsed}{postfix}]"


class Entry(NamedTuple):
    """A run that is to have so many epochs, and where it stands once read."""

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
        """How many are done."""
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
        failure = self.run.failure or {}
        return one_line(str(failure.get("reason", ""))) if self.state == "failed" else ""


def seconds_left(entries: list[Entry]) -> float | None:
    """Time until all is done, with as many workers as train now (at least one); None if unknown.

    A run without a speed gets the mean of those of its network and batch size, or network.
    """
    speeds: dict[tuple, list[float]] = {}
    for entry in entries:
        if speed := entry.run.seconds_per_epoch:
            for kind in kinds(entry.run):
                speeds.setdefault(kind, []).append(speed)
    total = 0.0
    for entry in entries:
        if entry.open_epochs:
            known = next((speeds[kind] for kind in kinds(entry.run) if kind in speeds), None)
            if known is None:
                return None
            total += entry.open_epochs * fmean(known)
    return total / workers(entries)


def kinds(run: Run) -> list[tuple]:
    """Kinds of runs that take alike long, the narrowest first: it alone, its batch size, all."""
    return [(run.network, run.name), (run.network, run.name.split("_")[0]), (run.network,)]


def workers(entries: list[Entry]) -> int:
    """The processes that train, at least one; each may train several runs side by side."""
    return max(1, len({entry.run.worker.split(" since ")[0] for entry in entries
                       if entry.state == "running"}))


def summary(entries: list[Entry]) -> str:
    count = Counter(entry.state for entry in entries)
    text = f"{plural(len(entries), 'run')}: "
    text += ", ".join(f"{count[state]} {state}" for state in STATES)
    if any(entry.open_epochs for entry in entries):
        left = seconds_left(entries)
        text += f"; time left with {plural(workers(entries), 'worker')}: {duration(left)}"
        if left is not None:
            text += time.strftime(", until about %H:%M", time.localtime(time.time() + left))
    return text


def print_plan(plan: list[Entry]) -> None:
    """For --dry-run: folder, epochs, and the state of what is there."""
    for entry in plan:
        state, epochs = entry.read().state, plural(entry.num_epochs, "epoch")
        text = f"{entry.folder.folder}  ({epochs})  {'' if state == 'missing' else state}"
        print(one_line(text).rstrip())


def print_status(plan: list[Entry]) -> None:
    """A table of all runs, the most accurate first."""
    def row(entry: Entry) -> tuple:
        speed, best = entry.run.seconds_per_epoch, entry.best
        cells = [f"{entry.state:11}", f"{entry.epochs}/{entry.num_epochs}",
                 f"{speed:.2f}" if speed else "-",
                 *(f"{best[key]:.4f}" if best else "-" for key in ("val_acc", "test_acc"))]
        return entry.name, cells, entry.reason

    entries = [entry.read() for entry in plan]
    ranked = sorted(entries, key=lambda entry: -entry.best["val_acc"] if entry.best else 1)
    print_table(["run", f"{'state':11}", "epoch", "s/epoch", "best val acc", "its test acc"],
                map(row, ranked), drop=["s/epoch", "its test acc", "epoch"])
    print(summary(entries))
    shorter = Counter(entry.run.result["epochs"] for entry in entries
                      if entry.run.result and entry.state != "finished")
    for epochs, n in shorter.items():
        print(f"{n} of these are finished with {epochs} epochs, as --num_epochs {epochs} shows")
    print_answer(entries)


def print_outcome(plan: list[Entry]) -> int:
    """What is not finished, and the best of what is; returns the exit code, 1 if any is left."""
    entries = [entry.read() for entry in plan]
    unfinished = [entry for entry in entries if entry.state != "finished"]
    for entry in unfinished:
        print(f"{entry.state}: {entry.name}  {entry.reason}", file=sys.stderr)
    print(summary(entries))
    print_answer(entries)
    if any(entry.state == "failed" for entry in unfinished):
        print("the same call with --retry trains failed runs again", file=sys.stderr)
    return int(bool(unfinished))


def print_answer(entries: list[Entry]) -> None:
    """The best settings of each network, and what to do with them."""
    finished = [entry for entry in entries if entry.state == "finished"]
    for network in sorted({entry.run.network for entry in finished}):
        settings: dict[str, list[Entry]] = {}
        for entry in finished:
            if entry.run.network == network:
                parts = filter(None, (entry.run.setting, entry.run.variant))
                settings.setdefault("_".join(parts), []).append(entry)
        ranked = sorted(settings, key=lambda setting: -fmean(
            entry.run.result["val_acc"] for entry in settings[setting]))
        rows = [(setting, [over_seeds(settings[setting], "val_acc"),
                           over_seeds(settings[setting], "test_acc"),
                           str(len(settings[setting]))], "") for setting in ranked[:5]]
        print()
        print_table([f"best settings, {network}", "val acc", "test acc", "seeds"], rows, ["seeds"])
        best = sorted(settings[ranked[0]], key=lambda entry: entry.run.seed)
        seeds = " ".join(str(entry.run.seed) for entry in best)
        folder = shlex.quote(str(best[0].folder.folder))
        print(one_line(f"the best:  python {best[0].command} --seed {seeds}"))
        print(one_line(f"evaluate:  python {network}/main.py --evaluate {folder}"))
    if finished:
        runs = shlex.quote(str(finished[0].folder.folder.parents[1]))
        print("\n" + one_line(f"figures:   python plot.py --runs_dir={runs} --output my_report"))
        print(one_line(f"explore:   python plot.py --runs_dir={runs} --explore explore.html"))


def over_seeds(entries: list[Entry], key: str) -> str:
    """The mean over the seeds, and from two on their standard deviation."""
    values = [entry.run.result[key] for entry in entries]
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


@contextlib.contextmanager
def progress(plan: list[Entry]):
    """A bar over all epochs on a terminal, elsewhere a line per run that ends.

    Yields the function that reads the runs again and shows them; it returns their states.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    bar = tqdm(total=sum(entry.num_epochs for entry in plan), disable=not terminal,
               dynamic_ncols=True, bar_format=BAR)
    entries = [entry.read() for entry in plan]
    told = {entry.name for entry in entries if entry.state in ENDED}

    def show() -> list[Entry]:
        entries[:] = [entry if entry.state == "finished" else entry.read() for entry in entries]
        count = Counter(entry.state for entry in entries)
        bar.n = sum(entry.epochs for entry in entries)
        runs, left = f"{count['finished']}/{len(plan)} runs", duration(seconds_left(entries))
        failed = f"{count['failed']} failed"
        bar.set_postfix_str(fitting([
            f"{runs}, {count['running']} running, {failed}, {left} left",
            f"{runs}, {failed}, {left} left", f"{runs}, {left}"], columns(sys.stderr) - 36))
        for entry in entries:
            if entry.state in ENDED and entry.name not in told:
                told.add(entry.name)
                if not terminal:
                    print(f"{entry.state} {entry.name}  ({count['finished']}/{len(plan)} finished)",
                          flush=True)
        return entries

    with bar:
        yield show
        show()
