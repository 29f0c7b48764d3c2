"""main.py in this process: the same command line and the same experiment, without starting Python and torch anew."""

from unittest import mock

import numpy as np
import torch

import cnn.model
import mlp.model
from lab.evaluation import evaluate_run
from lab.experiment import run_experiment
from lab.options import parse_command_line
from load_data import Data, Split, load_cifar_2d, load_cifar_4d
from store import settings
from store.images import prepared
from store.run import RunFolder
from store.settings import Settings
from training import Trainer

CPU = torch.device("cpu")
DEFAULTS = {"mlp": {**settings.DEFAULTS["mlp"], "batch_size": 32, "num_epochs": 2},
            "cnn": {**settings.DEFAULTS["cnn"], "batch_size": 32, "num_epochs": 1}}
LOAD = {"mlp": load_cifar_2d, "cnn": load_cifar_4d}


BUILD = {"mlp": mlp.model.build, "cnn": cnn.model.build}


def build(settings: Settings, num_classes: int = 10):
    return BUILD[settings.network](settings, num_classes)


def options_of(network: str, *arguments):
    """The options of a command line, whose defaults are those of the tests, so that runs are short."""
    with mock.patch.dict("store.settings.DEFAULTS", DEFAULTS):
        return parse_command_line(network, "", [str(argument) for argument in arguments])


def main(network: str, *arguments) -> int:
    """The exit code of `python <network>/main.py ARGUMENTS`, with the defaults of the tests."""
    options = options_of(network, *arguments)
    run = run_experiment if options.evaluate is None else evaluate_run
    return run(options, build, LOAD[network])


def only_run(runs_dir, network: str) -> RunFolder:
    folder, = (runs_dir / network).iterdir()
    return RunFolder(folder)


def settings_of(network: str, **changes) -> Settings:
    return Settings(network, **{**DEFAULTS[network], **changes})


def random_data(network: str, train: int = 70, val: int = 30, test: int = 30, seed: int = 0) -> Data:
    """Noise of ten classes, too few to learn from, enough to compute with."""
    random = np.random.RandomState(seed)

    def split(count: int) -> Split:
        images = torch.from_numpy(random.randint(0, 256, (count, 3, 32, 32), dtype=np.uint8))
        labels = torch.from_numpy(random.randint(0, 10, count))
        return Split(images.flatten(1) if network == "mlp" else images, labels)

    data = Data(split(train), split(val), split(test), tuple("abcdefghij"), "image folder", "none")
    return prepared(data, settings_of(network), CPU)


def trainer_of(settings: Settings, data: Data | None = None) -> Trainer:
    return Trainer(build, random_data(settings.network) if data is None else data, settings, CPU)


def untimed(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
