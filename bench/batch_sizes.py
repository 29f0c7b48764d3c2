#!/usr/bin/env python3
"""Measure the seconds of a training epoch by batch size, for REPORT.md; on an idle machine.

Each round trains the same number of images at every batch size of a network's grid, in turns, since
machines drift. The seconds, scaled to an epoch and without evaluation, land in results/theory.json,
from which `python plot.py` takes them. Without --data_dir the generated set is taken, which costs
the same.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from bench import CPU, TRAIN, load  # first: it sets how threads wait, before torch is loaded

# isort: split
import torch

import cnn.model
import mlp.model
from fast import machine
from fast.processor import processor
from report.results import write_theory
from store.settings import Settings
from studies import BATCH_SIZES
from training import Trainer

BUILD = {"mlp": mlp.model.build, "cnn": cnn.model.build}
IMAGES = {"mlp": 32_768, "cnn": 4_096}  # of a round; every batch size divides both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="synthetic")
    parser.add_argument("--rounds", type=int, default=12, help="default 12, some three minutes")
    parser.add_argument("--images", type=int, help=f"of a round, default {IMAGES}")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "theory.json",
                        help="default: results/theory.json")
    options = parser.parse_args()
    machine.keep_freed_memory()
    for network, batch_sizes in BATCH_SIZES.items():
        images = options.images or IMAGES[network]
        seconds = measure(network, load(network, options.data_dir), batch_sizes, options.rounds,
                          images)
        write_theory(options.output, {network: {"epoch_seconds": {
            "machine": f"{processor()}, {torch.get_num_threads()} threads, "
                       f"torch {torch.__version__}, {time.strftime('%Y-%m-%d')}",
            "images": images, "seconds": seconds}}})
        print(network, {n: round(statistics.median(times), 3) for n, times in seconds.items()})


def measure(network: str, data, batch_sizes, rounds: int, images: int) -> dict[str, list[float]]:
    """Seconds of an epoch's steps at each batch size, a number per round."""
    trainers = {n: Trainer(BUILD[network], data, Settings(
        network, n, num_epochs=1), CPU) for n in batch_sizes}
    seconds: dict[str, list[float]] = {str(n): [] for n in batch_sizes}
    for i in range(rounds + 1):
        for n, trainer in trainers.items():
            trainer.network.train()
            batches = torch.randperm(len(data.train.labels))[:images].split(n)
            start = time.perf_counter()
            for index in batches:
                trainer.step(index)
            if i:  # the first round also sets up
                taken = (time.perf_counter() - start) / len(batches) * (TRAIN // n)
                seconds[str(n)].append(round(taken, 4))
    return seconds


if __name__ == "__main__":
    main()
