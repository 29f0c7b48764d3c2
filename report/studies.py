"""The studies of the report, and the runs that they are made of: the user's own, or the published ones in results/.

    results/<mlp|cnn>.json    configuration, result and failure of each run, a line per run
    results/<mlp|cnn>.csv     metrics.csv of all runs, with the run's name in the first column
    results/theory.json       what theory.py measured on the networks themselves
    results/data.json         names for data sets that the runs know by their fingerprint alone

`collect` writes the first three from a folder of runs. Nothing in here imports torch.
"""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from store.files import ROOT, UserError, as_csv, make_folder, read_json, write_file
from store.run import COLUMNS, RunFolder, metrics_row

RESULTS = ROOT / "results"
NETWORKS = ("mlp", "cnn")
EPOCHS = {"mlp": 20, "cnn": 50}
BASES = {"mlp": "1024_0.001_0.2", "cnn": "128_0.001_0.2"}  # what ablations and learning rates depart from
DROP_RATES = (0.0, 0.2, 0.4, 0.6, 0.8)
LEARNING_RATES = (0.001, 0.0005, 0.0001)
SWEEP = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # learning rates, with and without BatchNorm


@dataclass(frozen=True)
class Record:
    """What is known of one run. Its name is SETTING_seedSEED, and _VARIANT if it departs from the defaults."""

    network: str
    name: str
    config: dict
    rows: list[dict]
    result: dict | None = None
    failure: dict | None = None

    @cached_property
    def _parts(self) -> tuple[str, str, str]:
        match = re.fullmatch(r"(.+)_seed(\d+)(?:_(.+))?", self.name)
        return match.groups(default="") if match else (self.name, "0", "")

    setting = property(lambda self: self._parts[0])
    seed = property(lambda self: int(self._parts[1]))
    variant = property(lambda self: self._parts[2])

    @property
    def fingerprint(self) -> str:
        return self.config.get("data", {}).get("fingerprint", "")

    @property
    def classes(self) -> int:
        """How many classes its data has; as many as CIFAR-10 where that is not known."""
        classes = self.config.get("data", {}).get("classes")
        return len(classes) if isinstance(classes, list) and classes else 10

    @property
    def num_epochs(self) -> int:
        epochs = self.config.get("num_epochs")
        return epochs if isinstance(epochs, int) else len(self.rows)


def read_runs(folder: Path) -> list[Record]:
    """The runs in a RUNS_DIR, finished or not."""
    runs = [(network, RunFolder(path)) for network in NETWORKS for path in sorted((folder / network).glob("*_seed*"))]
    return [Record(network, run.name, config, run.metrics(), run.result(), run.failure())
            for network, run in runs if (config := run.config())]


def read_results(folder: Path = RESULTS) -> list[Record]:
    """The published runs."""
    records = []
    for network in NETWORKS:
        runs = read_json(folder / f"{network}.json") or {}
        rows: dict[str, list[dict]] = {name: [] for name in runs}
        if runs:
            with open(folder / f"{network}.csv", newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    rows[row["name"]].append(metrics_row(row))
        records += [Record(network, name, run["config"], rows[name], run["result"], run["failure"])
                    for name, run in runs.items()]
    return records


def collect(runs_dir: Path, folder: Path = RESULTS) -> list[str]:
    """Take the finished and failed runs of RUNS_DIR, and its theory.json, into results/; returns their names.

    Runs that are there already are replaced, unless they have more epochs. The bytes written follow from the
    runs alone, whatever the order in which they were collected.
    """
    known = {(record.network, record.name): record for record in read_results(folder)}
    ended = [record for record in read_runs(runs_dir) if record.result or record.failure]
    new = [record for record in ended if (record.network, record.name) not in known
           or len(record.rows) >= len(known[record.network, record.name].rows)]
    theory = read_json(runs_dir / "theory.json")
    if not ended and theory is None:
        raise UserError(f"no finished runs in {runs_dir}; ./run_grid.sh STUDY --runs_dir {runs_dir} makes them")
    known |= {(record.network, record.name): record for record in new}
    make_folder(folder)
    for network in NETWORKS:
        records = [known[key] for key in sorted(known) if key[0] == network]
        if records:
            lines = [f"{json.dumps(record.name)}: "
                     + json.dumps({key: getattr(record, key) for key in ("config", "result", "failure")})
                     for record in records]
            write_file(folder / f"{network}.json", ("{\n" + ",\n".join(lines) + "\n}\n").encode())
            rows = ({"name": record.name, **row} for record in records for row in record.rows)
            write_file(folder / f"{network}.csv", as_csv(("name", *COLUMNS), rows))
    if theory is not None:
        write_theory(folder / "theory.json", theory)
    return [f"{record.network}/{record.name}" for record in new]


def write_theory(path: Path, theory: dict) -> None:
    """Bring `theory` ({network: {topic: value}}) into the file, which keeps its other topics; a line per topic."""
    old = read_json(path) or {}
    merged = {network: old.get(network, {}) | theory.get(network, {}) for network in NETWORKS
              if network in old or network in theory}
    blocks = [f"{json.dumps(network)}: {{\n" + ",\n".join(f"{json.dumps(topic)}: {json.dumps(topics[topic])}"
                                                          for topic in sorted(topics)) + "\n}"
              for network, topics in merged.items()]
    write_file(path, ("{\n" + ",\n".join(blocks) + "\n}\n").encode())


def data_name(record: Record) -> str:
    """The data of a run in words."""
    data = record.config.get("data", {})
    name = (read_json(RESULTS / "data.json") or {}).get(data.get("fingerprint"))
    source = data.get("source", "unknown data")
    return name or {"official": "CIFAR-10", "synthetic": "generated data, not CIFAR-10"}.get(source, source)


class Source:
    """All runs of one place, and of each network those that can be compared.

    Runs on other data, or with another precision, augmentation and so on, are other experiments. Of each
    network the commonest kind is `chosen`; `notes` says what is left out.
    """

    def __init__(self, records: list[Record], theory: dict | None = None):
        self.records = [record for record in records if record.rows or record.failure]
        self.theory = theory or {}
        self.chosen: dict[str, dict[str, dict[int, Record]]] = {network: {} for network in NETWORKS}
        self.data: dict[str, str] = {}
        self.fingerprint: dict[str, str] = {}
        self.classes: dict[str, int] = {}  # how many
        self.notes = []
        for network in NETWORKS:
            kinds = Counter((record.variant, record.fingerprint) for record in self.of(network))
            if not kinds:
                continue
            kind = max(kinds, key=lambda kind: (kinds[kind], kind[0] == "", kind))
            for record in self.of(network):
                if (record.variant, record.fingerprint) == kind:
                    self.chosen[network].setdefault(record.setting, {})[record.seed] = record
                    self.data[network] = data_name(record) + (f" ({kind[0]})" if kind[0] else "")
                    self.classes[network] = record.classes
            self.fingerprint[network] = kind[1]
            self.notes += [f"{network}: {count} {variant or 'default'} runs on other data or with other options are "
                           "not in the studies" for (variant, _), count in kinds.items() if (variant, _) != kind]

    def of(self, network: str) -> list[Record]:
        return [record for record in self.records if record.network == network]


@dataclass(frozen=True)
class Study:
    """A set of runs to compare: the name of each curve and the setting that it shows."""

    name: str  # of its figures: NAME_{train,val}_{acc,loss}.png
    network: str
    command: str  # what makes the runs
    title: str
    epochs: int  # that the command trains for, if nothing else is asked
    settings: dict[str, str] = field(default_factory=dict)
    more: str = ""  # a pattern of settings that belong to it too, if somebody made them
    splits: tuple[str, ...] = ("train", "val")

    @property
    def is_grid(self) -> bool:
        return "test" in self.splits


def _plain(label: str) -> str:
    return f"{label}_False_False"


def _studies() -> dict[str, Study]:
    grids = {"mlp": (512, 1024, 2048, 4096), "cnn": (128, 256, 512, 1024)}
    flags = [f"{norm}_{dropout}" for norm in (False, True) for dropout in (False, True)]
    studies = []
    for network, batch_sizes in grids.items():
        labels = [f"{b}_{lr}_{p}" for b in batch_sizes for lr in LEARNING_RATES for p in DROP_RATES]
        end = "_2d" if network == "cnn" else ""
        name, base, epochs = network.upper(), BASES[network], EPOCHS[network]
        studies.append(Study(name, network, f"./run_grid.sh {network}", f"{name} grid", epochs,
                             {label: _plain(label) + end for label in labels}, splits=("train", "val", "test")))
        studies.append(Study(f"{name}_ablation", network, "./run_grid.sh ablation",
                             f"{name}, ablation", epochs,
                             {f"{base}_{flag}": f"{base}_{flag}{end}" for flag in flags}))
        studies.append(Study(f"{name}_learning_rates", network, f"python theory.py rates --network {network}",
                             f"{name}: learning rate", 5,
                             {f"{lr}_{norm}": f"{base.replace('0.001', str(lr))}_{norm}_False{end}"
                              for norm in (False, True) for lr in SWEEP}))
    rates = [f"128_0.001_{p}" for p in DROP_RATES]
    studies += [
        Study("dimention", "cnn", "./run_grid.sh dropout_type", "CNN, dropping values (1d) or maps (2d)", EPOCHS["cnn"],
              {f"{rate}_{kind}": f"{_plain(rate)}_{kind}" for kind in ("1d", "2d") for rate in rates},
              r"(128_0.001_[\d.]+)_False_False(_[12]d)"),
        Study("dropout", "cnn", "./run_grid.sh drop_rate", "CNN, drop rate", EPOCHS["cnn"],
              {rate: _plain(rate) + "_2d" for rate in rates}, r"(128_0.001_[\d.]+)_False_False_2d()"),
        Study("batchsize", "mlp", "./run_grid.sh batch_size", "MLP, batch size", EPOCHS["mlp"],
              {f"{b}_0.001_0.0": _plain(f"{b}_0.001_0.0") for b in grids["mlp"]}, r"(\d+_0.001_0.0)_False_False()")]
    return {study.name: study for study in studies}


STUDIES = _studies()


def summary(rows: list[dict]) -> dict[str, float]:
    """A run in numbers: training at the last epoch, the best of validation, test at the best validation accuracy."""
    best = max(rows, key=lambda row: row["val_acc"])
    return {"train_acc": rows[-1]["train_acc"], "train_loss": rows[-1]["train_loss"],
            "val_acc": best["val_acc"], "val_loss": min(row["val_loss"] for row in rows),
            "test_acc": best["test_acc"], "test_loss": best["test_loss"], "best_epoch": best["epoch"]}


@dataclass
class Curve:
    """One setting of a study: its seeds, all over the same number of epochs."""

    label: str
    runs: dict[int, Record]
    epochs: int

    def values(self, key: str) -> np.ndarray:
        """A metric, seeds x epochs."""
        return np.array([[row[key] for row in run.rows[:self.epochs]] for run in self.runs.values()])

    def by_seed(self, measure: Callable[[list[dict]], float] | str) -> dict[int, float]:
        """A number per seed: `measure` of the rows, or what `summary` calls so."""
        take = measure if callable(measure) else lambda rows: summary(rows)[measure]
        return {seed: take(run.rows[:self.epochs]) for seed, run in self.runs.items()}

    def mean(self, measure) -> float:
        return float(np.mean(list(self.by_seed(measure).values())))

    def deviation(self, measure) -> float:
        """Standard deviation over the seeds; nan for one seed."""
        values = list(self.by_seed(measure).values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


class View:
    """A study as far as its runs have come.

    `epochs` is the number that most of its settings were asked for, of equals the lowest; what has more is cut
    there, so that all are compared after equally many. `curves` come best first: lowest validation loss over the
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
        self.settings = dict(study.settings)
        for setting in chosen if study.more else ():
            if match := re.fullmatch(study.more, setting):
                self.settings.setdefault("".join(match.groups()), setting)
        found = {label: chosen.get(setting, {}) for label, setting in self.settings.items()}
        asked = Counter(max(run.num_epochs for run in seeds.values()) for seeds in found.values() if seeds)
        self.epochs = max(asked, key=lambda epochs: (asked[epochs], -epochs)) if asked else 0
        curves = []
        for label, seeds in found.items():
            epochs = min(self.epochs, max((len(run.rows) for run in seeds.values()), default=0))
            failures = [run.failure for run in seeds.values() if run.failure]
            if failures:
                self.failed[label] = failures[0].get("reason", "")
            if epochs:
                curves.append(Curve(label, {seed: run for seed, run in sorted(seeds.items())
                                            if len(run.rows) >= epochs}, epochs))
            if epochs < self.epochs or not epochs:
                state = f" (failed: {self.failed[label]})" if failures else f" ({epochs} of {self.epochs} epochs)"
                self.missing.append(label + (state if epochs or failures else ""))
        self.curves = {curve.label: curve for curve in sorted(curves, key=lambda curve: curve.mean("val_loss"))}

    def complete(self, label: str) -> Curve | None:
        """The curve of that name, if it has all its epochs."""
        curve = self.curves.get(label)
        return curve if curve and curve.epochs == self.epochs else None

    @property
    def command(self) -> str:
        """What makes its runs, as far as all settings have them: with the epochs, and the seeds if they are several."""
        seeds = sorted(set.intersection(*(set(curve.runs) for curve in self.curves.values()))) if self.curves else []
        if "theory.py" in self.study.command:
            seeds = []  # it has no such flag
        return (self.study.command + f" --num_epochs {self.epochs}" * (self.epochs not in (0, self.study.epochs))
                + (f" --seed {' '.join(map(str, seeds))}" if len(seeds) > 1 else ""))

    @property
    def guessing(self) -> dict[str, float]:
        """Validation accuracy and loss of a network that knows nothing but the number of classes."""
        return {"val_acc": 1 / self.classes, "val_loss": math.log(self.classes)}

    @property
    def seeds(self) -> list[int]:
        """The numbers of seeds that its curves have."""
        return sorted({len(curve.runs) for curve in self.curves.values()})

    @property
    def seeds_text(self) -> str:
        low, high = min(self.seeds, default=0), max(self.seeds, default=0)
        return f"{low} seed{'s' * (low != 1)}" if low == high else f"{low} to {high} seeds"


def read_source(runs_dir: Path | None) -> Source:
    """The user's runs, or the published ones.

    Raises UserError if there are none at all.
    """
    place = runs_dir or RESULTS
    source = Source(read_runs(place) if runs_dir else read_results(), read_json(place / "theory.json"))
    if not any(record.rows for record in source.records):
        what = f"no runs in {place}" if place.is_dir() else f"there is no folder {place}"
        raise UserError(f"{what}; ./run_grid.sh all{f' --runs_dir {place}' if runs_dir else ''} makes them")
    return source
