#!/usr/bin/env python3
"""Train the MLP on CIFAR-10: one run for every combination of the values given."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.options import parse_command_line

if __name__ == "__main__":
    # before torch is imported: help and a wrong value answer at once
    options = parse_command_line("mlp", __doc__)

    from lab.experiment import run_experiment
    from load_data import load_cifar_2d
    from mlp.model import build

    sys.exit(run_experiment(options, build, load_cifar_2d))
