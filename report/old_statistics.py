"""Intervals and decisions: Welch's t, a pooled deviation where seeds are few, Holm's correction.

Runs of one seed share initial weights and the order of the images. Intervals are unpaired all the
same, which makes them wider: with three seeds pairing costs more degrees of freedom than it gains.
An interval covers the seed, that is initial weights, order of the images and masks. It does not
cover the choice of the 10,000 validation images, which all runs share.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from report.old_studies import Curve, View

LEVEL = 0.05
FEW = 3  # with fewer seeds a setting's own deviation says too little


@cache
def _t_table(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """Angles, and the probability that |T| lies below sqrt(freedom) tan(angle).

    T is Student's; the angle's density is proportional to cos(angle)^(freedom - 1).
    """
    angles = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return angles, below / below[-1]


def t_quantile(freedom: float, probability: float = 1 - LEVEL / 2) -> float:
    angles, below = _t_table(freedom)
    angle = np.interp(2 * probability - 1, below, angles)
    return math.sqrt(freedom) * math.tan(angle)


def p_value(t: float, freedom: float) -> float:
    """How probable a value as far from 0 as t is, in both directions."""
    angles, below = _t_table(freedom)
    return float(1 - np.interp(math.atan(abs(t) / math.sqrt(freedom)), angles, below))


def holm(values: list[float]) -> list[float]:
    """The p values of a family, corrected for their number (Holm 1979)."""
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected, highest = [1.0] * len(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = highest
    return corrected


class Estimate(NamedTuple):
    """A mean, or a difference of two, with its standard error and degrees of freedom."""

    mean: float
    error: float  # nan: no setting has a second seed
    freedom: float
    seeds: tuple[int, ...]  # of each setting in it
    epochs: str = ""
    pooled: bool = False  # the deviation is that of all settings of the network and length

    @property
    def half(self) -> float:
        """Half of the 95 % interval."""
        return math.nan if math.isnan(self.error) else t_quantile(self.freedom) * self.error

    @property
    def n(self) -> str:
        return " / ".join(map(str, dict.fromkeys(self.seeds))) + "*" * self.pooled

    def __str__(self) -> str:
        if math.isnan(self.error):
            return f"{self.mean:+.4f}"
        return f"{self.mean:+.4f} [{self.mean - self.half:+.4f}, {self.mean + self.half:+.4f}]"


class Pool:
    """Standard deviations over the seeds, pooled over the settings of a network and length.

    With fewer than `few` seeds of a setting, estimates take the pooled one.
    """

    def __init__(self, views: dict[str, View], few: float = FEW):
        self.few = few
        self.curves = {(curve.network, curve.epochs,
                        *(run.name for run in curve.runs.values())): curve
                       for view in views.values() for curve in view.curves.values()
                       if len(curve.runs) > 1}
        self.known: dict[tuple, tuple[float, float]] = {}

    def deviation(self, network: str, epochs: int, measure) -> tuple[float, float]:
        """The pooled deviation and its degrees of freedom; nan and 0 if there is none."""
        key = (network, epochs, measure)
        if key not in self.known:
            self.known[key] = pooled([
                curve.by_seed(measure) for curve in self.curves.values()
                if (curve.network, curve.epochs) == (network, epochs)])
        return self.known[key]

    def estimate(self, measure, *curves: Curve | None) -> Estimate | None:
        """The mean of one setting, the difference of two (Welch), or a − b − (c − d) of four.

        None if one is missing.
        """
        if None in curves:
            return None
        few = min(len(curve.runs) for curve in curves) < self.few
        parts = [self.deviation(curve.network, curve.epochs, measure) if few
                 else (curve.deviation(measure), len(curve.runs) - 1) for curve in curves]
        squares = [deviation ** 2 / len(curve.runs)
                   for (deviation, _), curve in zip(parts, curves, strict=True)]
        shared = few and len({(curve.network, curve.epochs) for curve in curves}) == 1
        if shared or not sum(squares) > 0:
            freedom = parts[0][1]
        else:
            freedom = sum(squares) ** 2 / sum(
                square ** 2 / n for square, (_, n) in zip(squares, parts, strict=True) if n)
        mean = sum(sign * curve.mean(measure)
                   for sign, curve in zip((1, -1, -1, 1), curves, strict=False))
        return Estimate(mean, math.sqrt(sum(squares)), freedom,
                        tuple(len(curve.runs) for curve in curves),
                        " and ".join(dict.fromkeys(str(curve.epochs) for curve in curves)), few)


def pooled(groups: list[dict[int, float]]) -> tuple[float, float]:
    """The deviation within groups of numbers by seed, and its degrees of freedom; nan, 0 for none.

    If numbers of one seed correlate by rho, so do the k groups' variances, by rho^2. This divides
    the sum of their degrees of freedom by 1 + (k - 1) rho^2.
    """
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return math.nan, 0
    shared: dict[int, float] = {}  # the sum of all groups' residuals, by seed
    squares = 0.0
    for group in groups:
        mean = sum(group.values()) / len(group)
        for seed, value in group.items():
            shared[seed] = shared.get(seed, 0) + value - mean
            squares += (value - mean) ** 2
    k, together = len(groups), sum(value ** 2 for value in shared.values())
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
