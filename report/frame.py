"""The runs as one pandas frame, and each study as a view of it, cut at the study's epochs."""

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from report.results import RESULTS, data_name, read_results, read_runs, read_theory, version
from store.files import UserError, one_line
from store.run import COLUMNS, Run
from store.settings import DEFAULTS, NETWORKS, Settings
from studies import STUDIES, Study, trained

EPOCHS = {network: DEFAULTS[network]["num_epochs"] for network in NETWORKS}
METRICS = COLUMNS[1:-1]
ENOUGH = 3  # seeds
ABLATED = ("network", "batch_size", "learning_rate", "drop_rate", "seed", "num_epochs",
           "without_BatchNorm", "without_dropout", "dropout_type")


@cache
def varied() -> dict[str, None]:
    """The other settings that studies vary; None stands for a network's default."""
    return {name: None for name in DEFAULTS["cnn"] if name not in ABLATED and any(
        getattr(settings, name) != DEFAULTS[study.network][name]
        for study in STUDIES for settings in study.settings.values())}


def experiment(settings: Settings) -> str:
    """A run's name without the seed, the same for settings that are one network."""
    same = trained(settings)
    plain = Settings(**{name: getattr(same, name) for name in (*ABLATED, *varied())})
    return "_".join(filter(None, (plain.setting, plain.variant)))


def kind(run: Run) -> tuple[str, str]:
    """What runs must share to be in one report: all settings that no study varies, and the data."""
    return dataclasses.replace(run.settings, **varied()).variant, run.fingerprint


def summaries(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Each run in numbers: a row per run, named as in `rows`, whose rows are epochs in order.

    Accuracies, test loss and `best_epoch` are those of the best validation accuracy (the first, if
    several are equal), `val_loss` is the lowest. last_… and quarter_… are those of the last epoch
    and the mean of the last quarter. A gap is validation less training loss; a rise is that of the
    loss from the last quarter but one: from its minimum it would rise by chance alone.
    """
    runs = rows.groupby(by, sort=False)
    size, place = runs.epoch.transform("size"), runs.cumcount() + 1
    quarter = (size // 4).clip(lower=1)
    before = (place > size - 2 * quarter) & (place <= size - quarter) | (size == 1)
    parts = {"": rows.loc[runs.val_acc.idxmax()], "last_": rows[place == size],
             "quarter_": rows[place > size - quarter], "before_": rows[before]}
    table = pd.concat([part.groupby(by, sort=False)[list(METRICS)].agg(
        lambda values: values.to_numpy().mean()).add_prefix(prefix)
                       for prefix, part in parts.items()], axis=1)
    for prefix in ("", "last_", "quarter_"):
        for split, name in (("val", "gap"), ("test", "test_gap")):
            table[prefix + name] = table[f"{prefix}{split}_loss"] - table[f"{prefix}train_loss"]
    for split, name in (("val", "rise"), ("test", "test_rise")):
        table[f"quarter_{name}"] = table[f"quarter_{split}_loss"] - table[f"before_{split}_loss"]
    return table.assign(val_loss=runs.val_loss.min(),
                        best_epoch=parts[""].set_index(by).epoch)


class Source:
    """All runs of one place, and of each network those that can be compared.

    Runs on other data, with another precision, augmentation and so on, are other experiments. Of
    each network the commonest kind is `chosen`, {experiment: runs}; `notes` tells of the others.
    Runs that tell their code take the place of those that do not, as soon as they are ENOUGH.
    """

    def __init__(self, records: list[Run], theory: dict | None = None):
        self.records = [run for run in records if run.rows or run.failure]
        self.theory = theory or {}
        self.epochs = pd.DataFrame(
            [(run.network, run.name, run.seed, *(row[key] for key in COLUMNS))
             for run in self.records for row in run.rows],
            columns=["network", "run", "seed", *COLUMNS])
        self.epochs[list(METRICS)] = self.epochs[list(METRICS)].clip(-1e30, 1e30)  # to count with
        self.summaries = summaries(self.epochs, ["network", "run"]).to_dict("index")
        self.chosen: dict[str, dict[str, list[Run]]] = {network: {} for network in NETWORKS}
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
            self.notes += [f"{network}: {count} {variant or 'default'} runs on other data or with "
                           "other options are not in the studies"
                           for (variant, data), count in kinds.items() if (variant, data) != common]

    def choose(self, network: str, runs: list[Run]) -> None:
        variant, self.fingerprint[network] = kind(runs[0])
        self.data[network] = data_name(runs[0]) + (f" ({variant})" if variant else "")
        self.classes[network] = runs[0].classes
        found: dict[str, list[Run]] = {}
        for run in sorted(runs, key=lambda run: run.seed):
            found.setdefault(experiment(run.settings), []).append(run)
        for name, same in found.items():
            known = [run for run in same if version(run)]
            enough = len(known) >= min(ENOUGH, len(same) - len(known))
            self.chosen[network][name] = known if known and enough else same

    def of(self, network: str) -> list[Run]:
        return [run for run in self.records if run.network == network]


@dataclass
class Curve:
    """One setting of a study: its runs, all over the same number of epochs."""

    label: str
    settings: Settings
    runs: list[Run]
    epochs: int
    rows: pd.DataFrame  # an epoch of a run each
    numbers: pd.DataFrame  # a run each, by name, as `summaries` has them

    @property
    def network(self) -> str:
        return self.settings.network

    @property
    def versions(self) -> list[str]:
        """Of the code that made it; those that are not recorded are 'unknown'."""
        return sorted({version(run) or "unknown" for run in self.runs})

    def over_epochs(self, key: str) -> pd.DataFrame:
        """A metric, runs x epochs."""
        return self.rows.pivot(index="run", columns="epoch", values=key)

    def by_seed(self, measure: str) -> pd.Series:
        """A measure by seed."""
        return self.numbers[measure].set_axis([run.seed for run in self.runs])

    def mean(self, measure: str) -> float:
        return float(self.numbers[measure].mean())

    def deviation(self, measure: str) -> float:
        """Standard deviation over the runs; nan for one."""
        return float(self.numbers[measure].std())


@cache
def _studies_of(network: str) -> Counter:
    """In how many studies each experiment is."""
    return Counter(name for study in STUDIES if study.network == network
                   for name in set(map(experiment, study.settings.values())))


class View:
    """A study as far as its runs have come.

    `epochs` is the commonest requested length (ties: the shorter), or a given shorter one; longer
    runs are cut, so that all are compared after equally many. `curves` come best first: lowest
    validation loss over the epochs, mean over runs. `missing` names what is not there, not finished
    or failed.
    """

    def __init__(self, study: Study, source: Source, epochs: int = 0):
        self.study = study
        self.data = source.data.get(study.network, "")
        self.fingerprint = source.fingerprint.get(study.network, "")
        self.classes = source.classes.get(study.network, 10)
        self.missing: list[str] = []
        self.failed: dict[str, str] = {}
        chosen = source.chosen[study.network]
        self.settings = study.settings | joined(study, chosen)
        self.varying = {key: values for key in DEFAULTS[study.network] if len(
            values := sorted({getattr(settings, key) for settings in self.settings.values()},
                             key=lambda value: (value is None, value))) > 1}
        found = {label: chosen.get(experiment(settings), [])
                 for label, settings in self.settings.items()}
        alone = {name for name in map(experiment, study.settings.values())
                 if _studies_of(study.network)[name] == 1}
        if alone and not study.splits and not alone & chosen.keys():
            found = dict.fromkeys(found, [])  # all that is there was made for other studies
        asked = Counter(max(run.num_epochs for run in runs) for runs in found.values() if runs)
        common = max(asked, key=lambda epochs: (asked[epochs], -epochs)) if asked else 0
        self.epochs = min(common, epochs) if epochs else common
        names = pd.DataFrame([(label, run.name) for label, runs in found.items() for run in runs],
                             columns=["label", "run"])
        rows = source.epochs[source.epochs.network == study.network]
        rows = names.merge(rows[rows.epoch <= self.epochs], on="run")  # the one place that cuts
        reached = rows.groupby(["label", "run"]).epoch.transform("max")
        # a seed that is still going waits
        rows = rows[reached == reached.groupby(rows.label).transform("max")]
        numbers = summaries(rows, ["label", "run"])
        self.curves: dict[str, Curve] = {}
        by_loss = numbers.val_loss.groupby("label", sort=False).mean().sort_values(kind="stable")
        for label in by_loss.index:
            own, epochs = numbers.loc[label], rows[rows.label == label]
            self.curves[label] = Curve(
                label, self.settings[label], [run for run in found[label] if run.name in own.index],
                int(epochs.epoch.max()), epochs, own)
        for label, runs in found.items():
            self.note_missing(label, [run.failure for run in runs if run.failure])

    def note_missing(self, label: str, failures: list[dict]) -> None:
        epochs = self.curves[label].epochs if label in self.curves else 0
        if failures:
            self.failed[label] = failures[0].get("reason", "")
        if epochs < self.epochs or not epochs:
            state = f" ({epochs} of {self.epochs} epochs)" if epochs else ""
            self.missing.append(label + (f" (failed: {self.failed[label]})" if failures else state))

    def complete(self, label: str) -> Curve | None:
        """The curve of that name, if it has all its epochs."""
        curve = self.curves.get(label)
        return curve if curve and curve.epochs == self.epochs else None

    def all_complete(self) -> list[Curve]:
        return [curve for curve in self.curves.values() if curve.epochs == self.epochs]

    def find(self, **wanted) -> Curve | None:
        """The complete curve with these settings; None if it is not there."""
        fitting = [label for label, settings in self.settings.items()
                   if all(getattr(settings, key) == value for key, value in wanted.items())]
        return self.complete(fitting[0]) if fitting else None

    @property
    def runs(self) -> list[Run]:
        named = {run.name: run for curve in self.curves.values() for run in curve.runs}
        return list(named.values())

    @property
    def origin(self) -> str:
        """Of how many versions of the code and processors its runs are."""
        versions = Counter(map(version, self.runs))
        parts = [f"{plural(n, 'run')} of code {name}" for name, n in versions.most_common() if name]
        if "" in versions:
            parts.append(f"{plural(versions[''], 'run')} whose code was not recorded")
        processors = plural(len(self.processors), "processor")
        return f"{', '.join(parts)}; {processors}" if parts else ""

    @property
    def processors(self) -> set[str]:
        return {processor(run) for run in self.runs}

    @property
    def is_of_one(self) -> bool:
        """Whether one known version of the code made all its runs, on one kind of processor."""
        versions = set(map(version, self.runs))
        return len(versions) == len(self.processors) == 1 and "" not in versions

    @property
    def command(self) -> str:
        """What makes its runs, with the epochs and seeds that all its settings have."""
        seeds = [{run.seed for run in curve.runs} for curve in self.curves.values()]
        common = sorted(set.intersection(*seeds)) if seeds else []
        return (command(self.study)
                + f" --num_epochs {self.epochs}" * (self.epochs not in (0, self.study.epochs))
                + (f" --seed {' '.join(map(str, common))}"
                   if len(common) > 1 and self.study.name != "rates" else ""))

    @property
    def guessing(self) -> dict[str, float]:
        """Validation accuracy and loss of a network that knows the number of classes alone."""
        return {"val_acc": 1 / self.classes, "val_loss": math.log(self.classes)}

    @property
    def seeds(self) -> list[int]:
        """The numbers of runs that its curves have."""
        return sorted({len(curve.runs) for curve in self.curves.values()})

    @property
    def seeds_text(self) -> str:
        low, high = min(self.seeds, default=0), max(self.seeds, default=0)
        return plural(low, "seed") if low == high else f"{low} to {high} seeds"


def processor(run: Run) -> str:
    """Its name, without the instructions that it knows; a foreign run may say anything."""
    return one_line(str(run.config.get("processor", "unknown")))[:60]


def command(study: Study) -> str:
    """What trains a study, for its network alone where both have one."""
    networks = {each.network for each in STUDIES if each.name == study.name}
    start = "python theory.py rates" if study.name == "rates" else f"./run_grid.sh {study.name}"
    return start + f" --network {study.network}" * (len(networks) > 1)


JOINING = {"dimention": ("drop_rate", "dropout_type"), "dropout": ("drop_rate",),
           "batchsize": ("batch_size",)}  # studies that take in further values of these


def joined(study: Study, chosen: dict[str, list[Run]]) -> dict[str, Settings]:
    """Further values of what a study varies, if somebody trained them for no other study."""
    more, free = {}, JOINING.get(study.figures, ())
    like = next(iter(study.settings.values()))
    for name in chosen if free else ():
        settings = Settings.parse(study.network, name)
        values = {key: getattr(settings, key) for key in free}
        if name not in _studies_of(study.network) and name == experiment(
                dataclasses.replace(like, **values)):
            parts = dict.fromkeys(("batch_size", "learning_rate", "drop_rate", *free))
            more["_".join(str(getattr(settings, key)) for key in parts)] = settings
    return more


def plural(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def views_of(source: Source) -> dict[str, View]:
    """Every study, by the name of its figures."""
    return {study.figures: View(study, source) for study in STUDIES}


def read_source(runs_dir: Path | None, results: Path = RESULTS) -> Source:
    """The user's runs, or the published ones; UserError if there are none at all."""
    place = runs_dir or results
    source = Source(read_runs(place) if runs_dir else read_results(place), read_theory(place))
    if not any(run.rows for run in source.records):
        found = f"no runs in {place}" if place.is_dir() else f"there is no folder {place}"
        flag = f" --runs_dir {place}" if runs_dir else ""
        raise UserError(f"{found}; ./run_grid.sh all{flag} makes them")
    return source
