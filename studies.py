"""The studies: each stands here once, for run_grid.sh, its help, the report and the tests.

A study compares curves, each the runs of one setting at several seeds. `study` takes the form of
the curves' labels and their values; several values for a setting mean every combination.
"""

import dataclasses
import itertools
from dataclasses import dataclass

from store.settings import DEFAULTS, NETWORKS, Settings

BATCH_SIZES = {"mlp": (512, 1024, 2048, 4096), "cnn": (128, 256, 512, 1024)}
LEARNING_RATES = (0.001, 0.0005, 0.0001)
DROP_RATES = (0.0, 0.2, 0.4, 0.6, 0.8)
SWEEP = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # learning rates
SMALL_BATCHES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SWITCH = (False, True)


@dataclass(frozen=True)
class Study:
    """Runs to compare: `settings` are {label of a curve: its settings, with seed 0}."""

    name: str  # on the command line; the studies of both networks may share one
    network: str
    figures: str  # of its figures of curves: FIGURES_{train,val}_{acc,loss}.png
    title: str
    epochs: int
    settings: dict[str, Settings]
    splits: tuple[str, ...]  # of its figures of curves

    @property
    def varied(self) -> list[str]:
        """The names of the settings in which its curves differ."""
        return [name for name in DEFAULTS[self.network]
                if len({getattr(each, name) for each in self.settings.values()}) > 1]


def study(name: str, network: str, title: str, curves: dict[str, dict], *, figures: str = "",
          epochs: int | None = None, splits: tuple[str, ...] = ()) -> Study:
    epochs = epochs or DEFAULTS[network]["num_epochs"]
    settings = {}
    for label, values in curves.items():
        axes = [each if isinstance(each, tuple) else (each,) for each in values.values()]
        for point in itertools.product(*axes):
            own = Settings(network, num_epochs=epochs, **dict(zip(values, point, strict=True)))
            settings[label.format(**vars(own))] = own
    return Study(name, network, figures or name, title, epochs, settings, splits)


def trained(settings: Settings) -> Settings:
    """The same for settings that are one network: drop rate 0 is no dropout, whatever its type."""
    if settings.without_dropout or settings.drop_rate == 0:
        return dataclasses.replace(settings, drop_rate=0.0, without_dropout=False,
                                   dropout_type=None, pool_first=None, gaussian_dropout=None)
    return settings


# Every study is of the network's default settings but for what stands here.

CURVES = ("train", "val")
SHORT = "{batch_size}_{learning_rate}_{drop_rate}"
ABLATED = SHORT + "_{without_BatchNorm}_{without_dropout}"


def grid(network: str) -> Study:
    return study(network, network, f"{network.upper()} grid", {SHORT: {
        "batch_size": BATCH_SIZES[network], "learning_rate": LEARNING_RATES,
        "drop_rate": DROP_RATES}}, figures=network.upper(), splits=(*CURVES, "test"))


def ablation(network: str) -> Study:
    return study("ablation", network, f"{network.upper()}, ablation", {ABLATED: {
        "without_BatchNorm": SWITCH, "without_dropout": SWITCH}},
        figures=f"{network.upper()}_ablation", splits=CURVES)


def rates(network: str) -> Study:
    return study("rates", network, f"{network.upper()}: learning rate", {
        "{learning_rate}_{without_BatchNorm}": {
            "without_BatchNorm": SWITCH, "learning_rate": SWEEP}},
        figures=f"{network.upper()}_learning_rates", epochs=5)


def patches(network: str) -> Study:
    return study("shuffled_patches", network, f"{network.upper()}, shuffled patches", {
        "32": {},  # the whole image
        "{shuffled_patches}": {"shuffled_patches": (16, 8, 4, 2, 1)}},
        figures=f"{network.upper()}_shuffled_patches", epochs=10)


STUDIES = (
    *(kind(network) for network in NETWORKS for kind in (grid, ablation, rates)),
    study("dropout_type", "cnn", "CNN, dropping values (1d) or maps (2d)", {
        SHORT + "_{dropout_type}": {"dropout_type": ("1d", "2d"), "drop_rate": DROP_RATES}},
        figures="dimention", splits=CURVES),
    study("drop_rate", "cnn", "CNN, drop rate", {SHORT: {"drop_rate": DROP_RATES}},
          figures="dropout", splits=CURVES),
    study("batch_size", "mlp", "MLP, batch size", {
        SHORT: {"batch_size": BATCH_SIZES["mlp"], "drop_rate": 0.0}},
        figures="batchsize", splits=CURVES),
    # for the arguments of the report
    study("capacity", "mlp", "MLP, hidden size", {"{hidden_size}_{drop_rate}": {
        "hidden_size": (50, 100, 200, 400, 800, 1600), "drop_rate": DROP_RATES}}),
    study("weight_decay", "mlp", "MLP, dropout or weight decay", {
        "drop_{drop_rate}": {"drop_rate": (0.0, 0.1, 0.2, 0.4, 0.6)},
        "decay_{weight_decay}": {
            "weight_decay": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), "drop_rate": 0.0}},
        epochs=100),
    study("data_size", "mlp", "MLP, number of training images", {
        "{train_images}_{drop_rate}": {"train_images": (1000, 2500, 5000, 10000, 20000),
                                       "batch_size": 128, "drop_rate": DROP_RATES[:4]},
        "40000_{drop_rate}": {"batch_size": 128, "drop_rate": DROP_RATES[:4]}},  # all of them
        epochs=40),  # 1,000 images give 7 steps
    study("batch_norm", "mlp", "MLP, batch normalization by batch size", {
        "{batch_size}_with": {"batch_size": SMALL_BATCHES},
        "{batch_size}_without": {"batch_size": SMALL_BATCHES, "without_BatchNorm": True},
        "{batch_size}_detached": {"batch_size": SMALL_BATCHES, "detach_statistics": True}}),
    *map(patches, NETWORKS),
    study("depth", "mlp", "MLP, hidden layers", {
        "{hidden_layers}_{without_BatchNorm}_{drop_rate}_{learning_rate}": {
            "hidden_layers": (1, 2, 4, 8), "without_BatchNorm": SWITCH, "drop_rate": (0.0, 0.2),
            "learning_rate": (0.01, 0.003, 0.001, 0.0003)}}),
    study("pooling", "cnn", "CNN, dropping before or behind pooling", {
        "{drop_rate}_{dropout_type}_{pool_first}": {
            "pool_first": SWITCH, "dropout_type": ("1d", "2d"), "drop_rate": (0.2, 0.4, 0.6)}},
        epochs=20),
    study("noise", "mlp", "MLP, dropping or Gaussian noise", {
        "dropout_{drop_rate}": {"drop_rate": (0.1, 0.2, 0.4, 0.6)},
        "gaussian_{drop_rate}": {"gaussian_dropout": True, "drop_rate": (0.1, 0.2, 0.4, 0.6)}}),
    study("bagging", "mlp", "MLP, trained on images drawn with replacement", {  # for 13 seeds
        "all": {}, "bootstrap": {"bootstrap": True}}),
    study("decayed_dropout", "mlp", "MLP, dropout with weight decay", {
        "{drop_rate}_{weight_decay}": {
            "drop_rate": (0.2, 0.4), "weight_decay": (0.03, 0.1, 0.3, 1.0)}}, epochs=100))

GROUPS = {  # names that stand for several
    "all": ("mlp", "cnn", "ablation", "dropout_type", "drop_rate", "batch_size"),
    "arguments": ("capacity", "weight_decay", "data_size", "batch_norm", "shuffled_patches",
                  "depth", "pooling", "noise", "bagging", "decayed_dropout")}
