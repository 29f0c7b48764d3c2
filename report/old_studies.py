"""The studies of the report: which runs belong together, and how far each study has come."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from report.results import RESULTS, data_name, read_object, read_results, read_runs, version
from store.files import UserError
from store.run import Run
from store.settings import DEFAULTS, NETWORKS, Settings

EPOCHS = {network: DEFAULTS[network]["num_epochs"] for network in NETWORKS}
BASES = {network: "_".join(map(str, list(DEFAULTS[network].values())[:3])) for network in NETWORKS}
BATCH_SIZES = {"mlp": (512, 1024, 2048, 4096), "cnn": (128, 256, 512, 1024)}
DROP_RATES = (0.0, 0.2, 0.4, 0.6, 0.8)
LEARNING_RATES = (0.001, 0.0005, 0.0001)
SWEEP = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # learning rates
HIDDEN_SIZES = (50, 100, 200, 400, 800, 1600)
DECAYS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
RATES_AGAINST_DECAY = (0.0, 0.1, 0.2, 0.4, 0.6)
TRAIN_IMAGES = (1000, 2500, 5000, 10000, 20000, 40000)
SMALL_BATCHES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
NORMS = {"with": "False", "without": "True", "detached": "False"}  # arms, as without_BatchNorm
ENOUGH = 3  # seeds
PATCHES = (32, 16, 8, 4, 2, 1)  # pixels a side; 32 is the whole image
OF_STUDIES = {"hidden_size": None, "train_images": None, "weight_decay": 0.0,
              "detach_statistics": False, "shuffled_patches": None}  # settings that studies vary


def experiment(settings: Settings) -> str:
    """A run's name without the seed, the same for settings that are one network.

    Drop rate 0 is without dropout, whatever its type.
    """
    if settings.without_dropout or settings.drop_rate == 0:
        settings = dataclasses.replace(settings, drop_rate=0.0, without_dropout=False,
                                       dropout_type=settings.dropout_type and "2d")
    plain = Settings(**{name: getattr(settings, name) for name in (
        "network", "batch_size", "learning_rate", "drop_rate", "seed", "num_epochs",
        "without_BatchNorm", "without_dropout", "dropout_type", *OF_STUDIES)})
    return "_".join(filter(None, (plain.setting, plain.variant)))


def kind(run: Run) -> tuple[str, str]:
    """What runs must share to be in one report: all settings that no study varies, and the data."""
    return dataclasses.replace(run.settings, **OF_STUDIES).variant, run.fingerprint


class Source:
    """All runs of one place, and of each network those that can be compared.

    Runs on other data, with another precision, augmentation and so on, are other experiments. Of
    each network the commonest kind is `chosen`, {experiment: {seed: run}}; `notes` tells of others.
    Runs that tell their code take the place of those that do not, as soon as they are ENOUGH.
    """

    def __init__(self, records: list[Run], theory: dict | None = None):
        self.records = [run for run in records if run.rows or run.failure]
        self.theory = theory or {}
        self.chosen: dict[str, dict[str, dict[int, Run]]] = {network: {} for network in NETWORKS}
        self.data: dict[str, str] = {}
        self.fingerprint: dict[str, str] = {}
        self.classes: dict[str, int] = {}  # how many
        self.notes = []
        for network in NETWORKS:
            runs = [run for run in self.of(network) if run.settings]
            kinds = Counter(map(kind, runs))
            if not kinds:
                continue
            common = max(kinds, key=lambda each: (kinds[each], each[0] == "", each))
            self.choose(network, [run for run in runs if kind(run) == common])
            self.fingerprint[network] = common[1]
            self.notes += [f"{network}: {count} {variant or 'default'} runs on other data or with "
                           "other options are not in the studies"
                           for (variant, data), count in kinds.items() if (variant, data) != common]

    def choose(self, network: str, runs: list[Run]) -> None:
        variant = kind(runs[0])[0]
        self.data[network] = data_name(runs[0]) + (f" ({variant})" if variant else "")
        self.classes[network] = runs[0].classes
        chosen = self.chosen[network]
        for run in runs:
            seeds = chosen.setdefault(experiment(run.settings), {})
            seeds[run.seed] = max(run, seeds.get(run.seed, run), key=lambda run: (
                version(run) != "", len(run.rows), run.name.startswith(experiment(run.settings))))
        for name, seeds in chosen.items():
            known = {seed: run for seed, run in seeds.items() if version(run)}
            if len(known) >= min(ENOUGH, len(seeds) - len(known)):
                chosen[name] = known or seeds

    def of(self, network: str) -> list[Run]:
        return [run for run in self.records if run.network == network]


@dataclass(frozen=True)
class Study:
    """A set of runs to compare: the name of each curve and the setting that it shows."""

    name: str  # of its figures: NAME_{train,val}_{acc,loss}.png
    network: str
    command: str  # what makes the runs
    title: str
    epochs: int  # that the command trains for, if nothing else is asked
    settings: dict[str, str] = field(default_factory=dict)
    more: str = ""  # a pattern of experiments that belong to it too, if somebody made them
    splits: tuple[str, ...] = ("train", "val")  # of its figures of curves

    @property
    def is_grid(self) -> bool:
        return "test" in self.splits


def _plain(label: str) -> str:
    return f"{label}_False_False"


def _studies() -> dict[str, Study]:
    """Those of the older report, and the learning rates."""
    flags = [f"{norm}_{dropout}" for norm in (False, True) for dropout in (False, True)]
    studies = []
    for network, batch_sizes in BATCH_SIZES.items():
        labels = [f"{b}_{lr}_{p}" for b in batch_sizes for lr in LEARNING_RATES for p in DROP_RATES]
        end = "_2d" if network == "cnn" else ""
        name, base, epochs = network.upper(), BASES[network], EPOCHS[network]
        studies += [
            Study(name, network, f"./run_grid.sh {network}", f"{name} grid", epochs,
                  {label: _plain(label) + end for label in labels},
                  splits=("train", "val", "test")),
            Study(f"{name}_ablation", network, f"./run_grid.sh ablation --network {network}",
                  f"{name}, ablation", epochs,
                  {f"{base}_{flag}": f"{base}_{flag}{end}" for flag in flags}),
            Study(f"{name}_learning_rates", network, f"python theory.py rates --network {network}",
                  f"{name}: learning rate", 5,
                  {f"{lr}_{norm}": f"{base.replace('0.001', str(lr))}_{norm}_False{end}"
                   for norm in (False, True) for lr in SWEEP}, splits=())]
    rates = [f"128_0.001_{p}" for p in DROP_RATES]
    studies += [
        Study("dimention", "cnn", "./run_grid.sh dropout_type",
              "CNN, dropping values (1d) or maps (2d)", EPOCHS["cnn"],
              {f"{rate}_{type}": f"{_plain(rate)}_{type}" for type in ("1d", "2d")
               for rate in rates}, r"(128_0.001_[\d.]+)_False_False(_[12]d)"),
        Study("dropout", "cnn", "./run_grid.sh drop_rate", "CNN, drop rate", EPOCHS["cnn"],
              {rate: _plain(rate) + "_2d" for rate in rates},
              r"(128_0.001_[\d.]+)_False_False_2d()"),
        Study("batchsize", "mlp", "./run_grid.sh batch_size", "MLP, batch size", EPOCHS["mlp"],
              {f"{b}_0.001_0.0": _plain(f"{b}_0.001_0.0") for b in BATCH_SIZES["mlp"]},
              r"(\d+_0.001_0.0)_False_False()")]
    return {study.name: study for study in studies}


def _arguments() -> dict[str, Study]:
    """For what the older report argues and never measured."""
    studies = [
        Study("capacity", "mlp", "./run_grid.sh capacity", "MLP, hidden size", 20,
              {f"{size}_{p}": f"{_plain(f'1024_0.001_{p}')}_hidden{size}"
               for size in HIDDEN_SIZES for p in DROP_RATES}),
        Study("weight_decay", "mlp", "./run_grid.sh weight_decay", "MLP, dropout or weight decay",
              100, {f"drop_{p}": _plain(f"1024_0.001_{p}") for p in RATES_AGAINST_DECAY}
              | {f"decay_{decay}": f"1024_0.001_0.0_False_False_decay{decay}" for decay in DECAYS}),
        Study("data_size", "mlp", "./run_grid.sh data_size", "MLP, number of training images", 40,
              {f"{n}_{p}": _plain(f"128_0.001_{p}") + f"_images{n}" * (n < TRAIN_IMAGES[-1])
               for n in TRAIN_IMAGES for p in DROP_RATES[:4]}),
        Study("batch_norm", "mlp", "./run_grid.sh batch_norm",
              "MLP, batch normalization by batch size", 20,
              {f"{b}_{arm}": f"{b}_0.001_0.2_{without}_False" + "_detached" * (arm == "detached")
               for arm, without in NORMS.items() for b in SMALL_BATCHES})]
    for network in NETWORKS:
        base = _plain(BASES[network]) + "_2d" * (network == "cnn")
        studies.append(Study(
            f"{network.upper()}_shuffled_patches", network,
            f"./run_grid.sh shuffled_patches --network {network}",
            f"{network.upper()}, shuffled patches", 10,
            {str(size): base + f"_patches{size}" * (size < PATCHES[0]) for size in PATCHES}))
    return {study.name: dataclasses.replace(study, splits=()) for study in studies}


ARGUMENTS = _arguments()
STUDIES = _studies() | ARGUMENTS


def summary(rows: list[dict]) -> dict[str, float]:
    """A run in numbers.

    Accuracies, test loss and `best_epoch` are those of the best validation accuracy (the first, if
    several are equal), `val_loss` is the lowest. last_… and quarter_… are those of the last epoch
    and the mean of the last quarter.
    """
    best = max(rows, key=lambda row: row["val_acc"])
    metrics = ("train_acc", "train_loss", "val_acc", "val_loss", "test_acc", "test_loss")
    return {key: best[key] for key in metrics} | {
        "best_epoch": best["epoch"], "val_loss": min(row["val_loss"] for row in rows),
        **{f"last_{key}": rows[-1][key] for key in metrics},
        **{f"quarter_{key}": quarter(rows, key) for key in metrics}}


def quarter(rows: list[dict], key: str, back: int = 0) -> float:
    """The mean of a metric over the last quarter of the epochs, or `back` quarters before."""
    n = max(1, len(rows) // 4)
    part = rows[max(0, len(rows) - (back + 1) * n):len(rows) - back * n]
    return float(np.mean([row[key] for row in part or rows[:1]]))


@dataclass
class Curve:
    """One setting of a study: its seeds, all over the same number of epochs."""

    label: str
    runs: dict[int, Run]
    epochs: int

    @property
    def network(self) -> str:
        return next(iter(self.runs.values())).network

    @property
    def versions(self) -> list[str]:
        """Of the code that made it; those that are not recorded are 'unknown'."""
        return sorted({version(run) or "unknown" for run in self.runs.values()})

    def values(self, key: str) -> np.ndarray:
        """A metric, seeds x epochs."""
        return np.array([[row[key] for row in run.rows[:self.epochs]]
                         for run in self.runs.values()])

    def by_seed(self, measure: Callable[[list[dict]], float] | str) -> dict[int, float]:
        """A number per seed: `measure` of the rows, or what `summary` calls so."""
        if callable(measure):
            return {seed: measure(run.rows[:self.epochs]) for seed, run in self.runs.items()}
        return {seed: numbers[measure] for seed, numbers in self.summaries.items()}

    @cached_property
    def summaries(self) -> dict[int, dict[str, float]]:
        return {seed: summary(run.rows[:self.epochs]) for seed, run in self.runs.items()}

    def mean(self, measure) -> float:
        return float(np.mean(list(self.by_seed(measure).values())))

    def deviation(self, measure) -> float:
        """Standard deviation over the seeds; nan for one seed."""
        values = list(self.by_seed(measure).values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


@cache
def _asked(network: str) -> set[str]:
    """The experiments of all studies: one of another study is none that somebody added."""
    return {experiment(Settings.parse(network, name)) for study in STUDIES.values()
            if study.network == network for name in study.settings.values()}


class View:
    """A study as far as its runs have come.

    `epochs` is the commonest requested length (ties: the shorter); longer runs are cut, so that all
    are compared after equally many. `curves` come best first: lowest validation loss over the
    epochs, mean over seeds. `missing` names what is not there, not finished or failed.
    """

    def __init__(self, study: Study, source: Source):
        self.study = study
        self.data = source.data.get(study.network, "")
        self.fingerprint = source.fingerprint.get(study.network, "")
        self.classes = source.classes.get(study.network, 10)
        self.missing: list[str] = []
        self.failed: dict[str, str] = {}
        chosen = source.chosen[study.network]
        self.settings = {label: experiment(Settings.parse(study.network, name))
                         for label, name in study.settings.items()}
        for name in chosen if study.more else ():
            if name not in _asked(study.network) and (match := re.fullmatch(study.more, name)):
                self.settings.setdefault("".join(match.groups()), name)
        found = {label: chosen.get(name, {}) for label, name in self.settings.items()}
        asked = Counter(max(run.num_epochs for run in seeds.values())
                        for seeds in found.values() if seeds)
        self.epochs = max(asked, key=lambda epochs: (asked[epochs], -epochs)) if asked else 0
        curves = [curve for label, seeds in found.items() if (curve := self.curve(label, seeds))]
        self.curves = {curve.label: curve
                       for curve in sorted(curves, key=lambda curve: curve.mean("val_loss"))}

    def curve(self, label: str, seeds: dict[int, Run]) -> Curve | None:
        """What there is of a setting: the seeds that have come farthest, if any have begun."""
        epochs = min(self.epochs, max((len(run.rows) for run in seeds.values()), default=0))
        failures = [run.failure for run in seeds.values() if run.failure]
        if failures:
            self.failed[label] = failures[0].get("reason", "")
        if epochs < self.epochs or not epochs:
            state = f" ({epochs} of {self.epochs} epochs)" if epochs else ""
            self.missing.append(label + (f" (failed: {self.failed[label]})" if failures else state))
        return Curve(label, {seed: run for seed, run in sorted(seeds.items())
                             if len(run.rows) >= epochs}, epochs) if epochs else None

    def complete(self, label: str) -> Curve | None:
        """The curve of that name, if it has all its epochs."""
        curve = self.curves.get(label)
        return curve if curve and curve.epochs == self.epochs else None

    @property
    def runs(self) -> list[Run]:
        return list({run.name: run for curve in self.curves.values()
                     for run in curve.runs.values()}.values())

    @property
    def versions(self) -> Counter:
        """How many of its runs each version of the code made; '' is one that is not recorded."""
        return Counter(map(version, self.runs))

    @property
    def devices(self) -> Counter:
        return Counter(str(run.config.get("processor", "unknown")) for run in self.runs)

    @property
    def origin(self) -> str:
        """Of how many versions of the code and devices its runs are."""
        known = {name: n for name, n in self.versions.most_common() if name}
        parts = [f"{runs_text(n)} of code {name}" for name, n in known.items()]
        if "" in self.versions:
            parts.append(f"{runs_text(self.versions[''])} whose code was not recorded")
        processors = f"{len(self.devices)} processor{'s' * (len(self.devices) > 1)}"
        return f"{', '.join(parts)}; {processors}" if parts else ""

    @property
    def is_of_one(self) -> bool:
        """Whether one known version of the code made all its runs, on one kind of device."""
        return len(self.versions) == len(self.devices) == 1 and "" not in self.versions

    @property
    def command(self) -> str:
        """What makes its runs, with the epochs and seeds that all its settings have."""
        seeds = [set(curve.runs) for curve in self.curves.values()]
        common = sorted(set.intersection(*seeds)) if seeds else []
        if "theory.py" in self.study.command:
            common = []  # it has no such flag
        return (self.study.command
                + f" --num_epochs {self.epochs}" * (self.epochs not in (0, self.study.epochs))
                + (f" --seed {' '.join(map(str, common))}" if len(common) > 1 else ""))

    @property
    def guessing(self) -> dict[str, float]:
        """Validation accuracy and loss of a network that knows the number of classes alone."""
        return {"val_acc": 1 / self.classes, "val_loss": math.log(self.classes)}

    @property
    def seeds(self) -> list[int]:
        """The numbers of seeds that its curves have."""
        return sorted({len(curve.runs) for curve in self.curves.values()})

    @property
    def seeds_text(self) -> str:
        low, high = min(self.seeds, default=0), max(self.seeds, default=0)
        return f"{low} seed{'s' * (low != 1)}" if low == high else f"{low} to {high} seeds"


def runs_text(n: int) -> str:
    return f"{n} run{'s' * (n != 1)}"


def read_source(runs_dir: Path | None, results: Path = RESULTS) -> Source:
    """The user's runs, or the published ones; UserError if there are none at all."""
    place = runs_dir or results
    theory = read_object(place / "theory.json")
    source = Source(read_runs(place) if runs_dir else read_results(place), theory)
    if not any(run.rows for run in source.records):
        found = f"no runs in {place}" if place.is_dir() else f"there is no folder {place}"
        flag = f" --runs_dir {place}" if runs_dir else ""
        raise UserError(f"{found}; ./run_grid.sh all{flag} makes them")
    return source
