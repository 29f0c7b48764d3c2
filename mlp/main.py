#!/usr/bin/env python3
"""Train the MLP on CIFAR-10: one run for every combination of the values given."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.options import parse_command_line

if __name__ == "__main__":
    # Before torch is imported: help and a wrong value answer at once.
    options = parse_command_line("mlp", __doc__, batch_size=1024, learning_rate=0.001, drop_rate=0.2, num_epochs=20)

    from lab.experiment import run_experiment
    from load_data import load_cifar_2d
    from mlp.model import MLP

    def build(settings, num_classes):
        return MLP(settings.hidden_size, settings.drop_rate, settings.without_BatchNorm, settings.without_dropout,
                   num_classes)

    sys.exit(run_experiment(options, build, load_cifar_2d))
