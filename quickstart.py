#!/usr/bin/env python3
"""A first look (`make train`): both networks at their best settings, their results as a picture.

Downloads CIFAR-10 once to data/; offline, uses generated images instead. The runs land in runs/,
the picture in runs/first_look.png. The CNN trains for 50 epochs on a GPU, for 3 on a CPU (a few
minutes). Ask either for more epochs and it continues.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from lab.terminal import begin

if __name__ == "__main__":
    begin()  # before all that takes time, as Ctrl-C may come

import io
import signal
import subprocess
from pathlib import Path

from lab.options import FOLDER, Parser
from lab.progress import DIGITS, as_cells
from lab.table import print_table
from store.files import ROOT, UserError, one_line, write_file
from store.run import RunFolder
from store.settings import DEFAULTS, Settings


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--data_dir", type=FOLDER,
                        help="CIFAR-10, or an image folder with train/CLASS/, test/CLASS/")
    parser.add_argument("--runs_dir", type=FOLDER, default=ROOT / "runs",
                        help="default: runs/ of this repository")
    options = parser.parse_args()
    try:
        data = [f"--data_dir={options.data_dir}"] if options.data_dir else cifar_or_synthetic()
        runs = {}
        for network, epochs in (("mlp", 20), ("cnn", cnn_epochs())):
            if code := train(network, epochs, [f"--runs_dir={options.runs_dir}", *data]):
                return code
            name = Settings.parse(network, str(DEFAULTS[network]["batch_size"])).name
            name += "_synthetic" * ("--synthetic" in data)
            runs[network.upper()] = RunFolder(options.runs_dir / network / name).read()
        summarize(runs, options.runs_dir / "first_look.png")
    except UserError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    return 0


def cifar_or_synthetic() -> list[str]:
    """No arguments if CIFAR-10 is there or can be downloaded, else those for generated images."""
    from load_data import load_cifar_4d

    try:
        load_cifar_4d()
        return []
    except UserError as error:
        if "cannot download" not in str(error):
            raise
        line = "*" * 100
        print(f"{line}\n{error}\n\nNO CIFAR-10: TRAINING ON THE GENERATED SET (--synthetic) "
              f"INSTEAD. Its numbers say nothing about CIFAR-10.\n{line}", flush=True)
        return ["--synthetic"]


def cnn_epochs() -> int:
    from torch import backends, cuda

    return 50 if cuda.is_available() or backends.mps.is_available() else 3


def train(network: str, epochs: int, flags: list[str]) -> int:
    """The exit code of a network's main.py, which answers Ctrl-C in this script's place."""
    command = [f"{network}/main.py", "--num_epochs", str(epochs), *flags]
    print("\n" + one_line(f"$ {' '.join(command)}"), flush=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    code = subprocess.run([sys.executable, ROOT / command[0], *command[1:]]).returncode
    before = signal.getsignal(signal.SIGINT)
    if code:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # forgets the one that was answered
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    signal.signal(signal.SIGINT, before)
    return code


def summarize(runs: dict, picture: Path) -> None:
    """A table of the runs, and their accuracy over the epochs as a picture."""
    from matplotlib.figure import Figure

    import store.figures  # noqa: F401  matplotlib as the project sets it

    source = next((run.data["source"] for run in runs.values() if "source" in run.data), "unknown")
    axes = (figure := Figure(figsize=(7, 4), layout="constrained")).subplots()
    for (name, run), colour in zip(runs.items(), ("#0072b2", "#d55e00"), strict=True):
        for key, word, style in (("train", "training", "--"), ("val", "validation", "-")):
            axes.plot([row["epoch"] for row in run.rows], [row[f"{key}_acc"] for row in run.rows],
                      style, color=colour, marker=".", label=f"{name}, {word}")
    axes.set(xlabel="epoch", ylabel="accuracy")
    axes.set_title(f"hand-written BatchNorm and Dropout ({source} data)", parse_math=False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    print()
    print_table(["", *DIGITS], [(name, as_cells(run.result) if run.result else [], "")
                                for name, run in runs.items()])
    print(one_line(f"data: {source}"))
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    write_file(picture, png.getvalue())  # follows no link
    print(one_line(f"curves: {picture}"))


if __name__ == "__main__":
    sys.exit(main())
