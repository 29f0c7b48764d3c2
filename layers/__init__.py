"""Batch normalization and dropout: the mathematics, written once, for both networks.

    functional.py   the definitions in plain tensor operations
    modules.py      BatchNorm1d, BatchNorm2d, Dropout, Dropout2d, GaussianDropout

A module switches on `self.training`:

                    training                                     evaluation
    BatchNorm       the batch's mean and variance; tracks them   the tracked mean and variance
    Dropout         drops each value with probability p          nothing
    Dropout2d       drops each feature map with probability p    nothing

Change a line here and train: both networks show it, on every device. Functions of fast/ take a
block's place only after they agreed with these modules in the same process.
"""

from layers.functional import batch_norm, batch_statistics, dropout
from layers.modules import (
    BatchNorm,
    BatchNorm1d,
    BatchNorm2d,
    Dropout,
    Dropout2d,
    GaussianDropout,
)
