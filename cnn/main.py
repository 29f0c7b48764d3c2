#!/usr/bin/env python3
"""Train the CNN on CIFAR-10: one run for every combination of the values given."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.options import parse_command_line

if __name__ == "__main__":
    # Before torch is imported: help and a wrong value answer at once.
    options = parse_command_line("cnn", __doc__, batch_size=128, learning_rate=0.001, drop_rate=0.2, num_epochs=50)

    from cnn.model import CNN
    from lab.experiment import run_experiment
    from load_data import load_cifar_4d

    def build(settings, num_classes):
        return CNN(settings.drop_rate, settings.without_BatchNorm, settings.without_dropout, settings.dropout_type,
                   num_classes)

    sys.exit(run_experiment(options, build, load_cifar_4d))
