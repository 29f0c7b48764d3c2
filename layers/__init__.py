"""Batch normalization and dropout: the mathematics, written once, for both networks.

    functional.py   the definitions in plain tensor operations
    normalize.py    Normalize: batch normalization in training, its derivative by hand
    modules.py      BatchNorm1d, BatchNorm2d, Dropout, Dropout2d

A module switches on `self.training`:

                    training                                     evaluation
    BatchNorm       the batch's mean and variance; tracks them   the tracked mean and variance
    Dropout         drops each value with probability p          nothing
    Dropout2d       drops each feature map with probability p    nothing

Training uses Normalize, or a function of fast/ that gives the same numbers sooner; compilers and
torch.func get the definitions, and tests hold everything else against these.
"""

from layers.functional import batch_norm, batch_norm_in_training, batch_statistics, dropout
from layers.modules import BatchNorm, BatchNorm1d, BatchNorm2d, Dropout, Dropout2d
from layers.normalize import Normalize
