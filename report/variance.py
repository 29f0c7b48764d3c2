"""How much of a result each setting decides: the analysis of variance of a full grid."""

import math
from collections import Counter
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from report.frame import Source, View, plural, varied
from store.settings import NETWORKS, Settings
from studies import Study

FACTORS = ("batch_size", "learning_rate", "drop_rate")


class Grid(NamedTuple):
    """A result of every combination of the levels, after equally many epochs.

    `values` has an axis per factor, its levels ascending, and a last one for the seeds.
    """

    network: str
    epochs: int
    levels: list[list]
    seeds: list[int]
    values: np.ndarray

    def __str__(self) -> str:
        size = " × ".join(str(len(levels)) for levels in self.levels if len(levels) > 1)
        seeds = plural(len(self.seeds), "seed")
        return f"{self.network.upper()}, {size} settings, {seeds}, {self.epochs} epochs"


def shares(values: np.ndarray, factors: tuple[str, ...] = FACTORS) -> dict[str, float]:
    """The share of each factor, each interaction and the seeds in the sum of squares.

    An effect is the mean over all other axes, less the effects that it contains. In a full grid
    they are orthogonal, so the shares add up to 1 (Montgomery, Design and Analysis of
    Experiments, 5.4). With one seed the largest interaction holds chance too. Empty if all
    values are equal.
    """
    effects: dict[tuple[int, ...], np.ndarray] = {}
    for size in range(len(factors) + 1):
        for axes in combinations(range(len(factors)), size):
            rest = tuple(axis for axis in range(values.ndim) if axis not in axes)
            contained = [effect for part, effect in effects.items() if set(part) < set(axes)]
            effects[axes] = values.mean(rest, keepdims=True) - sum(contained)
    variances = {" × ".join(factors[axis] for axis in axes): np.mean(effect ** 2)
                 for axes, effect in effects.items()
                 if axes and all(values.shape[axis] > 1 for axis in axes)}
    if values.shape[-1] > 1:
        variances["seed"] = np.mean(values.var(-1))
    total = values.var()
    return {name: float(part / total) for name, part in variances.items()} if total > 0 else {}


def grids(source: Source, measure="val_acc") -> list[Grid]:
    """The largest full grid of each network, where two factors or more vary.

    `measure` is one that `Curve.by_seed` takes.
    """
    return [grid for network in NETWORKS if (grid := largest_grid(source, network, measure))]


def largest_grid(source: Source, network: str, measure) -> Grid | None:
    kinds: dict[tuple, dict[tuple, str]] = {}  # runs in one grid differ in the factors alone
    for setting in source.chosen[network]:
        known = Settings.parse(network, setting)
        others, levels = (tuple(getattr(known, key) for key in keys) for keys in (
            ("without_BatchNorm", "dropout_type", *varied()), FACTORS))
        kinds.setdefault(others, {})[levels] = setting
    found = [grid for settings in kinds.values()
             if (grid := full_grid(source, network, settings, measure))]
    return max(found, key=lambda grid: grid.values.size, default=None)


def full_grid(source: Source, network: str, settings: dict[tuple, str], measure) -> Grid | None:
    view = View(Study("", network, "", "", 0, {
        name: Settings.parse(network, name) for name in settings.values()}, ()), source)
    cells = {key: curve.by_seed(measure).to_dict() for key, name in settings.items()
             if (curve := view.complete(name))}
    levels = full_levels(set(cells))
    if sum(len(values) > 1 for values in levels) < 2:
        return None
    seeds = sorted(set.intersection(*(set(cells[key]) for key in product(*levels))))
    values = np.array([[cells[key][seed] for seed in seeds] for key in product(*levels)])
    shape = (*map(len, levels), len(seeds))
    return Grid(network, view.epochs, levels, seeds, values.reshape(shape)) if seeds else None


def full_levels(keys: set[tuple]) -> list[list]:
    """The levels of each factor, without those that have the most gaps, until none is left."""
    while True:
        levels = [sorted(set(column)) for column in zip(*keys, strict=True)]
        if math.prod(map(len, levels)) == len(keys) or not keys:
            return levels
        counts = Counter((axis, level) for key in keys for axis, level in enumerate(key))
        axis, level = min((pair for pair in counts if len(levels[pair[0]]) > 1),
                          key=lambda pair: (counts[pair] * len(levels[pair[0]]), pair))
        keys = {key for key in keys if key[axis] != level}
