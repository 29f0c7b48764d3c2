"""How a claim is decided: differences between settings, Holm's correction, and the test images.

A number `holds` or `does not hold` if its p value, corrected within the claim, is below 5 %, and
its 95 % interval on the test images lies on the same side; else it is `undecided`.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from report.frame import Curve, Source, View, views_of
from report.statistics import FEW, LEVEL, Estimate, Pool, holm, p_value, t_quantile

HOLDS, FAILS, UNDECIDED, ARGUMENT = "holds", "does not hold", "undecided", "no number"
MOST_SEEDS, POWER = 50, 0.8
RESOLUTION = 0.01  # two standard errors of one accuracy: a report of one run each sees no less
NO_WORSE = {"MLP": 0.001, "CNN": 0.004}  # standard error of a difference on shared images
POSITIVE, SAME = (0, math.inf), (-RESOLUTION, RESOLUTION)
QUARTER, BEST, LAST, TEST = MEASURES = ("last quarter", "best epoch", "last epoch", "test images")


def column(of: str, by: str) -> str | None:
    """The column of a run's numbers with a quantity by one of the measures; None if there is none.

    The lowest loss and a test result belong to early stopping, the rise to the last quarter.
    """
    if of == "rise":
        return {QUARTER: "quarter_rise", TEST: "quarter_test_rise"}.get(by)
    if by == TEST:
        prefix = "" if of in ("val_loss", "test_acc", "test_loss") else "quarter_"
        name = {"gap": "test_gap"}.get(of, of.replace("val_", "test_"))
        return None if of == "train_acc" else prefix + name
    return {QUARTER: "quarter_", BEST: "", LAST: "last_"}[by] + of


class Evidence:
    """All that claims are decided on."""

    def __init__(self, source: Source, views: dict[str, View] | None = None, few: float = FEW):
        self.views = views_of(source) if views is None else views
        self.theory, self.source, self.pool = source.theory, source, Pool(self.views, few)

    def curves(self, cell: "Cell") -> list[Curve]:
        wanted = {key: value if isinstance(value, tuple) else (value,)
                  for key, value in cell.values.items()}
        view = self.views[cell.study]
        return [curve for label, settings in view.settings.items()
                if all(getattr(settings, key) in values for key, values in wanted.items())
                and (curve := view.complete(label))]

    def curve(self, cell: "Cell", measure: str = "quarter_val_acc") -> Curve | None:
        return max(self.curves(cell), key=lambda curve: curve.mean(measure), default=None)

    def difference(self, *cells: "Cell", of: str = "val_acc", by: str = QUARTER) -> Estimate | None:
        chosen = [self.curve(cell, column(of, by)) for cell in cells]
        return self.pool.estimate(column(of, by), *chosen)


class Cell(NamedTuple):
    """The setting of a study with these values; where a value is a tuple, the best of those."""

    study: str
    values: dict


def cell(study: str, **values) -> Cell:
    return Cell(study, values)


@dataclass(frozen=True)
class Number:
    """A number that a claim rests on, by each measure, and between which bounds it has to lie."""

    what: str
    by: dict[str, Estimate] = field(default_factory=dict)
    bounds: tuple[float, float] = POSITIVE
    family: int = 1  # of how many like it this is the farthest
    obstacle: str = ""  # why it decides nothing, however clear it is
    unit: str = "seeds"  # of which more would narrow the interval
    of: str = "val_acc"

    def distance(self, by: str) -> float:
        """To the nearest bound; negative outside of them."""
        low, high = self.bounds
        return min(self.by[by].mean - low, high - self.by[by].mean)

    def p(self, by: str) -> float:
        """Of the nearest bound being the truth."""
        estimate = self.by.get(by)
        if estimate is None or math.isnan(estimate.error):
            return 1.0
        if estimate.error == 0:  # all seeds are equal: no spread to judge by
            return 1.0
        return min(1.0, self.family * p_value(self.distance(by) / estimate.error, estimate.freedom))

    def confirmed(self, by: str) -> bool:
        """Whether the interval on the test images, if there are any, lies on the same side."""
        test = self.by.get(TEST)
        if by == TEST or test is None or not test.error > 0:
            return True
        same_side = (self.distance(TEST) < 0) == (self.distance(by) < 0)
        return same_side and p_value(self.distance(TEST) / test.error, test.freedom) < LEVEL

    def verdict(self, by: str, p: float) -> str:
        """With its p value, corrected for the claim."""
        if by not in self.by or self.obstacle or p >= LEVEL or not self.confirmed(by):
            return UNDECIDED
        return FAILS if self.distance(by) < 0 else HOLDS

    def lacks(self, by: str, p: float) -> str:
        """Why it is undecided; the last resort is the number of seeds that would decide it."""
        if by not in self.by:
            return "not run yet"
        if math.isnan(self.by[by].error):
            return "no setting has a second seed"
        if self.by[by].error == 0:
            return "all seeds give the same number"
        if self.obstacle or p < LEVEL:
            return self.obstacle or "the test images do not confirm it"
        n = self.seeds_to_decide(by, p)
        return (f"about {n} {self.unit} of each would decide" if n <= MOST_SEEDS
                else f"more than {MOST_SEEDS} {self.unit} of each would be needed")

    def seeds_to_decide(self, by: str, p: float) -> float:
        """How many of each setting decide it with a probability of POWER, if the difference stays.

        The number grows as the square of t.
        """
        estimate = self.by[by]
        t = abs(self.distance(by)) / estimate.error
        factor = min(p / (self.p(by) / self.family), 1 / LEVEL ** 3)
        wanted = t_quantile(30, 1 - LEVEL / 2 / factor) + t_quantile(30, POWER)
        now = len(estimate.seeds) / sum(1 / n for n in estimate.seeds)
        return max(min(estimate.seeds) + 1, math.ceil(now * (wanted / t) ** 2)) if t else math.inf


@dataclass(frozen=True)
class Count(Number):
    """In how many settings something is clearly so and clearly not, by their 95 % intervals."""

    counts: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # yes, no, of, by measure

    def verdict(self, by: str, p: float) -> str:
        yes, no, of = self.counts.get(by, (0, 0, 0))
        return HOLDS if 2 * yes > of else FAILS if of and 2 * (of - no) <= of else UNDECIDED

    def lacks(self, by: str, p: float) -> str:
        return "too few settings are clear" if self.counts[by][2] else "not run yet"

    def __str__(self) -> str:
        yes, no, of = self.counts[QUARTER]
        return f"clearly in {yes} of {of} settings, clearly not in {no}"


# What a claim rests on: each of these makes a Number of the evidence


@dataclass(frozen=True)
class Contrast:
    """a, a − b or a − b − (c − d) of one quantity; of several `choices` the largest."""

    what: str
    cells: tuple[Cell, ...]
    of: str = "val_acc"
    bounds: tuple[float, float] = POSITIVE
    family: int = 1
    choices: tuple[tuple[Cell, ...], ...] = ()
    like: str = ""  # "fingerprint" or "epochs": what the studies must share
    within: bool = False  # a best value at the end of its range decides nothing

    def number(self, evidence: Evidence, main: str) -> Number:
        """By every measure; which settings are compared is chosen by the main one alone."""
        measure = column(self.of, main)
        options = [[evidence.curve(cell, measure) for cell in cells]
                   for cells in self.choices or (self.cells,)]
        options = [curves for curves in options if None not in curves]
        chosen = max(options, default=None, key=lambda curves: evidence.pool.estimate(
            measure, *curves).mean)
        by = {} if chosen is None else {
            name: evidence.pool.estimate(key, *chosen) for name in MEASURES
            if (key := column(self.of, name))}
        return Number(self.what, by, self.bounds, self.family,
                      self.obstacle(evidence, chosen or []), of=self.of)

    def obstacle(self, evidence: Evidence, chosen: list[Curve]) -> str:
        views = [evidence.views[cell.study] for cell in self.cells]
        if self.like and len({getattr(view, self.like) for view in views}) > 1:
            return ("the two were trained on different data" if self.like == "fingerprint" else
                    " and ".join(dict.fromkeys(f"the {view.study.network.upper()} was trained for "
                                               f"{view.epochs} epochs" for view in views)))
        ends = any(getattr(curve.settings, key) == value[-1]
                   for cell, curve in zip(self.cells, chosen, strict=False)
                   for key, value in cell.values.items() if isinstance(value, tuple))
        return "a best setting lies at the end of its range" if self.within and ends else ""


@dataclass(frozen=True)
class BestOfGrid:
    """The best other setting of a grid less the claimed one, in lowest validation loss."""

    claimed: Cell

    def number(self, evidence: Evidence, main: str) -> Number:
        view = evidence.views[self.claimed.study]
        claimed = evidence.curve(self.claimed)
        rivals = [curve for curve in view.all_complete() if curve is not claimed]
        if claimed is None or not rivals:
            return Number("lowest validation loss, best other setting − claimed", of="val_loss")
        by = {name: evidence.pool.estimate(column("val_loss", name), rivals[0], claimed)
              for name in MEASURES}
        missing = len(view.settings) - len(rivals) - 1
        obstacle = f"{view.epochs} of {view.study.epochs} epochs" * (
            view.epochs < view.study.epochs)
        if missing and by[main].mean > 0:  # a better one could be among them
            obstacle = f"{missing} of {len(view.settings)} settings missing"
        return Number(f"lowest validation loss, {rivals[0].label} − {claimed.label}", by,
                      family=len(rivals), obstacle=obstacle, of="val_loss")


@dataclass(frozen=True)
class Plateau:
    """Of the ten best of a grid, in how many training loss lies below validation loss."""

    grid: str

    def number(self, evidence: Evidence, main: str) -> Count:
        view = evidence.views[self.grid]
        counts = {}
        for by in MEASURES:
            found = [evidence.pool.estimate(column("gap", by), curve)
                     for curve in view.all_complete()[:10]]
            counts[by] = (sum(each.mean - each.half > 0 for each in found),
                          sum(each.mean + each.half < 0 for each in found), len(found))
        short = f", {view.epochs} of {view.study.epochs} epochs" * (
            view.epochs < view.study.epochs)
        return Count(f"the ten plotted best of the {self.grid}{short}", counts=counts, of="gap")


@dataclass(frozen=True)
class TimeSaved:
    """The share of an epoch's time that the largest batch saves, by rounds of the bench."""

    network: str

    def number(self, evidence: Evidence, main: str) -> Number:
        topic = evidence.theory.get(self.network, {}).get("epoch_seconds", {})
        if not (seconds := topic.get("seconds")):
            return Number(f"{self.network.upper()}, time of an epoch")
        smallest, largest = min(seconds, key=int), max(seconds, key=int)
        shares = 1 - np.array(seconds[largest]) / np.array(seconds[smallest])
        rounds = len(shares)
        error = shares.std(ddof=1) / math.sqrt(rounds) if rounds > 1 else math.nan
        return Number(f"{self.network.upper()}, share of time saved, {largest} against {smallest}",
                      {main: Estimate(float(shares.mean()), error, rounds - 1, (rounds,), "bench")},
                      unit="rounds of the bench", of="time")


@dataclass(frozen=True)
class Claim:
    """A claim in the older report's sense, and what it rests on."""

    number: str
    words: str
    said_of: str
    rests_on: tuple = ()
    some: bool = False  # it holds if one of its numbers agrees
    main: str = QUARTER
    remark: str = ""


class Finding:
    """A claim as decided by one of the measures."""

    def __init__(self, claim: Claim, evidence: Evidence, by: str = ""):
        self.claim, self.by = claim, by or claim.main
        self.numbers = [each.number(evidence, claim.main) for each in claim.rests_on]

    def decided(self, by: str = "") -> list[tuple[Number, float, str]]:
        """Each number with its corrected p value and its verdict."""
        by = by or self.by
        tested = [n for n in self.numbers if by in n.by]
        corrected = dict(zip(map(id, tested), holm([n.p(by) for n in tested]), strict=True))
        return [(n, p := corrected.get(id(n), 1.0), n.verdict(by, p)) for n in self.numbers]

    def verdict(self, by: str = "") -> str:
        """One number that fails refutes the claim; all must hold to establish it (`some`: one)."""
        verdicts = [verdict for *_, verdict in self.decided(by)]
        order = ((HOLDS, UNDECIDED, FAILS) if self.claim.some else (FAILS, UNDECIDED, HOLDS))
        return next((verdict for verdict in order if verdict in verdicts), ARGUMENT)

    def by_measure(self, by: str) -> str:
        """The verdict by a measure, '–' where it does not apply to all numbers."""
        known = all(by in n.by or isinstance(n, Count) for n in self.numbers)
        return self.verdict(by) if self.numbers and known else "–"

    @property
    def reason(self) -> str:
        """Why it is undecided, or which of several numbers refutes it."""
        if self.verdict() == UNDECIDED:
            return "; ".join(dict.fromkeys(n.lacks(self.by, p) for n, p, verdict in self.decided()
                                           if verdict == UNDECIDED))
        refuting = [n.what for n, _, verdict in self.decided() if verdict == FAILS]
        some = self.verdict() == FAILS and len(refuting) < len(self.numbers)
        return "; ".join(refuting) if some else ""
