"""The claims of the older report, tested on the runs: the numbers that decide each, and a verdict.

A claim `holds` if every number of its family agrees with it, `does not hold` if one contradicts it,
both at the 5 % level after Holm's correction within the family; else it is `undecided`.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from report.old_statistics import FEW, LEVEL, Estimate, Pool, holm, p_value, t_quantile
from report.old_studies import BASES, DROP_RATES, EPOCHS, Curve, View, quarter

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
MARGIN = 0.01  # two standard errors of an accuracy of 10,000 images: one run sees no less
MOST_SEEDS = 50

POWER = 0.8

# Between which bounds a number must lie for a claim to hold.
POSITIVE, AT_LEAST_SAME, SAME = (0, math.inf), (-MARGIN, math.inf), (-MARGIN, MARGIN)
MORE = (MARGIN, math.inf)


class Check(NamedTuple):
    """A number that a claim rests on, and between which bounds it has to lie."""

    what: str
    estimate: Estimate | None
    bounds: tuple[float, float] = POSITIVE
    obstacle: str = ""  # why the number decides nothing, however clear it is
    family: int = 1  # of how many like it this is the farthest
    beside: dict[str, Estimate] = {}  # the same difference by other measures
    unit: str = "seeds"  # of which more would narrow the interval

    @property
    def distance(self) -> float:
        """To the nearest bound, in the number's own unit; negative outside of them."""
        low, high = self.bounds
        return min(self.estimate.mean - low, high - self.estimate.mean)

    @property
    def p(self) -> float:
        """Of the nearest bound being the truth."""
        if self.estimate is None or math.isnan(self.estimate.error):
            return 1.0
        if self.estimate.error == 0:
            return float(self.distance == 0)
        return p_value(self.distance / self.estimate.error, self.estimate.freedom)

    def verdict(self, p: float) -> str:
        """With its p value, corrected for the family."""
        if self.estimate is None or self.obstacle or p >= LEVEL:
            return UNDECIDED
        return FAILS if self.distance < 0 else HOLDS

    @property
    def lacks(self) -> str:
        """Why no number of seeds would decide it; empty if some would."""
        if self.estimate is None:
            return "not run yet"
        return "no setting has a second seed" if math.isnan(self.estimate.error) else self.obstacle

    def seeds_to_decide(self, p: float) -> float:
        """How many of each setting decide it with a probability of POWER, if the difference stays.

        The number grows as the square of t.
        """
        t = abs(self.distance) / self.estimate.error
        factor = min(p / self.p, 1 / LEVEL ** 3)
        wanted = t_quantile(30, 1 - LEVEL / 2 / factor) + t_quantile(30, POWER)
        now = len(self.estimate.seeds) / sum(1 / n for n in self.estimate.seeds)
        return max(min(self.estimate.seeds) + 1,
                   math.ceil(now * (wanted / t) ** 2)) if t else math.inf


class Count(NamedTuple):
    """In how many settings something is clearly so and clearly not, by their 95 % intervals."""

    what: str
    yes: int
    no: int
    of: int
    wanted: float  # the share of settings that has to show it
    parts: str = ""  # the same by drop rate
    estimate = None

    @property
    def lacks(self) -> str:
        return "too few settings are clear" if self.of else "no setting has a second seed"

    @property
    def outcome(self) -> str:
        if self.yes > self.wanted * self.of:
            return HOLDS
        return FAILS if self.of and self.of - self.no <= self.wanted * self.of else UNDECIDED

    def __str__(self) -> str:
        return f"clearly in {self.yes} of {self.of} settings, clearly not in {self.no}{self.parts}"


class Finding(NamedTuple):
    number: int
    claim: str
    checks: list
    some: bool = False  # the claim holds if one of its numbers agrees

    @property
    def decided(self) -> list[tuple]:
        """Each check with its corrected p value and its verdict."""
        numbers = [check for check in self.checks if isinstance(check, Check) and check.estimate]
        corrected = dict(zip(map(id, numbers),
                             holm([min(1.0, check.family * check.p) for check in numbers]),
                             strict=True))
        return [(check, math.nan, check.outcome) if isinstance(check, Count)
                else (check, corrected.get(id(check), 1.0),
                      check.verdict(corrected.get(id(check), 1.0)))
                for check in self.checks]

    @property
    def verdict(self) -> str:
        """One check that fails refutes the claim; all must hold to establish it (`some`: one)."""
        verdicts = [verdict for *_, verdict in self.decided]
        order = (HOLDS, UNDECIDED, FAILS) if self.some else (FAILS, UNDECIDED, HOLDS)
        return next(verdict for verdict in order if verdict in verdicts)

    @property
    def reason(self) -> str:
        """Why it is undecided, or which of several numbers refutes it."""
        if self.verdict == UNDECIDED:
            undecided = [(check, p) for check, p, verdict in self.decided if verdict == UNDECIDED]
            lacking = [check.lacks for check, _ in undecided if check.lacks]
            if not lacking:
                n, unit = max((check.seeds_to_decide(p), check.unit) for check, p in undecided)
                lacking = [f"about {n} {unit} of each would decide" if n <= MOST_SEEDS
                           else f"more than {MOST_SEEDS} {unit} of each would be needed"]
            return "; ".join(dict.fromkeys(lacking))
        refuting = [check.what for check, _, verdict in self.decided if verdict == FAILS]
        some = self.verdict == FAILS and len(refuting) < len(self.checks)
        return "; ".join(refuting) if some else ""


def gap(rows: list[dict]) -> float:
    """Validation less training loss over the last quarter."""
    return quarter(rows, "val_loss") - quarter(rows, "train_loss")


def rise(rows: list[dict]) -> float:
    """How much the validation loss rises from the last quarter but one to the last.

    From its minimum it would rise by chance alone.
    """
    return quarter(rows, "val_loss") - quarter(rows, "val_loss", 1)


class Claims:
    """What the claims are made of: curves by what they are, and differences of them."""

    def __init__(self, views: dict[str, View], few: float = FEW):
        self.views = views
        self.pool = Pool(views, few)

    def ablation(self, network: str, without_norm: bool, without_dropout: bool) -> Curve | None:
        label = f"{BASES[network.lower()]}_{without_norm}_{without_dropout}"
        return self.views[f"{network}_ablation"].complete(label)

    def validation(self, what: str, a: Curve | None, b: Curve | None, bounds=POSITIVE) -> Check:
        """a − b in validation accuracy over the last quarter; beside it other measures."""
        beside = {"best epoch": "val_acc", "last epoch": "last_val_acc", "test": "quarter_test_acc"}
        return Check(f"validation accuracy, {what}", self.pool.estimate("quarter_val_acc", a, b),
                     bounds, beside={} if None in (a, b) else {
                         name: self.pool.estimate(key, a, b) for name, key in beside.items()})

    def training(self, what: str, a: Curve | None, b: Curve | None) -> Check:
        """a − b in training accuracy over the last quarter."""
        return Check(f"training accuracy, {what}", self.pool.estimate("quarter_train_acc", a, b))

    def best_of_grid(self, network: str) -> Check:
        """The claimed best against the best of the others, in lowest validation loss."""
        view, label = self.views[network], BASES[network.lower()]
        claimed = view.complete(label)
        rivals = [curve for curve in view.curves.values()
                  if curve.label != label and view.complete(curve.label)]
        if claimed is None or not rivals:
            return Check("lowest validation loss, best other setting − claimed", None)
        estimate = self.pool.estimate("val_loss", rivals[0], claimed)
        missing = len(view.settings) - len(rivals) - 1
        obstacle = f"{view.epochs} of {view.study.epochs} epochs" * (
            view.epochs < view.study.epochs)
        if missing and estimate.mean > 0:  # a better one could be among them
            obstacle = f"{missing} of {len(view.settings)} settings missing"
        return Check(f"lowest validation loss, {rivals[0].label} − {label}", estimate,
                     obstacle=obstacle, family=len(rivals),
                     beside={"test": self.pool.estimate("test_loss", rivals[0], claimed)})

    def count(self, what: str, measure: Callable, curves: list[Curve], wanted: float) -> Count:
        """Settings by a measure above 0; in words, those with little dropout and the others."""
        found = [self.pool.estimate(measure, curve) for curve in curves]
        signs = [(each.mean - each.half > 0) - (each.mean + each.half < 0) for each in found]
        mild = [drop_rate(curve) <= 0.2 for curve in curves]
        parts = [f"drop rate {text} 0.2: {part.count(1)} of {len(part)}, not in {part.count(-1)}"
                 for text, wanted_mild in (("up to", True), ("above", False))
                 if (part := [sign for sign, each in zip(signs, mild, strict=True)
                              if each == wanted_mild])]
        return Count(what, signs.count(1), signs.count(-1), len(found), wanted,
                     f" ({'; '.join(parts)})" * bool(parts))

    def at_full_length(self, network: str, which: Callable[[Curve], bool]) -> list[Curve]:
        """Of each network trained for as long as the protocol says, one curve."""
        names = [network, f"{network}_ablation", *(("dimention",) if network == "CNN" else ())]
        curves = {view.settings[curve.label]: curve for view in map(self.views.get, names)
                  for curve in view.curves.values()
                  if curve.epochs >= EPOCHS[network.lower()] and which(curve)}
        return list(curves.values())


def drop_rate(curve: Curve) -> float:
    settings = next(iter(curve.runs.values())).settings
    return 0.0 if settings.without_dropout else settings.drop_rate


def time_saved(network: str, theory: dict) -> Check:
    """The share of an epoch's time that the largest batch saves, by rounds of the bench."""
    seconds = theory.get(network.lower(), {}).get("epoch_seconds", {}).get("seconds")
    if not seconds:
        return Check(f"{network}, time of an epoch", None)
    smallest, largest = min(seconds, key=int), max(seconds, key=int)
    shares = 1 - np.array(seconds[largest]) / np.array(seconds[smallest])
    rounds = len(shares)
    error = shares.std(ddof=1) / math.sqrt(rounds) if rounds > 1 else math.nan
    return Check(f"{network}, share of time saved, {largest} against {smallest}",
                 Estimate(float(shares.mean()), error, rounds - 1, (rounds,), "bench"),
                 unit="rounds of the bench")


def findings(views: dict[str, View], theory: dict, few: float = FEW) -> list[Finding]:
    claims = Claims(views, few)
    networks, ablation = ("MLP", "CNN"), claims.ablation
    validation, training = claims.validation, claims.training
    full = {n: ablation(n, False, False) for n in networks}
    undropped = {n: ablation(n, False, True) for n in networks}
    unnormed = {n: ablation(n, True, False) for n in networks}
    rates = {"MLP": (views["MLP"], "1024_0.001_{}"), "CNN": (views["dropout"], "128_0.001_{}")}
    drops = {n: {p: view.complete(label.format(p)) for p in DROP_RATES}
             for n, (view, label) in rates.items()}
    kinds = {kind: {p: views["dimention"].complete(f"128_0.001_{p}_{kind}") for p in DROP_RATES[1:]}
             for kind in ("1d", "2d")}
    sizes = {b: views["batchsize"].complete(f"{b}_0.001_0.0") for b in (512, 1024, 2048, 4096)}
    peak = max((b for b in (1024, 2048) if sizes[b]), default=1024,
               key=lambda b: sizes[b].mean("quarter_val_acc"))
    same_data = views["MLP_ablation"].fingerprint == views["CNN_ablation"].fingerprint

    def overfits(network: str) -> Check:
        """Of the settings without dropout, the one whose validation loss rises most."""
        curves = claims.at_full_length(network, lambda curve: drop_rate(curve) == 0)
        worst = max(curves, key=lambda curve: curve.mean(rise), default=None)
        return Check(f"{network}, rise of the validation loss, largest of {len(curves)}"
                     + (f": {worst.label}" if worst else ""),
                     claims.pool.estimate(rise, worst), family=max(1, len(curves)))

    claimed = [
        *((f"The best {n} of the grid is {BASES[n.lower()]}", [claims.best_of_grid(n)])
          for n in networks),
        ("The CNN beats the MLP on test accuracy", [
            Check("test accuracy at the best epoch, CNN − MLP",
                  claims.pool.estimate("test_acc", full["CNN"], full["MLP"]),
                  obstacle="" if same_data else "the two were trained on different data")]),
        ("In most cases training loss lies below validation loss on the plateau", [
            claims.count(f"{n}, last quarter", gap, claims.at_full_length(n, lambda _: True), 0.5)
            for n in networks]),
        ("Some networks without regularization overfit", [overfits(n) for n in networks]),
        ("Dropout improves the CNN's validation accuracy and worsens its training accuracy", [
            validation("with − without", full["CNN"], undropped["CNN"]),
            training("without − with", undropped["CNN"], full["CNN"])]),
        ("Dropout leaves the MLP's validation accuracy about as it was", [
            validation("with − without", full["MLP"], undropped["MLP"], SAME)]),
        ("Dropout is needed for both networks", [
            validation(f"{n}, with − without", full[n], undropped[n], MORE) for n in networks]),
        ("Batch normalization improves validation accuracy or leaves it", [
            validation(f"{n}, with − without", full[n], unnormed[n], AT_LEAST_SAME)
            for n in networks]),
        ("Without batch normalization training accuracy is clearly better", [
            training(f"{n}, without − with{text}", ablation(n, True, dropped),
                     ablation(n, False, dropped))
            for n in networks for dropped, text in ((False, ""), (True, " (no dropout)"))]),
        ("Batch normalization markedly reduces overfitting", [
            Check(f"{n}, validation − training loss, without − with",
                  claims.pool.estimate(gap, unnormed[n], full[n])) for n in networks]),
        ("Dropping whole maps gives the CNN a better validation accuracy than single activations", [
            validation(f"drop rate {p}, 2d − 1d", kinds["2d"][p], kinds["1d"][p])
            for p in DROP_RATES[1:]]),
        ("Training accuracy falls as the drop rate rises", [
            training(f"{n}, {p} − {q}", drops[n][p], drops[n][q])
            for n in networks for p, q in pairwise(DROP_RATES)]),
        ("Validation accuracy peaks at drop rate 0.2", [
            validation(f"{n}, 0.2 − {p}", drops[n][0.2], drops[n][p])
            for n in networks for p in DROP_RATES if p != 0.2]),
        ("The MLP's training accuracy falls as the batch size rises, its validation accuracy rises "
         "first and falls then", [
             *(training(f"{b} − {2 * b}", sizes[b], sizes[2 * b]) for b in (512, 1024, 2048)),
             *(validation(f"{peak} − {b}", sizes[peak], sizes[b]) for b in (512, 4096))]),
        ("Larger batches train faster", [time_saved(n, theory) for n in networks])]
    return [Finding(number, claim, checks, claim.startswith("Some"))
            for number, (claim, checks) in enumerate(claimed, 1)]
