"""A first look (`make train`): both networks at their best settings, their results as a picture.

Downloads CIFAR-10 once to data/. Without a network it says so and takes the built-in generated set.
The runs land in runs/, the picture in runs/first_look.png. The CNN trains for 50 epochs on a GPU,
for 3 on a CPU (a few minutes); both go on when asked for more.
"""

import signal
import subprocess
import sys
from pathlib import Path

from lab.options import Parser
from lab.table import print_table
from store.files import ROOT, UserError, one_line
from store.run import RunFolder
from store.settings import DEFAULTS, Settings


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--data_dir", type=Path,
                        help="CIFAR-10, or an image folder with train/CLASS/, test/CLASS/")
    parser.add_argument("--runs_dir", type=Path, default=ROOT / "runs",
                        help="default: runs/ of this repository")
    options = parser.parse_args()
    try:
        data = [f"--data_dir={options.data_dir}"] if options.data_dir else cifar_or_synthetic()
    except UserError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    runs = {}
    for network, epochs in (("mlp", 20), ("cnn", cnn_epochs())):
        command = [sys.executable, str(ROOT / network / "main.py"), "--num_epochs", str(epochs),
                   f"--runs_dir={options.runs_dir}", *data]
        print("\n" + one_line(f"$ {network}/main.py {' '.join(command[2:])}"), flush=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # it has an answer to Ctrl-C
        if code := subprocess.run(command).returncode:
            return code
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        synthetic = "_synthetic" * ("--synthetic" in data)
        name = Settings.parse(network, str(DEFAULTS[network]["batch_size"])).name + synthetic
        runs[network.upper()] = RunFolder(options.runs_dir / network / name)
    summarize(runs, options.runs_dir / "first_look.png")
    return 0


def cifar_or_synthetic() -> list[str]:
    """No arguments if CIFAR-10 is there or can be downloaded, else those for the generated set."""
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
    import torch

    return 50 if torch.cuda.is_available() or torch.backends.mps.is_available() else 3


def summarize(runs: dict[str, RunFolder], picture: Path) -> None:
    """A table of the runs, and their accuracy over the epochs as a picture."""
    from matplotlib.figure import Figure

    import store.figures  # noqa: F401

    source = next(iter(runs.values())).config()["data"]["source"]
    rows = []
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, run), colour in zip(runs.items(), ("#0072b2", "#d55e00"), strict=True):
        result, epochs = run.result(), run.metrics()
        rows.append((name, [str(result["epochs"]), f"{result['val_acc']:.4f}",
                            f"{result['test_acc']:.4f}", f"{result['test_loss']:.4f}",
                            f"{result['seconds']:.1f}"], ""))
        for key, style in (("train_acc", "--"), ("val_acc", "-")):
            axes.plot([row["epoch"] for row in epochs], [row[key] for row in epochs], style,
                      color=colour, marker=".",
                      label=f"{name}, {'training' if key == 'train_acc' else 'validation'}")
    axes.set(xlabel="epoch", ylabel="accuracy",
             title=f"hand-written BatchNorm and Dropout ({source} data)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=150)
    print()
    print_table(["", "epochs", "val acc", "test acc", "test loss", "seconds"], rows)
    print(f"data: {source}")
    print(one_line(f"curves: {picture}"))
