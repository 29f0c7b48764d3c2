"""The command line of the two main.py. Imports no torch: help and errors are instant."""

import argparse
import difflib
import itertools
import os
import re
import shlex
from pathlib import Path

from lab.status import Entry, print_plan
from store.files import ROOT, one_line
from store.run import RunFolder
from store.settings import DEFAULTS, LONGEST_NAME, SETTINGS, Settings


class Parser(argparse.ArgumentParser):
    """Errors in one line, with the way to the help, and exit code 2."""

    def __init__(self, **more):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def error(self, message: str):
        self.exit(2, one_line(f"{self.prog}: error: {message}{self.nearest(message)}; --help shows "
                              "all options") + "\n")

    def nearest(self, message: str) -> str:
        """The flag or value that a misspelt one is likest to."""
        flags = self._option_string_actions
        word, known = "", ()
        if match := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            word, known = match[1], flags
        elif match := re.match(r"argument (--\w+): invalid choice: '(.*)' \(", message):
            word, known = match[2], flags[match[1]].choices
        close = difflib.get_close_matches(word, known, 1)
        return f"; did you mean {close[0]}?" if close else ""


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
    """The text, ~ being the home, if a file or folder can have that name; else ValueError."""
    if not text:
        raise ValueError
    try:
        text = str(Path(text).expanduser()) if text.startswith("~") else text
        os.lstat(text)  # ValueError for characters that no name can have
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError) as error:  # ~ of a user that there is not
        raise ValueError from error
    return text


def path(text: str) -> Path:
    return Path(name_of_file(text))


FILE = number(path, "the name of a file or folder", lambda path: True)
RUN = number(name_of_file, "the folder or the name of a run", lambda name: True)
FOLDER = number(path, "a folder, or where one can be made",
                lambda path: path.is_dir() or not os.path.lexists(path))


def can_write_in(folder: Path) -> bool:
    """Whether the folder, or the nearest one above it that exists, is one to write in."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return os.access(there, os.W_OK | os.X_OK)


def build_parser(network: str, description: str) -> argparse.ArgumentParser:
    defaults = DEFAULTS[network]
    name = Settings.parse(network, str(defaults["batch_size"])).name
    short = "_".join(str(defaults[key]) for key in ("batch_size", "learning_rate", "drop_rate"))
    parser = Parser(
        prog=f"{network}/main.py", description=description, allow_abbrev=False,
        epilog=f"""\
Give a flag several values to run every combination. Rerun the command to resume; run it twice to
split the work.

A run lands in RUNS_DIR/{network}/NAME/, NAME being its settings, such as
{name}:
  config.json   settings, versions, machine, data      best.pt         weights at its best epoch
  metrics.csv   a row per epoch: losses, accuracies    checkpoint.pt   what the run goes on from
  result.json   written last: the run is finished      failed.json     instead: why the run failed
  predictions.npz   the classes that its best epoch predicts for the validation and test images

examples:
  python main.py --batch_size {defaults['batch_size']} --drop_rate {defaults['drop_rate']}
  python main.py --learning_rate 0.001 0.0001 --seed 0 1 2 --num_epochs 5
  python main.py --evaluate {short}
  python main.py --evaluate {short} --predict my_cat.jpg

exit code: 0 all runs finished, 1 a run failed (its loss was not finite), 2 something for you to
mend, 130 stopped by Ctrl-C""")
    experiment = parser.add_argument_group("the experiment")
    for name in DEFAULTS[network]:
        if name != "synthetic":
            add_setting(experiment, name, network)
    add_place(parser.add_argument_group("where and how"), network)
    show = parser.add_argument_group(
        "live curves (optional: pip install -r requirements-extra.txt)")
    show.add_argument("--tensorboard", action="store_true",
                      help="write curves, settings and final metrics into the run's folder, for "
                           "TensorBoard: tensorboard --logdir RUNS_DIR")
    show.add_argument("--wandb", action="store_true",
                      help="log the same to Weights & Biases; without an API key offline, to "
                           "RUN/wandb/")
    add_use(parser.add_argument_group("instead of training"))
    return parser


def add_setting(group, name: str, network: str) -> None:
    """The flag of a setting, if the network has it."""
    (_, limit, own, text, several), default = SETTINGS[name], DEFAULTS[network][name]
    if isinstance(own, dict) and network not in own:
        return
    if limit.kind is bool:
        group.add_argument(f"--{name}", action="store_true", help=text)
        return
    text += f"; default {default}" if default is not None else ""
    if limit.choices:
        group.add_argument(f"--{name}", choices=limit.choices, default=default, help=text)
        return
    # -0.0 becomes 0.0, as one experiment has one name
    kind = (lambda text: float(text) + 0.0) if limit.kind is float else limit.kind
    group.add_argument(f"--{name}", type=number(kind, limit.allowed, limit.holds),
                       default=[default] if several else default, nargs="+" if several else None,
                       metavar="X" if several else "N", help=text)


def add_place(group, network: str) -> None:
    """Where data and runs are, and how to compute."""
    data = group.add_mutually_exclusive_group()
    data.add_argument("--data_dir", type=FOLDER, metavar="DIR",
                      help="an image folder with train/CLASS/ and test/CLASS/, or CIFAR-10, which "
                           "an empty folder is filled with; default: data/ of this repository, "
                           "with --evaluate the run's own")
    add_setting(data, "synthetic", network)
    group.add_argument("--runs_dir", type=FOLDER, default=ROOT / "runs", metavar="DIR",
                       help="where runs land; default: runs/ of this repository")
    group.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
                       help="auto (default) takes a GPU if there is one")
    group.add_argument("--retry", action="store_true", help="retrain failed runs")
    group.add_argument("--no_wait", action="store_true",
                       help="do not wait for runs that other processes train (default: wait, and "
                            "take over if they die)")


def add_use(group) -> None:
    """What is done instead of training."""
    either = group.add_mutually_exclusive_group()
    either.add_argument("--dry-run", action="store_true",
                        help="print every run's folder, epochs and state, and do nothing")
    either.add_argument("--evaluate", type=RUN, metavar="RUN",
                        help="print test loss, accuracy per class and confusion matrix of a run's "
                             "best weights. RUN is a folder or a run's name; trailing defaults may "
                             "be omitted. Its folder gets evaluation.json, and the surest wrong "
                             "answers as mistakes.png")
    group.add_argument("--predict", nargs="+", type=FILE, metavar="IMAGE",
                       help="with --evaluate RUN: print the three likeliest classes of your own "
                            "pictures. Pillow reads them; their central square is scaled to 32x32 "
                            "and transparency becomes grey. Needs no data set")


def parse_command_line(network: str, description: str, arguments: list[str] | None = None):
    """The options of main.py; their `settings` are every combination of the values, each once.

    Exits with code 2 and one line on stderr if a value is not allowed.
    """
    parser = build_parser(network, description)
    options = read_options(parser, network, arguments)
    if options.dry_run:
        print_plan([entry(parser, options, run) for run in options.settings])
        parser.exit()
    if options.evaluate is None and not can_write_in(options.runs_dir):
        parser.error(f"argument --runs_dir: {str(options.runs_dir)!r} is not allowed, it must be a "
                     "folder to write in")
    return options


def read_options(parser: Parser, network: str, arguments: list[str] | None):
    options = parser.parse_args(arguments)
    options.network = network
    if options.predict and options.evaluate is None:
        parser.error("argument --predict: needs --evaluate RUN, whose network shall predict")
    if network == "mlp" and 1 in options.batch_size and not options.without_BatchNorm:
        parser.error("argument --batch_size: 1 is not allowed with BatchNorm1d, which needs two "
                     "samples to have a variance; take 2 or more, or --without_BatchNorm")
    options.settings = combinations(options)
    if any(len(run.name) > LONGEST_NAME for run in options.settings):
        parser.error("the settings have too many digits for the name of a run's folder, at most "
                     f"{LONGEST_NAME} letters; take rounder numbers")
    return options


def entry(parser: Parser, options, run: Settings) -> Entry:
    """A run in the list of those to train, with its command line but for the seed."""
    values = {**vars(run), **{name: getattr(options, name)
                              for name in ("device", "data_dir", "runs_dir")}}
    command = shlex.join([f"{run.network}/main.py", *flags_of(parser, values)])
    folder = RunFolder(options.runs_dir / run.network / run.name)
    return Entry(folder, run.num_epochs, command)


def flags_of(parser: Parser, values: dict) -> list[str]:
    """The words of a command line for what is not at its default, but for network and seed."""
    words = []
    for name, value in values.items():
        if name not in ("network", "seed") and value != parser.get_default(name):
            if value is True:
                words.append(f"--{name}")
            elif str(value).startswith("-"):
                words.append(f"--{name}={value}")
            else:
                words += [f"--{name}", str(value)]
    return words


def combinations(options) -> list[Settings]:
    """Every combination of the values given, each once."""
    given = {name: value for name, value in vars(options).items() if name in SETTINGS}
    axes = ("seed", "batch_size", "learning_rate", "drop_rate")
    return list(dict.fromkeys(Settings(**{**given, **dict(zip(axes, values, strict=True))})
                              for values in itertools.product(*(given[axis] for axis in axes))))
