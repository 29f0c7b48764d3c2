"""Intervals and decisions: Welch's t, a pooled deviation where runs are few, Holm's correction.

Runs of one seed share initial weights and the order of the images. Intervals are unpaired all the
same: with three seeds pairing costs more degrees of freedom than it gains. An interval covers the
seed, that is initial weights, order of the images and masks. It does not cover the choice of the
10,000 validation images, which all runs share.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from report.frame import Curve, View

LEVEL = 0.05
FEW = 3  # with fewer runs a setting's own deviation says too little


def t_quantile(freedom: float, probability: float = 1 - LEVEL / 2) -> float:
    return float(stats.t.ppf(probability, freedom))


def p_value(t: float, freedom: float) -> float:
    """How probable a value as far from 0 as t is, in both directions."""
    return float(2 * stats.t.sf(abs(t), freedom))


def holm(values: list[float]) -> list[float]:
    """The p values of a family, corrected for their number (Holm 1979)."""
    ranked = pd.Series(values, dtype=float).sort_values(kind="stable")
    corrected = (ranked * np.arange(len(ranked), 0, -1)).clip(upper=1).cummax()
    return corrected.sort_index().tolist()


class Estimate(NamedTuple):
    """A mean, or a difference of two, with its standard error and degrees of freedom."""

    mean: float
    error: float  # nan: no setting has a second run
    freedom: float
    seeds: tuple[int, ...]  # of each setting in it
    epochs: str = ""
    pooled: bool = False  # the deviation is that of all settings of the network and length

    @property
    def half(self) -> float:
        """Half of the 95 % interval."""
        if not self.error > 0:
            return self.error
        return t_quantile(self.freedom) * self.error

    @property
    def n(self) -> str:
        return " / ".join(map(str, dict.fromkeys(self.seeds))) + "*" * self.pooled

    def __str__(self) -> str:
        if math.isnan(self.error):
            return f"{self.mean:+.4f}"
        return f"{self.mean:+.4f} [{self.mean - self.half:+.4f}, {self.mean + self.half:+.4f}]"

    @property
    def points(self) -> str:
        """In percentage points, as a difference of accuracies is read."""
        mean, half = 100 * self.mean, 100 * self.half
        interval = "" if math.isnan(half) else f" [{mean - half:+.1f}, {mean + half:+.1f}]"
        return f"{mean:+.1f}{interval}"


class Pool:
    """Standard deviations over the runs, pooled over the settings of a network and length.

    With fewer than `few` runs of a setting, estimates take the pooled one.
    """

    def __init__(self, views: dict[str, View], few: float = FEW):
        self.few = few
        self.curves = {(curve.network, curve.epochs, *curve.numbers.index): curve
                       for view in views.values() for curve in view.curves.values()
                       if len(curve.runs) > 1}
        self.known: dict[tuple, tuple[float, float]] = {}

    def deviation(self, network: str, epochs: int, measure: str) -> tuple[float, float]:
        """The pooled deviation and its degrees of freedom; nan and 0 if there is none."""
        key = (network, epochs, measure)
        if key not in self.known:
            self.known[key] = pooled([
                curve.by_seed(measure) for curve in self.curves.values()
                if (curve.network, curve.epochs) == (network, epochs)])
        return self.known[key]

    def estimate(self, measure: str, *curves: Curve | None) -> Estimate | None:
        """The mean of one setting, the difference of two (Welch), or a − b − (c − d) of four.

        None if one is missing.
        """
        if None in curves or not curves:
            return None
        runs = np.array([len(curve.runs) for curve in curves])
        few = bool(runs.min() < self.few)
        deviations, freedoms = np.array([
            self.deviation(curve.network, curve.epochs, measure) if few
            else (curve.deviation(measure), len(curve.runs) - 1) for curve in curves]).T
        squares = deviations ** 2 / runs
        shared = few and len({(curve.network, curve.epochs) for curve in curves}) == 1
        freedom = freedoms[0]
        if not shared and squares.sum() > 0:
            own = freedoms > 0
            freedom = squares.sum() ** 2 / (squares[own] ** 2 / freedoms[own]).sum()
        mean = sum(sign * curve.mean(measure)
                   for sign, curve in zip((1, -1, -1, 1), curves, strict=False))
        return Estimate(mean, math.sqrt(squares.sum()), float(freedom), tuple(runs.tolist()),
                        " and ".join(dict.fromkeys(str(curve.epochs) for curve in curves)), few)


def pooled(groups: list[pd.Series]) -> tuple[float, float]:
    """The deviation within groups of numbers by seed, and its degrees of freedom; nan, 0 for none.

    If numbers of one seed correlate by rho, so do the k groups' variances, by rho^2. This divides
    the sum of their degrees of freedom by 1 + (k - 1) rho^2.
    """
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return math.nan, 0
    rest = pd.concat([group - group.mean() for group in groups])
    squares = float((rest ** 2).sum())
    together = float((rest.groupby(level=0).sum() ** 2).sum())
    k = len(groups)
    rho = max(0, together / squares - 1) / (k - 1) if k > 1 and squares > 0 else 0
    return math.sqrt(squares / freedom), freedom / (1 + (k - 1) * rho ** 2)


def optimism(means: list[float], errors: list[float], draws: int = 4000) -> float:
    """By how much the lowest of many means looks lower than it is, by chance alone.

    The means are taken for the truth and drawn again with their standard errors.
    """
    truth = np.array(means)
    drawn = truth + np.array(errors) * np.random.RandomState(0).standard_normal((draws, len(truth)))
    chosen = drawn.argmin(1)
    return float((truth[chosen] - drawn[np.arange(draws), chosen]).mean())
