#!/usr/bin/env python3
"""Measure the hand-written layers against PyTorch's own, and the training loop against a plain one (`make bench`).

It measures the CPU alone, and waits for no device: for a GPU there is bench/gpu.py.

Prints one table. What is compared is measured in turns, in one process where it can be, and given as medians with
the quartiles, since these machines drift: only ratios of one run count. The ratio of a step, of memory and of --help is
ours / theirs, that of an epoch or a run theirs / ours, and that of the start the difference in seconds. Without
--data_dir it takes the generated set, which costs the same.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from fast import machine  # first: it sets how threads wait, before torch is loaded

# isort: split
import torch
import torch.nn.functional as F
from torch import nn

from cnn.model import CNN
from fast.linear import linear
from fast.processor import processor
from lab.experiment import SIDE_BY_SIDE
from lab.side_by_side import SideBySide
from load_data import load_cifar_2d, load_cifar_4d
from mlp.model import MLP
from plain import peak_mb
from store.images import EVALUATION_BATCH, FLAT_EVALUATION_BATCH, evaluation_batches, prepared, take
from store.settings import Settings
from training import Trainer, cross_entropy, logits_of

CPU = torch.device("cpu")
TRAIN, EVALUATE = 40_000, 20_000


class ReferenceMLP(MLP):
    """The same network with PyTorch's own layers."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(100), nn.Dropout(0.2)

    def forward(self, x):
        return self.after_linear1(self.linear1(x))


class SameProductMLP(ReferenceMLP):
    """It, but for the first layer's product."""

    forward = MLP.forward


class ReferenceCNN(CNN):
    """The same network with PyTorch's own layers, in the same fast order: MaxPool first where the function allows."""

    def __init__(self, dropout_type="2d"):
        super().__init__(dropout_type=dropout_type)
        self.norm1, self.norm2 = nn.BatchNorm2d(128), nn.BatchNorm2d(64)
        self.dropout = nn.Dropout2d(0.2) if dropout_type == "2d" else nn.Dropout(0.2)

    def block(self, x, conv, norm):
        if isinstance(self.dropout, nn.Dropout2d):
            return self.dropout(F.relu(F.max_pool2d(norm(conv(x)), 2)))
        return F.relu(F.max_pool2d(self.dropout(norm(conv(x))), 2))


def steps_in_turns(builders: dict, network: str, data, batch_size: int, precision: str, rounds: int) -> dict:
    """Seconds of `rounds` training steps of each network, taken in turns."""
    trainers = {}
    for name, build in builders.items():
        settings = Settings(network, batch_size, 0.001, 0.2, num_epochs=1, precision=precision)
        trainers[name] = Trainer(own(build), data, settings, CPU)
        trainers[name].network.train()
    seconds = {name: [] for name in trainers}
    for i in range(rounds + 2):
        index = torch.randperm(len(data.train.labels))[:batch_size]
        for name, trainer in trainers.items():
            start = time.perf_counter()
            trainer.step(index)
            if i >= 2:  # the first steps also set up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float], scale: float = 1e3) -> str:
    quartiles = statistics.quantiles(values, n=4)
    return f"{quartiles[1] * scale:.1f} ({quartiles[0] * scale:.1f}–{quartiles[2] * scale:.1f})"


def gemm_rate() -> float:
    """Floating-point operations per second of a large matrix product in fp32, as linear.py computes it."""
    a = torch.randn(2048, 2048)
    times = []
    for _ in range(12):
        start = time.perf_counter()
        linear(a, a)
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / statistics.median(times)


def plain(network: str, data_dir: str, batch_size: int, steps: int, evaluations: int) -> dict:
    command = [sys.executable, ROOT / "bench" / "plain.py", network, "--data_dir", data_dir, "--batch_size", batch_size,
               "--steps", steps, "--evaluations", evaluations]
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    output = subprocess.run(list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(output.stdout)


def ours(network: str, data_dir: str, batch_size: int, steps: int, evaluations: int, precision="fp32") -> dict:
    """The same measurements of our loop, in a process of its own."""
    return finish(start(network, data_dir, precision, batch_size, steps, evaluations))


def two_workers(network: str, data_dir: str, batch_size: int, steps: int, evaluations: int, precision="fp32") -> dict:
    """The same of two processes with one thread each, at once, as `run_grid.sh -j 2` trains a grid on two cores."""
    workers = [start(network, data_dir, precision, batch_size, steps, evaluations, OMP_NUM_THREADS="1")
               for _ in range(2)]
    found = [finish(worker) for worker in workers]
    return {"step": [value / 2 for worker in found for value in worker["step"]],
            "evaluation": [value / 2 for worker in found for value in worker["evaluation"]],
            "gemm_rate": sum(worker["gemm_rate"] for worker in found)}


def start(*arguments, **environment: str) -> subprocess.Popen:
    network, data_dir, precision, *numbers = arguments
    command = [sys.executable, __file__, "--data_dir", data_dir, "--measure", network, precision, *map(str, numbers)]
    return subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> dict:
    return json.loads(process.communicate()[0])


def measure(network: str, data_dir: str, precision: str, batch_size: int, steps: int, evaluations: int) -> dict:
    """Seconds per step and per evaluated batch, the rate of a matrix product, and the peak memory.

    MLPs are trained side by side, as `main.py` does with those of a grid, and the seconds are those of one of them.
    """
    machine.keep_freed_memory()
    data = load(network, data_dir)
    count = SIDE_BY_SIDE if network == "mlp" else 1
    settings = Settings(network, batch_size, 0.001, 0.2, num_epochs=1, precision=precision)
    trainers = [Trainer(own(CNN if network == "cnn" else MLP), data, settings, CPU) for _ in range(count)]
    trainer = trainers[0]
    if count > 1:
        together = SideBySide(trainers)
        together.start()
        for each in trainers:
            each.network.train()

    def timed(things, work) -> list[float]:
        times, last = [], time.perf_counter()
        for thing in things:
            work(thing)
            now = time.perf_counter()
            times.append((now - last) / count)
            last = now
        return times

    batches = trainer.begin_epoch().split(batch_size)[:steps]
    step = timed(batches, trainer.step if count == 1 else
                 lambda index: together.step(0, *take(data.train, index)))
    for trainer in trainers:
        trainer.network.eval()
    with torch.no_grad():
        evaluation = timed(itertools.islice(evaluation_batches(data.test), evaluations),
                           lambda batch: cross_entropy(logits_of(trainer.network, batch[0], precision), batch[1], "none")
                           if count == 1 else together.evaluate("test", *batch))
    return {"step": step, "evaluation": evaluation, "peak_mb": peak_mb(), "gemm_rate": gemm_rate()}


def own(network):
    """A builder of networks for Trainer, whatever the settings."""
    return lambda settings, num_classes: network()


def load(network: str, data_dir: str):
    function = load_cifar_2d if network == "mlp" else load_cifar_4d
    data = function(data_dir) if data_dir != "synthetic" else function(synthetic=True)
    return prepared(data, Settings(network, 1, 1, 0), CPU)


def import_and_start(data_dir: str) -> dict[str, float]:
    """Seconds of: import torch; main.py up to its first step; --help. Medians of five, in turns."""
    first_step = """
import os
from lab.options import parse_command_line
options = parse_command_line("mlp", "")
from lab.experiment import run_experiment
from load_data import load_cifar_2d
from mlp.model import build
from training import Trainer
Trainer.step = lambda *_: os._exit(0)
run_experiment(options, build, load_cifar_2d)"""
    data = ["--synthetic"] if data_dir == "synthetic" else ["--data_dir", data_dir]
    commands = {
        "import torch": [sys.executable, "-c", "import torch"],
        "first step": [sys.executable, "-c", first_step, *data, "--runs_dir", ROOT / "runs" / ".bench"],
        "help": [sys.executable, "mlp/main.py", "--help"],
    }
    times = {name: [] for name in commands}
    for _ in range(5):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def row(what: str, measured: str, against: str, ratio: float, target: str) -> None:
    print(f"| {what} | {measured} | {against} | {ratio:.2f} | {target} |", flush=True)


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 itself; emulated it is slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() if platform.machine() == "x86_64" else False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", default="synthetic", help="an image folder or CIFAR-10; default: generated")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        network, precision, *numbers = options.measure
        print(json.dumps(measure(network, options.data_dir, precision, *map(int, numbers))))
        return

    machine.keep_freed_memory()
    flops = gemm_rate()
    print(f"{os.cpu_count()} cores, {processor()}, {torch.get_num_threads()} threads, "
          f"Python {platform.python_version()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}; "
          f"matrix product {flops / 1e9:.0f} GFLOP/s; milliseconds: median (quartiles)\n")
    print("| what | this project | compared with | ratio | target |\n|---|---|---|---|---|")
    data = {network: load(network, options.data_dir) for network in ("mlp", "cnn")}
    compare_steps(data)
    del data
    compare_loops(options.data_dir)
    compare_starts(options.data_dir)


def compare_steps(data: dict) -> None:
    """A training step with the hand-written layers against the same with PyTorch's own."""
    theirs, same_product = "PyTorch's layers", "PyTorch's layers, but linear.py"
    mlps = {"ours": MLP, theirs: ReferenceMLP, same_product: SameProductMLP}
    cnns = {"ours": CNN, theirs: ReferenceCNN}
    cnns_1d = {"ours": lambda: CNN(dropout_type="1d"), theirs: lambda: ReferenceCNN("1d")}
    cases = [("MLP step, batch 1024, fp32", "mlp", mlps, 1024, "fp32", 150),
             ("CNN step, batch 128, fp32", "cnn", cnns, 128, "fp32", 60),
             ("CNN step, --dropout_type 1d, fp32", "cnn", cnns_1d, 128, "fp32", 15),
             ("CNN step, batch 128, bf16", "cnn", cnns, 128, "bf16", 60 if has_bf16() else 5)]
    for what, network, builders, batch_size, precision, rounds in cases:
        seconds = steps_in_turns(builders, network, data[network], batch_size, precision, rounds)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        note = ", emulated" if precision == "bf16" and not has_bf16() else ""
        for name in list(builders)[1:]:
            row(what + note, spread(seconds["ours"]), f"{name} {spread(seconds[name])}",
                medians["ours"] / medians[name], "≤ 1.00")


def epoch(found: dict, batch_size: int, evaluation_batch: int) -> float:
    """Seconds of an epoch: training, and evaluation on validation and test set."""
    return (statistics.median(found["step"]) * (TRAIN // batch_size)
            + statistics.median(found["evaluation"]) * EVALUATE / evaluation_batch)


def compare_loops(data_dir: str) -> None:
    """An epoch of the CNN and the runs of an MLP grid against the plain loop, in processes of their own, in turns."""
    cnn, mlp = ("cnn", data_dir, 128, 12, 12), ("mlp", data_dir, 1024, 39, 12)
    precisions = ("fp32", "bf16") if has_bf16() else ("fp32",)
    theirs, own = [], {precision: [] for precision in precisions}
    for _ in range(3):
        theirs.append(epoch(plain(*cnn), 128, 128))
        for precision in precisions:
            own[precision].append(epoch(ours(*cnn, precision), 128, EVALUATION_BATCH))
    for precision, target in zip(precisions, ("≥ 4.5", "≥ 8"), strict=False):
        ratio_row(f"CNN epoch with evaluation, {precision}", own[precision], "plain loop", theirs, target)

    theirs, own, products = [], {precision: [] for precision in precisions}, []
    # The forward product, half of the two, is all that evaluation needs.
    large_products = 20 * (2 * (TRAIN // 1024) * 1024 + EVALUATE) * 2 * 3072 * 100
    for _ in range(3):
        found = plain(*mlp)
        theirs.append(found["start"] + 20 * epoch(found, 1024, 1024))
        for precision in precisions:
            found = two_workers(*mlp, precision)
            own[precision].append(20 * epoch(found, 1024, FLAT_EVALUATION_BATCH))
            if precision == "fp32":
                products.append(large_products / found["gemm_rate"])
    for precision, target in zip(precisions, ("≥ 4", "≥ 8"), strict=False):
        what = f"MLP run of 20 epochs, of a grid on two workers, {precision}"
        ratio_row(what, own[precision], "plain loop", theirs, target)
        if precision == "fp32":
            ratio_row(what, own[precision], "its products at the rate of a large one", products, "≥ 0.80")

    for name, arguments, limit in (("CNN", cnn, 1600), ("MLP", mlp, 1200)):
        peak = ours(*arguments)["peak_mb"]
        row(f"{name} peak memory", f"{peak:.0f} MB", f"{limit} MB", peak / limit, "≤ 1.00")


def ratio_row(what: str, own: list[float], name: str, theirs: list[float], target: str) -> None:
    """A row of seconds; the ratio says how many times faster ours is."""
    row(what, spread(own, 1) + " s", f"{name} {spread(theirs, 1)} s",
        statistics.median(theirs) / statistics.median(own), target)


def compare_starts(data_dir: str) -> None:
    times = import_and_start(data_dir)
    row("from main.py to the first step", f"{times['first step']:.2f} s", f"import torch {times['import torch']:.2f} s",
        times["first step"] - times["import torch"], "≤ 1 s more")
    row("--help", f"{times['help']:.2f} s", "0.5 s", times["help"] / 0.5, "≤ 1.00")


if __name__ == "__main__":
    main()
