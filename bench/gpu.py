#!/usr/bin/env python3
"""Try and measure this project on a GPU, in eight minutes at most (`make gpu DATA=…`).

Each step runs in a process of its own, under its own time limit, and writes FOLDER/steps/STEP.log
as it goes. What it found, or how it failed, is noted beside the log: the same call later goes on
with the next step, with eight more minutes. Delete a note to repeat its step. No network is needed.

The end is a table, FOLDER/table.md. FOLDER, a few megabytes, also holds the finished runs, which
`python plot.py --collect FOLDER` takes. `--device cpu` is a rehearsal, everything shortened.
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from fast import machine  # before torch

# isort: split
import torch
from torch.profiler import profile

import cnn.model
import mlp.model
from bench import ReferenceCNN, ReferenceMLP, own
from fast import agreement
from fast.gpu import guard
from fast.gpu.graph import GraphedStep
from fast.processor import processor
from lab.side_by_side import SideBySide
from load_data import load_cifar_2d, load_cifar_4d
from store.code import code_version
from store.images import prepared
from store.settings import Settings
from training import Trainer

Row = tuple[str, str, str, str]  # what; this project; compared with; ratio or what was asked
HEAD = "| what | this project | compared with | ratio |\n|---|---|---|---|\n"
TESTS = ("test_gpu_graph.py", "test_gpu.py", "test_gpu_guard.py")  # that a card alone can answer
CASES = [("cnn", "fp32", "2d"), ("cnn", "bf16", "2d"), ("cnn", "fp32", "1d"),
         ("cnn", "bf16", "1d"), ("mlp", "fp32", None), ("mlp", "bf16", None)]


class Place:
    """Where, on what device and data, and how much is measured."""

    def __init__(self, options):
        self.folder, self.device, self.data_dir = options.folder, options.device, options.data_dir
        self.short = options.device == "cpu"
        self.few = {"batch_size": 32, "train_images": 128} if self.short else {}

    def main(self, runs_dir: Path, *flags: str) -> list[str]:
        """The command that trains the study's CNN."""
        return [sys.executable, str(ROOT / "cnn" / "main.py"), *self.flags(runs_dir), *flags]

    def flags(self, runs_dir: Path) -> list[str]:
        data = ["--data_dir", self.data_dir] if self.data_dir else ["--synthetic"]
        few = [f"--{name}={value}" for name, value in self.few.items()]
        return ["--device", self.device, "--runs_dir", str(runs_dir), *data, *few]

    def trainers(self, network: str, *settings: dict, build: Callable | None = None) -> list:
        """A trainer of a network for each of some settings, on the same data."""
        settings = [Settings(network, num_epochs=2, **self.few | own) for own in settings]
        load = load_cifar_2d if network == "mlp" else load_cifar_4d
        device = torch.device(machine.choose_device(self.device))
        data = load(self.data_dir) if self.data_dir else load(synthetic=True)
        data = prepared(data, settings[0], device)
        build = build or (mlp.model.build if network == "mlp" else cnn.model.build)
        return [Trainer(build, data, own, device) for own in settings]


# The steps; each returns rows of the table


def tests(place: Place) -> list[Row]:
    """Every test that a card alone can answer."""
    files = [f"tests/{name}" for name in TESTS[:1 if place.short else 3]]
    six = ["-n", "6"] if importlib.util.find_spec("xdist") and not place.short else []
    code = subprocess.run([sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *six,
                           *files], cwd=ROOT).returncode
    log = note_of(place, tests).with_suffix(".log").read_text(errors="replace").splitlines()
    failed = ", ".join(line.split()[1] for line in log if line.startswith("FAILED"))
    if code:
        raise RuntimeError(f"{log[-1].strip('= ')}: {failed}")
    return [(" ".join(files), log[-1].strip("= "), "", "")]


def kernels(place: Place) -> list[Row]:
    """Which kernels agree with the layers here; the log has a step's time by kernel."""
    for network, precision, kind in CASES:
        trainer, = place.trainers(network, {"precision": precision, "dropout_type": kind})
        first, *others = batches(trainer)[:6]
        trainer.step(first)
        with profile() as found:
            for index in others:
                trainer.step(index)
        by = f"{'cpu' if place.short else 'cuda'}_time_total"
        print(f"{network} {precision} {kind}, {len(others)} steps")
        print(found.key_averages().table(sort_by=by, row_limit=16, max_name_column_width=70))
    untried = dict.fromkeys((guard.CNN.what, guard.MLP.what), "not tried: no CUDA device")
    return [(*found, "the layers, once in each process", "used")
            for found in (untried | agreement.OUTCOMES).items()]


def batches(trainer: Trainer) -> tuple[torch.Tensor, ...]:
    """An epoch's batches of a network that is made to train."""
    trainer.network.train()
    return trainer.begin_epoch().split(trainer.settings.batch_size)


def resume(place: Place) -> list[Row]:
    """A run that goes on after its first epoch, in another process, against one in one go."""
    with tempfile.TemporaryDirectory() as folder:
        for name, epochs in (("whole", 3), ("resumed", 1), ("resumed", 3)):
            command = place.main(Path(folder) / name, "--num_epochs", str(epochs))
            subprocess.run(command, check=True)
        same = equal(*(torch.load(next(Path(folder, name).glob("cnn/*/checkpoint.pt")),
                                  weights_only=True)["network"] for name in ("whole", "resumed")))
    return [("a run resumed after an epoch, bit for bit", same, "a run in one go", "yes")]


def equal(one: dict, other: dict) -> str:
    return "yes" if all(value.equal(other[name]) for name, value in one.items()) else "no"


def graph(place: Place) -> list[Row]:
    """The step as a CUDA graph against the step itself, over two epochs."""
    plain, graphed = place.trainers("cnn", {}, {})
    plain.graph, graphed.graph = None, GraphedStep(graphed.network, graphed.optimizer)
    for trainer in (plain, graphed):
        trainer.run_epoch()
        trainer.run_epoch()
    same = equal(plain.network.state_dict(), graphed.network.state_dict())
    found = same if graphed.graph.replay else graphed.graph.outcome
    return [("step as a CUDA graph, bit for bit", found, "the step itself", "yes")]


def steps(place: Place) -> list[Row]:
    """A training step with kernels, with layers one by one, and with PyTorch's layers, in turns."""
    rows = []
    for network, precision, kind in CASES:
        for graphed in (False,) if place.short else (False, True):
            takes = step_makers(place, network, precision, kind, graphed)
            times = {name: [] for name in takes}
            for i in range(3 if place.short else 12):
                for name, take in takes.items():
                    spent = milliseconds(take, 2 if place.short else 10)
                    times[name] += [spent] * (i > 0)  # the first steps also set up
            own = times.pop("kernels")
            what = f"{network.upper()} step, {precision}{kind and f', {kind}' or ''}"
            rows += [(what + ", graph" * graphed, f"{quartiles(own)} ms",
                      f"{name} {quartiles(other)} ms",
                      f"{statistics.median(own) / statistics.median(other):.2f}")
                     for name, other in times.items()]
    return rows


def step_makers(place: Place, network: str, precision: str, kind: str | None,
                graphed: bool) -> dict[str, Callable]:
    """What takes a step, of each way to compute it."""
    theirs, takes = own(ReferenceMLP if network == "mlp" else partial(ReferenceCNN, kind)), {}
    for name, build in {"kernels": None, "layers one by one": None, "PyTorch's": theirs}.items():
        trainer, = place.trainers(network, {"precision": precision, "dropout_type": kind},
                                  build=build)
        index, step = batches(trainer)[0], trainer.step
        if graphed:
            step = partial(GraphedStep(trainer.network, trainer.optimizer), step)
        chosen = agreement.choose if name == "kernels" else lambda *_: None

        def take(step=step, index=index, chosen=chosen) -> None:
            with mock.patch.object(agreement, "choose", chosen):
                step(index)

        takes[name] = take
    return takes


def milliseconds(work: Callable, count: int) -> float:
    """Of each of some calls."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(count):
        work()
    wait()
    return (time.perf_counter() - start) / count * 1e3


def quartiles(values: list[float]) -> str:
    return "{1:.3f} ({0:.3f}–{2:.3f})".format(*statistics.quantiles(values, n=4))


def epochs(place: Place) -> list[Row]:
    """Seconds of an epoch with its evaluation, the second one; of eight MLPs side by side too."""
    sizes = [("cnn", size) for size in (128, 256, 512, 1024)]
    sizes += [("mlp", size) for size in (512, 1024, 2048, 4096)]
    rows = []
    sizes = [("cnn", 32), ("mlp", 32)] if place.short else sizes
    for (network, size), precision in itertools.product(sizes, ("fp32", "bf16")):
        own = {"batch_size": size, "precision": precision}
        trainer, = place.trainers(network, own)
        seconds = (trainer.run_epoch() and trainer.run_epoch())["seconds"]
        title = f"epoch, batch {size}, {precision}"
        rows.append((f"{network.upper()} {title}", f"{seconds:.3f} s", "", ""))
        if network == "mlp":
            eight = place.trainers("mlp", *({**own, "drop_rate": i / 10} for i in range(8)))
            team = SideBySide(eight)
            spent = sum(row["seconds"] for row in team.run_epoch() and team.run_epoch())
            rows.append((f"8 MLPs side by side, {title}", f"{spent:.3f} s",
                         f"8 times one {8 * seconds:.3f} s", f"{spent / seconds / 8:.2f}"))
    return rows


def run(place: Place) -> list[Row]:
    """The CNN of the study, from main.py, in both precisions."""
    rows, count = [], 2 if place.short else 50
    for precision, asked in (("fp32", "≤ 5 s"), ("bf16", "≤ 3 s")):
        start, flags = time.perf_counter(), ["--num_epochs", str(count), "--precision", precision]
        subprocess.run(place.main(place.folder, *flags), check=True)
        spent = time.perf_counter() - start
        folder = max(place.folder.glob("cnn/*/result.json"), key=os.path.getmtime).parent
        result, config = (json.loads((folder / name).read_text())
                          for name in ("result.json", "config.json"))
        rows += [(f"CNN, {count} epochs, {precision}", f"{result['seconds']:.1f} s",
                  f"{spent:.1f} s from start to end; test accuracy {result['test_acc']}", asked),
                 (f"noted in its config.json, {precision}",
                  str(config.get("fast", "nothing, as on a CPU")), "", "")]
    return rows


def grid(place: Place) -> None:
    """The CNN's grid, as far as the time goes: a run that is done counts."""
    short = ["--drop_rate=0", "--learning_rate=0.001", "--num_epochs=1"] * place.short
    command = [str(ROOT / "run_grid.sh"), "cnn", *place.flags(place.folder), *short]
    os.execve(command[0], command, {**os.environ, "PYTHON": sys.executable})  # ends its workers


# In this order, so many seconds at most: first what decides most.
STEPS = {kernels: 70, tests: 110, graph: 60, steps: 120, resume: 80, epochs: 120,
         run: 100, grid: 1e6}


# Their time, and the table


def attempt(place: Place, step: Callable, arguments: list[str], left: float) -> list[Row]:
    """Run a step in a process of its own, and note if it fails. Rows of one that time cut short."""
    environment, note = {**os.environ, "PYTHONUNBUFFERED": "1"}, note_of(place, step)
    if step in (run, grid) and [row[1] for row in rows_of(place, graph)] == ["yes"]:
        environment["CUDA_GRAPH"] = "1"  # this card has just confirmed it
    command = [sys.executable, __file__, *arguments, "--step", step.__name__]
    limit = min(left, STEPS[step] * (3 if place.short else 1))
    reason = (within(limit, command, note.with_suffix(".log"), environment) if left > 5
              else "no time left")
    rows = [(f"step {step.__name__}", "not done", reason.replace("|", "/"), "")] * bool(reason)
    if reason.startswith("exit") or reason and limit < left:
        write_rows(note, rows)
    return rows if not note.exists() else []


def within(seconds: float, command: list[str], log: Path, environment: dict) -> str:
    """Run a command with all that it starts; why it failed, in words, or nothing."""
    limited = ["timeout", "--kill-after=10", f"{seconds:.0f}", *command]
    with open(log, "w") as output:
        code = subprocess.run(limited, stdout=output, stderr=output, env=environment).returncode
    if code in (124, 137, -9):  # told to end, killed
        return f"stopped after {seconds:.0f} s"
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    return f"exit code {code}: {''.join(last)[:150]}" if code else ""


def note_of(place: Place, step: Callable) -> Path:
    return place.folder / "steps" / f"{step.__name__}.json"


def write_rows(path: Path, rows: list[Row]) -> None:
    path.with_suffix(".tmp").write_text(json.dumps(rows))
    path.with_suffix(".tmp").rename(path)


def rows_of(place: Place, step: Callable) -> list[Row]:
    return json.loads(note.read_text()) if (note := note_of(place, step)).exists() else []


def write_table(place: Place, unfinished: list[Row]) -> list[Row]:
    """The table of all that is known so far; returns its rows."""
    seconds = [json.loads(path.read_text())["seconds"]
               for path in place.folder.glob("cnn/*_seed0*/result.json")]
    rows = [row for step in STEPS for row in rows_of(place, step)] + unfinished
    rows.append(("CNN runs finished here", f"{len(seconds)}, in {sum(seconds):.0f} s of training",
                 "a grid of 60", "≤ 5 min fp32, ≤ 3 min bf16"))
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    (place.folder / "table.md").write_text(f"{about(place)}\n\n{HEAD}{table}")
    return rows


def about(place: Place) -> str:
    """Card, driver and versions, and the code."""
    device = torch.device(machine.choose_device(place.device))
    card = torch.cuda.get_device_name() if device.type == "cuda" else f"no card, {processor()}"
    data = Path(place.data_dir or "synthetic").name
    facts = machine.versions(device) | code_version(True) | {"data": data}
    facts |= {package: importlib.metadata.version(package) for package in ("numpy", "triton")
              if importlib.util.find_spec(package)}
    facts = ", ".join(f"{name} {fact}" for name, fact in facts.items())
    return f"{time.strftime('%Y-%m-%d')}, {card}; {facts}"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data_dir", help="an image folder or CIFAR-10; default: generated")
    add("--folder", type=Path, default=ROOT / "runs" / "gpu", help="default: runs/gpu")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--seconds", type=float, default=480, help="for all steps together, default 480")
    add("--step", choices=[step.__name__ for step in STEPS], help=argparse.SUPPRESS)
    return parser


def main() -> int:
    options = parser().parse_args()
    place, end, unfinished = Place(options), time.monotonic() + options.seconds, []
    if options.step:
        step = globals()[options.step]
        write_rows(note_of(place, step), step(place))
        return 0
    (place.folder / "steps").mkdir(parents=True, exist_ok=True)
    for step in STEPS:
        if not note_of(place, step).exists():
            print(f"{step.__name__}: {step.__doc__}", flush=True)
            left = end - time.monotonic() - 15  # for the table
            unfinished += attempt(place, step, sys.argv[1:], left)
            write_table(place, unfinished)
    for result in place.folder.glob("*/*_seed*/result.json"):  # plot.py needs no weights
        for path in result.parent.glob("*.pt"):
            path.unlink()
    shutil.rmtree(place.folder / "logs", ignore_errors=True)
    rows = write_table(place, unfinished)
    print("\n" + (place.folder / "table.md").read_text())
    return int(any(row[1] == "not done" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
