"""plot.py --explore and runs.csv: the page in a real browser, and all that needs none."""

import itertools
from dataclasses import asdict

import numpy as np
import pytest

from report.studies import Record, Source
from report.variance import FACTORS, full_levels, grids, shares
from store.run import COLUMNS
from store.settings import Settings


def fabricate(network="mlp", batch_size=1024, learning_rate=0.001, drop_rate=0.2, seed=0, epochs=4,
              top=0.5, name=None, failure=None, **more) -> Record:
    """A run that nobody trained: its best validation accuracy is `top`, in the last epoch."""
    settings = Settings(network, batch_size, learning_rate, drop_rate, seed,
                        **{"num_epochs": epochs, "dropout_type": "2d" if network == "cnn" else None,
                           "hidden_size": 100 if network == "mlp" else None, **more})
    rows = [{"epoch": epoch, "train_loss": 2 - top, "train_acc": top + 0.05, "val_loss": 2.3 - epoch / 10,
             "val_acc": top * epoch / epochs, "test_loss": 1.9, "test_acc": top - 0.01, "seconds": 1.5}
            for epoch in range(1, epochs + 1)]
    config = {**asdict(settings), "device": "cpu", "versions": {"torch": "0"},
              "data": {"source": "official", "fingerprint": "00", "classes": ["cat", "dog"]}}
    finished = epochs >= settings.num_epochs and not failure
    return Record(network, name or settings.name, config, [{key: row[key] for key in COLUMNS} for row in rows],
                  {"epochs": epochs} if finished else None, failure)


# Shares of variance


def by_regression(values, columns):
    """The sum of squares that dummy variables of some axes explain, by least squares."""
    index = np.indices(values.shape)
    cells = np.ravel_multi_index([index[axis].ravel() for axis in columns], [values.shape[axis] for axis in columns])
    design = np.eye(cells.max() + 1)[cells]
    fit = design @ np.linalg.lstsq(design, values.ravel(), rcond=None)[0]
    return ((fit - values.mean()) ** 2).sum()


def test_shares_are_those_of_a_regression():
    values = np.random.RandomState(0).randn(4, 3, 5, 2)
    total = ((values - values.mean()) ** 2).sum()
    found = shares(values, ("a", "b", "c"))
    a, b, ab = (by_regression(values, axes) for axes in ([0], [1], [0, 1]))
    assert found["a"] == pytest.approx(a / total)
    assert found["a × b"] == pytest.approx((ab - a - b) / total)
    assert found["seed"] == pytest.approx(1 - by_regression(values, [0, 1, 2]) / total)
    assert sum(found.values()) == pytest.approx(1)
    assert len(found) == 8


def test_shares_of_known_effects():
    a, b = np.array([-1.0, 1])[:, None, None], np.array([-2.0, 0, 2])[None, :, None]
    assert shares(a + b + np.zeros((2, 3, 1)), ("a", "b")) == pytest.approx(
        {"a": 1 / (1 + 8 / 3), "b": 8 / 3 / (1 + 8 / 3), "a × b": 0})
    assert shares(a * b + 7, ("a", "b")) == pytest.approx({"a": 0, "b": 0, "a × b": 1})
    assert shares(np.ones((2, 3, 2)), ("a", "b")) == {}


def test_full_levels_leaves_out_what_has_gaps():
    grid = set(itertools.product((1, 2), (3, 4), (5, 6)))
    assert full_levels(grid | {(1, 9, 5), (8, 3, 5)}) == [[1, 2], [3, 4], [5, 6]]
    assert full_levels({(1, 3, 5), (2, 4, 6)}) in ([[1], [3], [5]], [[2], [4], [6]])
    assert full_levels(set()) == []


def test_the_grid_is_the_full_one_of_runs_that_differ_in_nothing_else():
    cells = list(itertools.product((512, 1024), (0.001, 0.01), (0.0, 0.2)))
    records = [fabricate("mlp", *cell, seed=seed, top=cell[1] + seed / 1000) for cell in cells for seed in (0, 1)]
    records += [fabricate("mlp", 512, 0.001, 0.0, seed=2),  # a seed, a rate and a layer too many
                fabricate("mlp", 512, 0.1, 0.0), fabricate("mlp", 512, 0.001, 0.0, without_BatchNorm=True),
                fabricate("cnn", 128, 0.001, 0.0), fabricate("cnn", 128, 0.001, 0.2)]
    grid, = grids(Source(records), "val_acc")
    assert grid.levels == [[512, 1024], [0.001, 0.01], [0.0, 0.2]] and grid.seeds == [0, 1]
    assert str(grid) == "MLP, 2 × 2 × 2 settings, 2 seeds, 4 epochs"
    found = shares(grid.values)
    assert found["learning_rate"] == pytest.approx(0.009 ** 2 / (0.009 ** 2 + 0.001 ** 2))
    assert found["seed"] == pytest.approx(1 - found["learning_rate"])
    assert set(FACTORS) < set(found)


def test_an_unfinished_run_is_in_no_grid():
    cells = list(itertools.product((512, 1024), (0.001, 0.01, 0.1), (0.2,)))
    records = [fabricate("mlp", *cell, epochs=4 - (cell == cells[-1]), num_epochs=4) for cell in cells]
    grid, = grids(Source(records))
    assert grid.values.size == 4
