#!/usr/bin/env python3
"""Train the CNN on CIFAR-10: one run for every combination of the values given."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from lab.terminal import begin

if __name__ == "__main__":
    begin()  # before all that takes time, as Ctrl-C may come
    from lab.options import parse_command_line

    options = parse_command_line("cnn", __doc__)  # help and errors come before torch is loaded

    from cnn.model import build
    from lab.experiment import run_experiment
    from load_data import load_cifar_4d

    sys.exit(run_experiment(options, build, load_cifar_4d))
