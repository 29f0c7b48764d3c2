"""Batch normalization and dropout: the mathematics, written once, for both networks.

    functional.py   the definitions in plain tensor operations
    normalize.py    Normalize: batch normalization in training, its derivative by hand
    modules.py      BatchNorm1d, BatchNorm2d, Dropout, Dropout2d

A module switches on `self.training`:

                    training                                     evaluation
    BatchNorm       the batch's mean and variance; tracks them   the tracked mean and variance
    Dropout         drops each value with probability p          nothing
    Dropout2d       drops each feature map with probability p    nothing

In training the MLP uses Normalize, on a CPU. The CNN uses fast/blocks.py there, which gives the
same sooner. Compilers and torch.func get the definitions, which tests hold all else against.
"""

from layers.functional import batch_norm, batch_norm_in_training, batch_statistics, dropout
from layers.modules import BatchNorm, BatchNorm1d, BatchNorm2d, Dropout, Dropout2d
from layers.normalize import Normalize
