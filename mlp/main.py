#!/usr/bin/env python3
"""Train the MLP on CIFAR-10: one run for every combination of the values given."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from lab.terminal import begin

if __name__ == "__main__":
    begin()  # before all that takes time, as Ctrl-C may come
    from lab.options import parse_command_line

    options = parse_command_line("mlp", __doc__)  # help and errors come before torch is loaded

    if options.evaluate is None:
        from lab.experiment import run_experiment as run
    else:
        from lab.evaluation import evaluate_run as run
    from load_data import load_cifar_2d
    from mlp.model import build

    sys.exit(run(options, build, load_cifar_2d))
