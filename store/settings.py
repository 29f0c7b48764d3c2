"""The settings of a run, each in one line, and the run's name: one name is one experiment.

    BATCHSIZE_LEARNINGRATE_DROPRATE_WITHOUTBATCHNORM_WITHOUTDROPOUT[_DROPOUTTYPE]_seedSEED[_MORE]…

`Settings.name` writes it and `Settings.parse` reads it. Command line, config.json and checks of
what a file says follow from the same lines.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

NETWORKS = ("mlp", "cnn")
LONGEST_NAME = 255  # of a folder, in bytes


class Limit(NamedTuple):
    """Values that a setting may have: their type, in words, as a test, and one by one if few."""

    kind: type
    allowed: str
    holds: Callable[[object], bool]
    choices: tuple[str, ...] = ()


def whole(least: int, most: float = math.inf) -> Limit:
    allowed = f", {least} or more" if most == math.inf else f" from {least} to {most}"
    return Limit(int, f"a whole number{allowed}", lambda value: least <= value <= most)


def one_of(*choices: str) -> Limit:
    return Limit(str, " or ".join(choices), lambda value: value in choices, choices)


POSITIVE = Limit(float, "a finite number above 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Limit(float, "a finite number, 0 or more", lambda value: 0 <= value < math.inf)
SHARE = Limit(float, "a number from 0 to below 1", lambda value: 0 <= value < 1)
POWER = Limit(int, "1, 2, 4, 8 or 16", lambda value: value in (1, 2, 4, 8, 16))
SWITCH = Limit(bool, "true or false", lambda value: True)


class Setting(NamedTuple):
    """How one setting is named, limited and explained."""

    tag: str  # its part of the name, {} being the value
    limit: Limit
    default: object  # a dict: for each network that has this setting
    help: str
    several: bool = False  # the command line takes several values

    def default_of(self, network: str):
        return self.default.get(network) if isinstance(self.default, dict) else self.default


def setting(*of, **more):
    return dataclasses.field(default=None, metadata={"setting": Setting(*of, **more)})


@dataclass(frozen=True)
class Settings:
    """Everything except the data that determines a run's numbers.

    In the order of the name, but for the seed, which stands behind the dropout type. What follows
    there is part of a name only if not at its default. None becomes the network's default.
    """

    network: str = setting("", one_of(*NETWORKS), None, "")
    batch_size: int = setting(
        "{}", whole(1), {"mlp": 1024, "cnn": 128}, "images per step", several=True)
    learning_rate: float = setting("{}", POSITIVE, 0.001, "of Adam", several=True)
    drop_rate: float = setting(
        "{}", SHARE, 0.2, "probability of dropping a value (or map)", several=True)
    seed: int = setting("seed{}", whole(0), 0, "of all random numbers", several=True)
    num_epochs: int = setting(
        "", whole(1), {"mlp": 20, "cnn": 50},
        "passes over the training set; a finished run that is asked for more goes on")
    without_BatchNorm: bool = setting("{}", SWITCH, False, "leave batch normalization out")
    without_dropout: bool = setting("{}", SWITCH, False, "leave dropout out")
    dropout_type: str | None = setting(
        "{}", one_of("1d", "2d"), {"cnn": "2d"},
        "1d drops single activations, 2d whole feature maps")
    hidden_size: int | None = setting(
        "hidden{}", whole(1, 65536), {"mlp": 100}, "units of a hidden layer")
    precision: str = setting(
        "{}", one_of("fp32", "bf16"), "fp32", "bf16: mixed precision, for hardware that has it")
    schedule: str = setting(  # it depends on the number of epochs, which otherwise is in no name
        "{}{num_epochs}", one_of("constant", "cosine", "onecycle"), "constant",
        "of the learning rate: constant; cosine, down to 0; onecycle, up from 1/25 in 30 %% of "
        "the steps, then down to 0")
    compile: bool = setting(
        "compile", SWITCH, False,
        "torch.compile the network: no gain on a CPU, where the CNN then takes 1.6 times as long; "
        "not measured on a GPU")
    augment: bool = setting(
        "augment", SWITCH, False, "train on random crops (padding 4) and horizontal flips")
    synthetic: bool = setting(
        "synthetic", SWITCH, False, "a built-in generated data set, for a first look")
    train_images: int | None = setting(
        "images{}", whole(1), None, "train on the first N images; default: all")
    weight_decay: float = setting(
        "decay{}", NOT_NEGATIVE, 0.0, "decoupled from the gradient, as in AdamW")
    detach_statistics: bool = setting(
        "detached", SWITCH, False, "no gradient through the batch's mean and variance")
    shuffled_patches: int | None = setting(
        "patches{}", POWER, None, "patches of N x N pixels change places, in all images alike")
    hidden_layers: int | None = setting(
        "layers{}", whole(1, 64), {"mlp": 1}, "hidden layers, one behind the other")
    pool_first: bool | None = setting(
        "poolfirst", SWITCH, {"cnn": False}, "pool before dropout, not after it")
    gaussian_dropout: bool | None = setting(
        "gaussian", SWITCH, {"mlp": False}, "multiply by noise N(1, p/(1-p)) instead of dropping")
    bootstrap: bool = setting(
        "bootstrap", SWITCH, False, "train on images drawn with replacement, by the seed")

    def __post_init__(self):
        for name, default in DEFAULTS.get(self.network, {}).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)

    def _parts(self, names: tuple[str, ...]) -> str:
        values = {name: getattr(self, name) for name in names}
        return "_".join(SETTINGS[name].tag.format(value, num_epochs=self.num_epochs)
                        for name, value in values.items() if value is not None)

    @property
    def setting(self) -> str:
        """The name's part before the seed."""
        return self._parts(ALWAYS[:-1])

    @property
    def variant(self) -> str:
        """The name's part behind the seed: empty at the defaults."""
        return self._parts(tuple(name for name in OPTIONAL if getattr(self, name)
                                 != SETTINGS[name].default_of(self.network)))

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return "_".join(filter(None, [self.setting, f"seed{self.seed}", self.variant]))

    @classmethod
    def parse(cls, network: str, name: str) -> "Settings":
        """The settings that a name tells; parts that are missing at its end are at their defaults.

        Raises ValueError for a text that is no name.
        """
        if network not in NETWORKS:
            raise ValueError(f"network is {network!r}, which must be {' or '.join(NETWORKS)}")
        values = {"network": network, **DEFAULTS[network]}
        grammar = iter(grammar_of(network))
        for part in name.split("_"):
            match = next(filter(None, (re.fullmatch(form, part) for form in grammar)), None)
            if match is None:
                raise ValueError(f"{part!r} has no place in the name of a run")
            values |= {name: _VALUES[SETTINGS[name].limit.kind](text)
                       for name, text in match.groupdict().items()}
        return cls.read(values)

    @classmethod
    def read(cls, values: dict) -> "Settings":
        """Settings out of a file, where what no name needs may be missing.

        Raises ValueError if a value is not what the command line allows.
        """
        own = {}
        for name, (_, limit, *_) in SETTINGS.items():
            value = values.get(name)
            if limit.kind is float and type(value) is int and abs(value) < 2 ** 53:
                value = float(value)
            if value is None and (name not in values or may_be_none(name)):
                if name in REQUIRED:
                    raise ValueError(f"{name} is missing")
            elif type(value) is not limit.kind or not limit.holds(value):
                raise ValueError(f"{name} is {value!r}, which must be {limit.allowed}")
            else:
                own[name] = value
        return cls(**own)

    def identity(self) -> dict:
        """What two runs must share to be the same experiment."""
        settings = dataclasses.asdict(self)
        if self.schedule == "constant":
            del settings["num_epochs"]
        return without_defaults(settings)


SETTINGS = {field.name: field.metadata["setting"] for field in dataclasses.fields(Settings)}
DEFAULTS = {network: {name: own.default_of(network) for name, own in SETTINGS.items()
                      if name != "network"} for network in NETWORKS}
_named = [name for name, own in SETTINGS.items() if own.tag]
_first = _named.index("hidden_size")
ALWAYS = (*(name for name in _named[:_first] if name != "seed"), "seed")  # in every name
OPTIONAL = tuple(_named[_first:])
REQUIRED = {"network", "num_epochs", *ALWAYS} - {"dropout_type"}  # in every config.json


def may_be_none(name: str) -> bool:
    return name != "network" and None in (DEFAULTS[network][name] for network in NETWORKS)


def without_defaults(settings: dict) -> dict:
    """A setting at its default is left out: runs of before it was there are the same experiment."""
    defaults = DEFAULTS.get(settings.get("network"), {})
    return {name: value for name, value in settings.items()
            if value is not None and (name not in defaults or value != defaults[name])}


_VALUES = {int: int, float: float, bool: lambda text: text != "False", str: str}
_FORMS = {int: r"\d+", float: r"[\d.]+(?:e[-+]?\d+)?", bool: "True|False"}


def grammar_of(network: str) -> list[str]:
    """The form of each part of a network's names, in order; all but the first may be missing."""
    def form(name: str, text: str = "") -> str:
        limit, default = SETTINGS[name].limit, SETTINGS[name].default
        choices = (choice for choice in limit.choices if name in ALWAYS or choice != default)
        return f"(?P<{name}>{text or _FORMS.get(limit.kind) or '|'.join(choices)})"

    own = [name for name in ALWAYS + OPTIONAL
           if not isinstance(SETTINGS[name].default, dict) or network in SETTINGS[name].default]
    tags = {name: SETTINGS[name].tag for name in own}
    return [tag.format(form(name), num_epochs=form("num_epochs")) if "{}" in tag
            else form(name, tag) for name, tag in tags.items()]
