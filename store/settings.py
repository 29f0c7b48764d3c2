"""The settings of a run, their limits, and the grammar of its name: one name is one experiment.

    BATCHSIZE_LEARNINGRATE_DROPRATE_WITHOUTBATCHNORM_WITHOUTDROPOUT[_DROPOUTTYPE]_seedSEED[_MORE]…

`Settings.name` writes it and `Settings.parse` reads it. Every other setting that decides the
numbers follows at the end if it is not at its default: hidden256, bf16, synthetic, …
"""

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

NETWORKS = ("mlp", "cnn")
DEFAULTS = {  # of each main.py; the study departs from them
    "mlp": {"batch_size": 1024, "learning_rate": 0.001, "drop_rate": 0.2, "num_epochs": 20},
    "cnn": {"batch_size": 128, "learning_rate": 0.001, "drop_rate": 0.2, "num_epochs": 50}}
LONGEST_NAME = 255  # of a folder, in bytes


class Limit(NamedTuple):
    """What a setting may be: the type of its values, in words, and as a test."""

    kind: type
    allowed: str
    holds: Callable[[object], bool]


def _whole(least: int, most: float = math.inf) -> Limit:
    allowed = f", {least} or more" if most == math.inf else f" from {least} to {most}"
    return Limit(int, f"a whole number{allowed}", lambda value: least <= value <= most)


def _one_of(*values: str) -> Limit:
    return Limit(str, " or ".join(values), lambda value: value in values)


FLAG = Limit(bool, "true or false", lambda value: True)
LIMITS = {
    "network": _one_of(*NETWORKS),
    "batch_size": _whole(1),
    "learning_rate": Limit(float, "a finite number above 0", lambda value: 0 < value < math.inf),
    "drop_rate": Limit(float, "a number from 0 to below 1", lambda value: 0 <= value < 1),
    "seed": _whole(0),
    "num_epochs": _whole(1),
    "without_BatchNorm": FLAG,
    "without_dropout": FLAG,
    "dropout_type": _one_of("1d", "2d"),
    "hidden_size": _whole(1, 65536),
    "precision": _one_of("fp32", "bf16"),
    "compile": FLAG,
    "augment": FLAG,
    "schedule": _one_of("constant", "cosine", "onecycle"),
    "synthetic": FLAG,
    "train_images": _whole(1),
    "weight_decay": Limit(float, "a finite number, 0 or more", lambda value: 0 <= value < math.inf),
    "detach_statistics": FLAG,
    "shuffled_patches": Limit(int, "1, 2, 4, 8 or 16", lambda value: value in (1, 2, 4, 8, 16)),
}


@dataclass(frozen=True)
class Settings:
    """All that decides the numbers of one run, but for the data."""

    network: str
    batch_size: int
    learning_rate: float
    drop_rate: float
    seed: int
    num_epochs: int
    without_BatchNorm: bool = False
    without_dropout: bool = False
    dropout_type: str | None = None  # the CNN's: "2d" drops feature maps, "1d" single activations
    hidden_size: int | None = None  # the MLP's
    precision: str = "fp32"
    compile: bool = False
    augment: bool = False
    schedule: str = "constant"
    synthetic: bool = False
    train_images: int | None = None  # the first so many; all by default
    weight_decay: float = 0.0  # decoupled, as in AdamW
    detach_statistics: bool = False  # no gradient through the statistics of batch normalization
    shuffled_patches: int | None = None  # patches of so many pixels a side change places

    @property
    def setting(self) -> str:
        """The name's part before the seed."""
        parts = [self.batch_size, self.learning_rate, self.drop_rate,
                 self.without_BatchNorm, self.without_dropout]
        return "_".join(map(str, parts + [self.dropout_type] * bool(self.dropout_type)))

    @property
    def variant(self) -> str:
        """The name's part behind the seed: empty at the defaults."""
        schedule = "" if self.schedule == "constant" else f"{self.schedule}{self.num_epochs}"
        parts = [
            "" if self.hidden_size in (None, 100) else f"hidden{self.hidden_size}",
            "" if self.precision == "fp32" else self.precision,
            schedule,  # it depends on the number of epochs, which otherwise is no part of the name
            *(flag * getattr(self, flag) for flag in ("compile", "augment", "synthetic")),
            f"images{self.train_images}" * bool(self.train_images),
            f"decay{self.weight_decay}" * bool(self.weight_decay),
            "detached" * self.detach_statistics,
            f"patches{self.shuffled_patches}" * bool(self.shuffled_patches)]
        return "_".join(filter(None, parts))

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return "_".join(filter(None, [self.setting, f"seed{self.seed}", self.variant]))

    @classmethod
    def parse(cls, network: str, name: str) -> "Settings":
        """The settings that a name tells; parts that are missing at its end are at their defaults.

        Raises ValueError for a text that is no name.
        """
        values: dict = {"network": network, "seed": 0, **DEFAULTS.get(network, {})}
        values |= {"dropout_type": "2d"} if network == "cnn" else {"hidden_size": 100}
        grammar = iter(_GRAMMAR)
        for part in name.split("_"):
            match = next(filter(None, (re.fullmatch(form, part) for form in grammar)), None)
            if match is None:
                raise ValueError(f"{part!r} has no place in the name of a run")
            values |= {field: _VALUES[LIMITS[field].kind](text)
                       for field, text in match.groupdict().items()}
        return cls.read(values)

    @classmethod
    def read(cls, values: dict) -> "Settings":
        """Settings out of a file, where what is missing is at its default.

        Raises ValueError if a value is not what the command line allows.
        """
        own = {}
        for field in (field.name for field in dataclasses.fields(cls) if field.name in values):
            value, (kind, allowed, holds) = values[field], LIMITS[field]
            if kind is float and type(value) is int and abs(value) < 2 ** 53:
                value = float(value)
            optional = value is None and getattr(cls, field, ...) is None
            if not optional and not (type(value) is kind and holds(value)):
                raise ValueError(f"{field} is {value!r}, which must be {allowed}")
            own[field] = value
        try:
            return cls(**own)
        except TypeError as error:
            raise ValueError(str(error)) from error

    def identity(self) -> dict:
        """What two runs must share to be the same experiment."""
        settings = dataclasses.asdict(self)
        if self.schedule == "constant":
            del settings["num_epochs"]
        return without_defaults(settings)


def without_defaults(settings: dict) -> dict:
    """A setting at its default is left out: runs of before it was there are the same experiment."""
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    return {name: value for name, value in settings.items()
            if name not in defaults or value != defaults[name]}


_VALUES = {int: int, float: float, bool: lambda text: text != "False", str: str}
_NUMBER = r"[\d.]+(?:e[-+]?\d+)?"
_GRAMMAR = (  # of the parts of a name, in this order; all but the first may be missing
    r"(?P<batch_size>\d+)", rf"(?P<learning_rate>{_NUMBER})", rf"(?P<drop_rate>{_NUMBER})",
    "(?P<without_BatchNorm>True|False)", "(?P<without_dropout>True|False)",
    "(?P<dropout_type>[12]d)", r"seed(?P<seed>\d+)", r"hidden(?P<hidden_size>\d+)",
    "(?P<precision>bf16)", r"(?P<schedule>cosine|onecycle)(?P<num_epochs>\d+)",
    "(?P<compile>compile)", "(?P<augment>augment)", "(?P<synthetic>synthetic)",
    r"images(?P<train_images>\d+)", rf"decay(?P<weight_decay>{_NUMBER})",
    "(?P<detach_statistics>detached)", r"patches(?P<shuffled_patches>\d+)")
