#!/usr/bin/env python3
"""Try and measure this project on a GPU, in eight minutes at most (`make gpu DATA=…`).

Each step runs in a process of its own, under its own time limit; one that fails or hangs does not keep
the others from running. What is done is noted in FOLDER/steps/, so the same call later goes on where it
was, with eight more minutes. It ends with a table, which is FOLDER/table.md too. FOLDER, a few
megabytes, also holds the finished runs: `python plot.py --collect FOLDER` takes them.

`--device cpu` is a rehearsal in which everything is shortened.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
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

Row = tuple[str, str, str, str]  # what; this project; compared with; ratio or what was asked
HEAD = "| what | this project | compared with | ratio |\n|---|---|---|---|\n"
GRID = 60  # runs


class Place:
    """Where, on what device and data, and how much is measured."""

    def __init__(self, options):
        self.folder, self.device, self.data_dir = options.folder, options.device, options.data_dir
        self.short = options.device == "cpu"
        self.batch_size, self.images = (32, 128) if self.short else (128, None)

    def train(self, runs_dir: Path, *flags: str) -> list[str]:
        """The command that trains the study's CNN."""
        return [sys.executable, str(ROOT / "cnn" / "main.py"), *self.flags(runs_dir), *flags]

    def flags(self, runs_dir: Path) -> list[str]:
        data = ["--data_dir", self.data_dir] if self.data_dir else ["--synthetic"]
        few = ["--train_images", str(self.images), "--batch_size", str(self.batch_size)] * self.short
        return ["--device", self.device, "--runs_dir", str(runs_dir), *data, *few]

    def load(self, network: str):
        """The data of a network, on the device."""
        import torch

        from fast.machine import choose_device
        from load_data import load_cifar_2d, load_cifar_4d
        from store.images import prepared
        from store.settings import Settings

        load = load_cifar_2d if network == "mlp" else load_cifar_4d
        data = load(self.data_dir) if self.data_dir else load(synthetic=True)
        settings = Settings(network, 1, 1, 0, train_images=self.images)
        return prepared(data, settings, torch.device(choose_device(self.device)))


# The steps; each returns rows of the table


def tests(place: Place) -> list[Row]:
    """Every test that a card alone can run."""
    chosen = "gpu_graph" if place.short else "cuda or gpu"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, "tests"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(found.stdout, flush=True)
    summary = found.stdout.strip().splitlines()[-1]
    if found.returncode:
        failed = [line.split()[1] for line in found.stdout.splitlines() if line.startswith("FAILED")]
        raise RuntimeError(f"{summary}: {', '.join(failed)}")
    return [(f"tests: {chosen}", summary, "", "")]


def resume(place: Place) -> list[Row]:
    """A run that is killed after its first epoch and goes on, against one that was left alone."""
    epochs = ["--num_epochs", "3" if place.short else "6"]
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        subprocess.run(place.train(whole, *epochs), check=True)
        process = subprocess.Popen(place.train(killed, *epochs))
        while process.poll() is None and not list(killed.glob("cnn/*/checkpoint.pt")):
            time.sleep(0.01)
        process.kill()
        process.wait()
        if list(killed.glob("cnn/*/result.json")):
            raise RuntimeError("the run ended before it could be killed")
        subprocess.run(place.train(killed, *epochs), check=True)
        return [("kill -9 and resume, bit for bit", equal(whole, killed), "a run left alone", "yes")]


def graph(place: Place) -> list[Row]:
    """The step as a CUDA graph against the step itself."""
    with tempfile.TemporaryDirectory() as folder:
        folders = {value: Path(folder) / value for value in "01"}
        for value, runs_dir in folders.items():
            subprocess.run(place.train(runs_dir, "--num_epochs", "2"), check=True,
                           env={**os.environ, "CUDA_GRAPH": value})
        same = equal(*folders.values())
        return [("step as a CUDA graph, bit for bit", same, "the step itself", "yes")]


def equal(one: Path, other: Path) -> str:
    """Whether two folders hold the same run: its metrics, but for the seconds, and its weights."""
    import torch

    def state(folder: Path) -> dict:
        return torch.load(next(folder.glob("cnn/*/checkpoint.pt")), weights_only=True)

    one, other = state(one), state(other)
    rows = [[{**row, "seconds": 0} for row in each["rows"]] for each in (one, other)]
    same = all(torch.equal(value, other["network"][name]) for name, value in one["network"].items())
    return "yes" if same and rows[0] == rows[1] else "no"


CASES = [("cnn", "fp32", "2d"), ("cnn", "bf16", "2d"), ("cnn", "fp32", "1d"), ("cnn", "bf16", "1d"),
         ("mlp", "fp32", None), ("mlp", "bf16", None)]


def steps(place: Place) -> list[Row]:
    """A training step with the kernels, with layers one by one, and with PyTorch's layers, in turns."""
    rows = []
    for network, precision, kind in CASES:
        batch_size = place.batch_size if network == "cnn" or place.short else 1024
        trainers = step_makers(place, network, precision, kind, batch_size)
        times = {name: [] for name in trainers}
        for i in range(3 if place.short else 12):
            for name, take in trainers.items():
                spent = milliseconds(take, place.device, 2 if place.short else 10)
                if i > 0:  # the first steps also set up
                    times[name].append(spent)
        title = f"{network.upper()} step, batch {batch_size}, {precision}{kind and f', {kind}' or ''}"
        for name, other in times.items():
            manner, _, graphed = name.partition(", ")
            own = times[name.replace(manner, "kernels")]
            if other is not own:
                ratio = statistics.median(own) / statistics.median(other)
                rows.append((f"{title}{graphed and ', graph'}", f"{spread(own)} ms",
                             f"{manner} {spread(other)} ms", f"{ratio:.2f}"))
    return rows


def step_makers(place: Place, network: str, precision: str, kind: str | None,
                batch_size: int) -> dict[str, Callable]:
    """What takes a step, of each way to compute it, plain and as a graph."""
    import torch

    import cnn.model
    import mlp.model
    from bench import ReferenceCNN, ReferenceMLP, own
    from fast.gpu import guard
    from fast.gpu.graph import GraphedStep
    from store.settings import Settings
    from training import Trainer

    data = place.load(network)
    index = torch.randperm(len(data.train.labels), device=data.train.labels.device)[:batch_size]
    settings = Settings(network, batch_size, 0.001, 0.2, num_epochs=1, precision=precision, dropout_type=kind,
                        hidden_size=100 if network == "mlp" else None)
    ours = cnn.model.build if network == "cnn" else mlp.model.build
    theirs = own(ReferenceMLP if network == "mlp" else lambda: ReferenceCNN(kind))
    ways = {"kernels": ours, "layers one by one": ours, "PyTorch's layers": theirs}
    takes = {}
    for graphed in ("",) if place.short else ("", ", graph"):
        for name, build in ways.items():
            trainer = Trainer(build, data, settings, index.device)
            trainer.network.train()
            step = trainer.step
            if graphed:
                step = partial(GraphedStep(trainer.network, trainer.optimizer), step)

            def take(step=step, works=name == "kernels" and guard.works) -> None:
                with mock.patch.object(guard, "works", works or (lambda *_: False)):
                    step(index)

            takes[name + graphed] = take
    return takes


def milliseconds(work: Callable, device: str, count: int) -> float:
    """Of each of some calls, by the device's own clock."""
    import torch

    if device != "cuda":
        start = time.perf_counter()
        for _ in range(count):
            work()
        return (time.perf_counter() - start) / count * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / count


def spread(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f}–{high:.3f})"


def epochs(place: Place) -> list[Row]:
    """Seconds of an epoch with its evaluation, the second one, at each batch size of the grids."""
    import cnn.model
    import mlp.model
    from store.settings import Settings
    from training import Trainer

    rows = []
    for network, sizes in (("cnn", (128, 256, 512, 1024)), ("mlp", (512, 1024, 2048, 4096))):
        data = place.load(network)
        build = cnn.model.build if network == "cnn" else mlp.model.build
        for batch_size in (32, 64) if place.short else sizes:
            for precision in ("fp32", "bf16"):
                settings = Settings(network, batch_size, 0.001, 0.2, num_epochs=2, precision=precision,
                                    dropout_type="2d" if network == "cnn" else None,
                                    hidden_size=100 if network == "mlp" else None)
                trainer = Trainer(build, data, settings, data.train.labels.device)
                trainer.run_epoch()
                rows.append((f"{network.upper()} epoch, batch {batch_size}, {precision}",
                             f"{trainer.run_epoch()['seconds']:.3f} s", "", ""))
    return rows


def company(place: Place) -> list[Row]:
    """Eight MLPs side by side against one after the other: the time of an epoch, and the numbers."""
    import torch

    import mlp.model
    from lab.side_by_side import SideBySide
    from store.settings import Settings
    from training import Trainer

    data, rows = place.load("mlp"), []
    for batch_size in (32,) if place.short else (512, 1024, 2048, 4096):
        settings = [Settings("mlp", batch_size, 0.001, i / 10, num_epochs=2) for i in range(8)]
        together, alone = ([Trainer(mlp.model.build, data, own, data.train.labels.device)
                            for own in settings] for _ in range(2))
        found = SideBySide(together).run_epoch() and SideBySide(together).run_epoch()
        expected = [trainer.run_epoch() and trainer.run_epoch() for trainer in alone]
        same = all(torch.equal(value, own.network.state_dict()[name])
                   for one, own in zip(alone, together, strict=True)
                   for name, value in one.network.state_dict().items())
        spent, before = (sum(row["seconds"] for row in epoch) for epoch in (found, expected))
        title = f"8 MLPs side by side, batch {batch_size}"
        rows += [(f"{title}, an epoch", f"{spent:.3f} s", f"one by one {before:.3f} s",
                  f"{spent / before:.2f}"),
                 (f"{title}, bit for bit", "yes" if same else "no", "one by one", "yes")]
    return rows


def run(place: Place) -> list[Row]:
    """The CNN of the study, from main.py, in both precisions."""
    from store.settings import Settings

    rows = []
    for precision, asked in (("fp32", "≤ 5 s"), ("bf16", "≤ 3 s")):
        start, epochs = time.perf_counter(), 2 if place.short else 50
        subprocess.run(place.train(place.folder, "--num_epochs", str(epochs), "--precision", precision),
                       check=True)
        spent = time.perf_counter() - start
        settings = dataclasses.replace(
            Settings.parse("cnn", str(place.batch_size)), precision=precision, num_epochs=epochs,
            train_images=place.images, synthetic=not place.data_dir)
        result = json.loads((place.folder / "cnn" / settings.name / "result.json").read_text())
        rows.append((f"CNN, {epochs} epochs, {precision}", f"{result['seconds']:.1f} s",
                     f"{spent:.1f} s from start to end; test accuracy {result['test_acc']:.4f}", asked))
    return rows


def grid(place: Place) -> list[Row]:
    """The CNN's grid, as far as the time goes: a run that is done counts."""
    short = ["--drop_rate", "0", "--learning_rate", "0.001", "--num_epochs", "1"] * place.short
    subprocess.run([str(ROOT / "run_grid.sh"), "cnn", *place.flags(place.folder), *short], check=True,
                   env={**os.environ, "PYTHON": sys.executable})
    return []


# The order, and the seconds that each may take.
STEPS = {tests: 150, resume: 80, graph: 60, steps: 120, epochs: 90, company: 60, run: 100, grid: 480}


# Their order, their time, the table


def attempt(place: Place, step: Callable, arguments: list[str], seconds: float) -> str:
    """Run a step in a process of its own; why it failed, in words, or nothing."""
    environment = dict(os.environ)
    if step in (run, grid) and rows_of(place, graph)[:1] and rows_of(place, graph)[0][1] == "yes":
        environment["CUDA_GRAPH"] = "1"  # this card has just confirmed it
    command = [sys.executable, __file__, *arguments, "--step", step.__name__]
    return within(seconds, command, place.folder / "steps" / f"{step.__name__}.log", environment)


def within(seconds: float, command: list[str], log: Path, environment: dict) -> str:
    """Run a command that may take so long; why it failed, in words, or nothing."""
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment,
                                   start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):  # until nothing is left of its group
            os.killpg(process.pid, signal.SIGTERM)
            end = time.monotonic() + 10  # for run_grid.sh to end its workers
            while time.monotonic() < end:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"stopped after {seconds:.0f} s"
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    return f"exit code {code}: {''.join(last)[:150]}" if code else ""


def rows_of(place: Place, step: Callable) -> list[Row]:
    try:
        return json.loads((place.folder / "steps" / f"{step.__name__}.json").read_text())
    except OSError:
        return []


def grid_so_far(place: Place) -> list[Row]:
    results = [json.loads(path.read_text()) for path in place.folder.glob("cnn/*_seed0*/result.json")]
    seconds = sum(result["seconds"] for result in results)
    return [("CNN runs finished here", f"{len(results)}, in {seconds:.0f} s of training",
             f"a grid of {GRID}", "≤ 5 min fp32, ≤ 3 min bf16")]


def write_table(place: Place, failures: dict[str, str]) -> str:
    """The table of all that is known so far."""
    rows = [tuple(row) for step in STEPS for row in rows_of(place, step)] + grid_so_far(place)
    rows += [(f"step {name}", "not done", reason.replace("|", "/"), "")
             for name, reason in failures.items()]
    table = f"{about(place)}\n\n{HEAD}" + "".join(f"| {' | '.join(row)} |\n" for row in rows)
    (place.folder / "table.md").write_text(table)
    return table


def about(place: Place) -> str:
    """Card, driver and versions, and the code."""
    import torch

    from fast.machine import choose_device, versions
    from fast.processor import processor
    from store.code import code_version

    device = torch.device(choose_device(place.device))
    card = torch.cuda.get_device_name() if device.type == "cuda" else f"no card, {processor()}"
    facts = {**versions(device), **code_version(True), "data": Path(place.data_dir or "synthetic").name}
    with contextlib.suppress(ImportError):
        import triton

        facts["triton"] = triton.__version__
    return f"{time.strftime('%Y-%m-%d')}, {card}; " + ", ".join(f"{k} {v}" for k, v in facts.items())


def drop_weights(folder: Path) -> None:
    """What plot.py does not need of finished runs."""
    for result in folder.glob("*/*_seed*/result.json"):
        for path in result.parent.glob("*.pt"):
            path.unlink()


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="an image folder or CIFAR-10; default: generated")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "gpu", help="default: runs/gpu")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=480, help="for all steps together, default 480")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    return parser


def main() -> int:
    options = parser().parse_args()
    place, deadline = Place(options), time.monotonic() + options.seconds
    noted = place.folder / "steps"
    if options.step:
        rows = globals()[options.step](place)
        (noted / f"{options.step}.tmp").write_text(json.dumps(rows))
        (noted / f"{options.step}.tmp").rename(noted / f"{options.step}.json")
        return 0
    noted.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    for step, limit in STEPS.items():
        left = deadline - time.monotonic() - 15  # for the table
        if (noted / f"{step.__name__}.json").exists():
            continue
        print(f"{step.__name__}: {step.__doc__}", flush=True)
        reason = attempt(place, step, sys.argv[1:], min(limit, left)) if left > 5 else "no time left"
        if reason:
            failures[step.__name__] = reason
            print(f"  {reason}", flush=True)
        write_table(place, failures)
    drop_weights(place.folder)
    shutil.rmtree(place.folder / "logs", ignore_errors=True)
    print("\n" + write_table(place, failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
