"""The command line of the two main.py, and the settings of a run. Imports no torch: help and errors are instant."""

import argparse
import itertools
import math
import os
from pathlib import Path

from store.files import ROOT, one_line
from store.settings import Settings


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, one_line(f"{self.prog}: error: {message}; --help shows all options") + "\n")


def number(kind, allowed: str, is_allowed):
    """A parser of one value for argparse, whose error names the value and what is allowed."""
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not is_allowed(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed, it must be {allowed}")
        return value
    return parse


def name_of_file(text: str) -> str:
    """The text, if a file or folder can have that name; ValueError otherwise."""
    if not text:
        raise ValueError
    try:
        os.lstat(text)  # ValueError for characters that no name can have
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ValueError from error
    return text


LARGEST = 10 ** 50  # whole numbers are part of a run's name, which a folder must be able to have


def positive():
    return number(int, "a whole number, 1 or more (and below 10**50)", lambda value: 1 <= value < LARGEST)


SEED = number(int, "a whole number, 0 or more (and below 10**50)", lambda value: 0 <= value < LARGEST)
LEARNING_RATE = number(float, "a finite number above 0", lambda value: 0 < value < math.inf)
DROP_RATE = number(lambda text: float(text) + 0.0,  # -0.0 becomes 0.0, as one experiment has one name
                   "a number from 0 to below 1", lambda value: 0 <= value < 1)
HIDDEN_SIZE = number(int, "a whole number from 1 to 65536", lambda value: 1 <= value <= 65536)
FILE = number(lambda text: Path(name_of_file(text)), "the name of a file", lambda path: True)
RUN = number(name_of_file, "the folder or the name of a run", lambda name: True)
FOLDER = number(lambda text: Path(name_of_file(text)), "a folder, or where one can be made",
                lambda path: path.is_dir() or not os.path.lexists(path))


def can_write_in(folder: Path) -> bool:
    """Whether the folder, or the nearest one above it that exists, is one to write in."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return os.access(there, os.W_OK | os.X_OK)


def build_parser(network: str, description: str, batch_size: int, learning_rate: float, drop_rate: float,
                 num_epochs: int) -> argparse.ArgumentParser:
    example = Settings(network, batch_size, learning_rate, drop_rate, 0, num_epochs,
                       dropout_type="2d" if network == "cnn" else None)
    parser = Parser(
        prog=f"{network}/main.py", description=description, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"""\
Several values for a flag mean every combination, one run each. The same command again goes on where it was
stopped and skips what is finished; started twice, the two share the runs out.

A run lands in RUNS_DIR/{network}/NAME/, NAME being its settings, such as
{example.name}:
  config.json   settings, versions, machine, data      best.pt         weights at the best validation accuracy
  metrics.csv   a row per epoch: losses, accuracies    checkpoint.pt   what the run goes on from
  result.json   written last: the run is finished      failed.json     instead of it: why the run failed

examples:
  python main.py --batch_size {batch_size} --drop_rate {drop_rate}
  python main.py --learning_rate 0.001 0.0001 --seed 0 1 2 --num_epochs 5
  python main.py --evaluate {batch_size}_{learning_rate}_{drop_rate}
  python main.py --evaluate {batch_size}_{learning_rate}_{drop_rate} --predict my_cat.jpg

exit code: 0 all runs finished, 1 a run failed (its loss was no longer finite), 2 something for you to mend""")

    run = parser.add_argument_group("the experiment")
    several = {"nargs": "+", "metavar": "X"}
    run.add_argument("--batch_size", type=positive(), default=[batch_size],
                     help=f"images per step, default {batch_size}", **several)
    run.add_argument("--learning_rate", type=LEARNING_RATE, default=[learning_rate],
                     help=f"of Adam, default {learning_rate}", **several)
    run.add_argument("--drop_rate", type=DROP_RATE, default=[drop_rate],
                     help=f"probability of dropping a value (or map), default {drop_rate}", **several)
    run.add_argument("--seed", type=SEED, default=[0], help="of all random numbers, default 0", **several)
    run.add_argument("--num_epochs", type=positive(), default=num_epochs, metavar="N",
                     help=f"passes over the training set, default {num_epochs}; a finished run that is asked for more "
                          "goes on")
    run.add_argument("--without_BatchNorm", action="store_true", help="leave batch normalization out")
    run.add_argument("--without_dropout", action="store_true", help="leave dropout out")
    if network == "cnn":
        run.add_argument("--dropout_type", choices=("1d", "2d"), default="2d",
                         help="1d drops single activations, 2d (default) whole feature maps")
    else:
        run.add_argument("--hidden_size", type=HIDDEN_SIZE, default=100, metavar="N",
                         help="units of the hidden layer, default 100")
    run.add_argument("--augment", action="store_true", help="train on random crops (padding 4) and horizontal flips")
    run.add_argument("--schedule", choices=("constant", "cosine", "onecycle"), default="constant",
                     help="of the learning rate: constant (default), cosine from its value down to 0, onecycle up from "
                          "1/25 of it during the first 30 %% of the steps and then down to 0")

    place = parser.add_argument_group("where and how")
    data = place.add_mutually_exclusive_group()
    data.add_argument("--data_dir", type=FOLDER, default=ROOT / "data", metavar="DIR",
                      help="an image folder with train/CLASS/ and test/CLASS/, or CIFAR-10, which is downloaded if the "
                           "folder is empty; default: data/ of this repository")
    data.add_argument("--synthetic", action="store_true", help="a built-in generated data set, for a first look")
    place.add_argument("--runs_dir", type=FOLDER, default=ROOT / "runs", metavar="DIR",
                       help="where runs land; default: runs/ of this repository")
    place.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
                       help="auto (default) takes a GPU if there is one")
    place.add_argument("--precision", choices=("fp32", "bf16"), default="fp32",
                       help="bf16: mixed precision, for hardware that has it; default fp32")
    place.add_argument("--compile", action="store_true", help="torch.compile the network")
    place.add_argument("--retry", action="store_true", help="train runs again that have failed")
    place.add_argument("--no_wait", action="store_true",
                       help="leave to other processes what they train; by default wait for it, and take it over should "
                            "they die")

    show = parser.add_argument_group("live curves (optional: pip install -r requirements-extra.txt)")
    show.add_argument("--tensorboard", action="store_true",
                      help="write curves, settings and final metrics into the run's folder, for TensorBoard: "
                           "tensorboard --logdir RUNS_DIR")
    show.add_argument("--wandb", action="store_true",
                      help="log the same to Weights & Biases; without an API key offline, to RUN/wandb/")

    other = parser.add_argument_group("instead of training")
    either = other.add_mutually_exclusive_group()
    either.add_argument("--dry-run", action="store_true",
                        help="print the folder and the epochs of every run, and do nothing")
    either.add_argument("--evaluate", type=RUN, metavar="RUN",
                        help="print how a run's best weights do on the test set: loss, accuracy, accuracy per class "
                             "and confusion matrix; RUN is a folder or a name, in which parts at the end that are at "
                             "their defaults may be missing. Leaves evaluation.json and mistakes.png, the surest wrong "
                             "answers, in the run's folder")
    other.add_argument("--predict", nargs="+", type=FILE, metavar="IMAGE",
                       help="with --evaluate RUN: print the three likeliest classes of your own pictures, of any size "
                            "and kind that Pillow reads; their central square is scaled to 32x32, what is transparent "
                            "becomes grey. Needs no data set")
    return parser


def parse_command_line(network: str, description: str, arguments: list[str] | None = None, **defaults):
    """The options of main.py, with `settings`, one Settings for every combination of values, each once.

    Exits with code 2 and one line on stderr if a value is not allowed.
    """
    parser = build_parser(network, description, **defaults)
    options = parser.parse_args(arguments)
    options.network = network
    if options.predict and options.evaluate is None:
        parser.error("argument --predict: needs --evaluate RUN, the run whose network shall predict")
    if options.evaluate is None and not options.dry_run and not can_write_in(options.runs_dir):
        parser.error(f"argument --runs_dir: {str(options.runs_dir)!r} is not allowed, it must be a folder to write in")
    if network == "mlp" and 1 in options.batch_size and not options.without_BatchNorm:
        parser.error("argument --batch_size: 1 is not allowed with BatchNorm1d, which needs two samples to have a "
                     "variance; take 2 or more, or --without_BatchNorm")
    options.settings = list(dict.fromkeys(
        Settings(network, batch_size, learning_rate, drop_rate, seed, options.num_epochs,
                 options.without_BatchNorm, options.without_dropout,
                 getattr(options, "dropout_type", None), getattr(options, "hidden_size", None),
                 options.precision, options.compile, options.augment, options.schedule, options.synthetic)
        for seed, batch_size, learning_rate, drop_rate in itertools.product(
            options.seed, options.batch_size, options.learning_rate, options.drop_rate)))
    if options.dry_run:
        for settings in options.settings:
            print(f"{one_line(str(options.runs_dir / network / settings.name))}  ({settings.num_epochs} "
                  f"epoch{'s' * (settings.num_epochs != 1)})")
        parser.exit()
    return options
