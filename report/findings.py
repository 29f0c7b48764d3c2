"""What the older report claimed, held against the runs: each claim with the numbers that decide it, and a verdict.

Runs are compared seed by seed, since runs with the same seed see their images in the same order. Over the
differences stand mean and 95 % confidence interval (Student's t), and the interval decides: a claim `holds` if
all of the interval agrees with it, `does not hold` if none of it does, else it is `undecided`, and so is
a claim whose runs are missing or have just one seed.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from report.studies import BASES, DROP_RATES, Curve, View, quarter

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
MARGIN = 0.01  # accuracies that differ by less are about the same


def t_quantile(freedom: float, probability: float = 0.975) -> float:
    """The quantile of Student's t distribution, from a table of its distribution function.

    t = sqrt(freedom) tan(angle), and the angle's density is proportional to cos(angle)^(freedom - 1).
    """
    angles = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.cumsum((density[1:] + density[:-1]) / 2)
    angle = np.interp(2 * probability - 1, below / below[-1], angles[1:])
    return math.sqrt(freedom) * math.tan(angle)


class Estimate(NamedTuple):
    """Mean and 95 % confidence interval over n seeds, after so many epochs; the interval of one seed is nan."""

    mean: float
    low: float
    high: float
    n: int
    epochs: str = ""

    def __str__(self) -> str:
        interval = f" [{self.low:+.4f}, {self.high:+.4f}]" if self.n > 1 else ""
        return f"{self.mean:+.4f}{interval}, n = {self.n}, {self.epochs} epochs"


def estimate(values: list[float], *curves: Curve) -> Estimate:
    """Of a number per seed, taken from these curves."""
    n, mean = len(values), float(np.mean(values))
    half = t_quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(mean, mean - half, mean + half, n, " and ".join(dict.fromkeys(str(c.epochs) for c in curves)))


def difference(a: Curve | None, b: Curve | None, measure) -> Estimate | None:
    """`measure` of `a` less that of `b` over the seeds that both have; None if there are none."""
    if a is None or b is None:
        return None
    left, right = a.by_seed(measure), b.by_seed(measure)
    seeds = sorted(left.keys() & right.keys())
    return estimate([left[seed] - right[seed] for seed in seeds], a, b) if seeds else None


# What has to be true of an interval for a claim to hold: the interval must lie between low and high.
POSITIVE, AT_LEAST_SAME, SAME = (0, math.inf), (-MARGIN, math.inf), (-MARGIN, MARGIN)


class Check(NamedTuple):
    """A number that a claim rests on: what it is, its estimate, and between which bounds it has to lie."""

    what: str
    estimate: Estimate | None
    bounds: tuple[float, float] = POSITIVE
    obstacle: str = ""  # why the number cannot establish the claim, however clear it is

    @property
    def verdict(self) -> str:
        if self.estimate is None or self.estimate.n < 2:
            return UNDECIDED
        (low, high), (_, left, right, *_) = self.bounds, self.estimate
        if right <= low or left >= high:
            return FAILS
        return HOLDS if low < left and right < high and not self.obstacle else UNDECIDED

    @property
    def reason(self) -> str:
        """Why it is undecided."""
        if self.estimate is None:
            return "not run yet"
        if self.estimate.n < 2:
            return "one seed, so no interval"
        return self.obstacle or "the interval reaches to both sides"

    def __str__(self) -> str:
        return f"{self.what}: {self.estimate or 'not run yet'}"


class Finding(NamedTuple):
    number: int
    claim: str
    checks: list[Check]

    @property
    def verdict(self) -> str:
        """One check that fails refutes the claim; all must hold to establish it."""
        verdicts = [check.verdict for check in self.checks]
        return next((verdict for verdict in (FAILS, UNDECIDED) if verdict in verdicts), HOLDS)

    @property
    def reason(self) -> str:
        """Why it is undecided, or which of several numbers refutes it."""
        if self.verdict == UNDECIDED:
            return "; ".join(dict.fromkeys(check.reason for check in self.checks if check.verdict == UNDECIDED))
        refuting = [check.what for check in self.checks if check.verdict == FAILS]
        return "; ".join(refuting) if len(self.checks) > 1 else ""


def best_of_grid(view: View, label: str) -> Check:
    """The claimed best against the best of the others, in lowest validation loss."""
    claimed = view.complete(label)
    rivals = [curve for curve in view.curves.values() if curve.label != label and view.complete(curve.label)]
    if claimed is None or not rivals:
        return Check("lowest validation loss, best other setting − claimed", None)
    missing = len(view.settings) - len(rivals) - 1
    return Check(f"lowest validation loss, {rivals[0].label} − {label}", difference(rivals[0], claimed, "val_loss"),
                 obstacle=f"{missing} of {len(view.settings)} settings missing" if missing else "")


def over(curve: Curve | None, measure: Callable[[list[dict]], float]) -> Estimate | None:
    return estimate(list(curve.by_seed(measure).values()), curve) if curve else None


def gap(rows: list[dict]) -> float:
    return quarter(rows, "val_loss") - quarter(rows, "train_loss")


def rise(rows: list[dict]) -> float:
    """How much the validation loss rises from the last quarter but one to the last. (From its minimum it would
    rise by chance alone.)"""
    return quarter(rows, "val_loss") - quarter(rows, "val_loss", 1)


def findings(views: dict[str, View]) -> list[Finding]:
    mlp, cnn = views["MLP_ablation"], views["CNN_ablation"]
    bases = {"MLP": (mlp, BASES["mlp"]), "CNN": (cnn, BASES["cnn"])}

    def ablation(network: str, without_norm: bool, without_dropout: bool) -> Curve | None:
        view, base = bases[network]
        return view.complete(f"{base}_{without_norm}_{without_dropout}")

    full = {network: ablation(network, False, False) for network in bases}
    drop_views = {"MLP": (views["MLP"], "1024_0.001_{}"), "CNN": (views["dropout"], "128_0.001_{}")}
    drops = {network: {p: view.complete(label.format(p)) for p in DROP_RATES}
             for network, (view, label) in drop_views.items()}
    kinds = {kind: {p: views["dimention"].complete(f"128_0.001_{p}_{kind}") for p in DROP_RATES[1:]}
             for kind in ("1d", "2d")}
    sizes = {b: views["batchsize"].complete(f"{b}_0.001_0.0") for b in (512, 1024, 2048, 4096)}

    same_data = mlp.fingerprint == cnn.fingerprint
    dropout = {n: difference(full[n], ablation(n, False, True), "val_acc") for n in bases}
    steps = list(zip(DROP_RATES, DROP_RATES[1:], strict=False))
    peak = max((b for b in (1024, 2048) if sizes[b]), key=lambda b: sizes[b].mean("val_acc"), default=1024)
    return [
        *(Finding(number, f"The best {n} of the grid is {base}", [best_of_grid(views[n], base)])
          for number, (n, (_, base)) in enumerate(bases.items(), 1)),
        Finding(3, "The CNN beats the MLP on test accuracy", [
            Check("test accuracy, CNN − MLP", difference(full["CNN"], full["MLP"], "test_acc"),
                  obstacle="" if same_data else "the two were trained on different data")]),
        Finding(4, "On the plateau training loss lies below validation loss, and unregularised networks overfit", [
            check for n in bases for check in (
                Check(f"{n}, validation − training loss over the last quarter", over(full[n], gap)),
                Check(f"{n} without both, rise of the validation loss from the last quarter but one to the last",
                      over(ablation(n, True, True), rise)))]),
        Finding(5, "Dropout improves the CNN's validation accuracy and worsens its training accuracy", [
            Check("validation accuracy, with − without", dropout["CNN"]),
            Check("training accuracy, without − with",
                  difference(ablation("CNN", False, True), full["CNN"], "last_train_acc"))]),
        Finding(6, "Dropout leaves the MLP's validation accuracy about as it was", [
            Check("validation accuracy, with − without", dropout["MLP"], SAME)]),
        Finding(7, "Batch normalization improves validation accuracy or leaves it", [
            Check(f"{n}, validation accuracy, with − without",
                  difference(full[n], ablation(n, True, False), "val_acc"), AT_LEAST_SAME) for n in bases]),
        Finding(8, "Dropping whole maps gives the CNN a better validation accuracy than dropping single activations", [
            Check(f"validation accuracy at drop rate {p}, 2d − 1d",
                  difference(kinds["2d"][p], kinds["1d"][p], "val_acc")) for p in DROP_RATES[1:]]),
        Finding(9, "Training accuracy falls as the drop rate rises", [
            Check(f"{n}, training accuracy, {p} − {q}", difference(drops[n][p], drops[n][q], "last_train_acc"))
            for n in bases for p, q in steps]),
        Finding(10, "Validation accuracy peaks at drop rate 0.2", [
            Check(f"{n}, validation accuracy, 0.2 − {p}", difference(drops[n][0.2], drops[n][p], "val_acc"))
            for n in bases for p in DROP_RATES if p != 0.2]),
        Finding(11, "The MLP's training accuracy falls as the batch size rises, its validation accuracy rises first "
                    "and falls then", [
            *(Check(f"training accuracy, {b} − {2 * b}", difference(sizes[b], sizes[2 * b], "last_train_acc"))
              for b in (512, 1024, 2048)),
            *(Check(f"validation accuracy, {peak} − {b}", difference(sizes[peak], sizes[b], "val_acc"))
              for b in (512, 4096))]),
    ]
