#!/usr/bin/env python3
"""Measure what theory says about batch normalization and dropout, on networks that runs have left.

    bagging      squared error of averaged networks against v/k + (k - 1) c/k, and of averaged masks
    statistics   how far a batch's mean and variance lie from the training set's; use of them
    shifts       test accuracy when all images are moved by 0 to 8 pixels
    order        dropout before max pooling: what it does to the statistics behind it (CNN)
    rates        nine learning rates from 0.0001 to 1, with and without BatchNorm: 18 short runs
    confusion    which classes the CNN of the best validation accuracy confuses

The numbers land in RUNS_DIR/theory.json, the runs of `rates` among the others; plot.py draws both.
The first three take 1024_0.001_0.2 (MLP) and 128_0.001_0.2 (CNN), `order` the runs of the studies
dropout_type and pooling: a network per seed, at its best validation accuracy.

exit code: 0 done, 2 something for you to mend, such as runs that are not there
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from lab.terminal import begin

if __name__ == "__main__":
    begin()  # before all that takes time, as Ctrl-C may come


from lab.options import FILE, Parser, number
from store.files import ROOT, UserError
from store.settings import NETWORKS, SETTINGS

TOPICS = ("bagging", "statistics", "shifts", "order", "confusion", "rates")


def main() -> int:
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("topics", nargs="*", default=TOPICS, metavar="TOPIC",
                        help="default: all of them")
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=NETWORKS,
                        help="default: both")
    parser.add_argument("--runs_dir", type=FILE, default=ROOT / "runs", metavar="DIR",
                        help="where the runs are; default: runs/ of this repository")
    parser.add_argument("--data_dir", type=FILE, default=ROOT / "data", metavar="DIR",
                        help="the data set they learned from; default: data/ of this repository")
    parser.add_argument("--synthetic", action="store_true",
                        help="they learned from the generated set")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
                        help="auto (default) takes a GPU if there is one")
    parser.add_argument("--num_epochs", type=number(*SETTINGS["num_epochs"].limit[:3]),
                        default=5, metavar="N",
                        help="of `rates`, default 5")
    options = parser.parse_args()
    if unknown := [topic for topic in options.topics if topic not in TOPICS]:
        parser.error(f"argument TOPIC: {unknown[0]!r} is not allowed, it must be one of "
                     f"{', '.join(TOPICS)}")
    from report.theory import measure_all  # loads torch, which --help need not

    try:
        return 0 if measure_all(options) else 2
    except UserError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
