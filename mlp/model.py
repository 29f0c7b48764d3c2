"""The multilayer perceptron: one hidden layer, with batch normalization and dropout.

    x (N x 3072) → Linear → BatchNorm1d → ReLU → Dropout → Linear → logits (N x classes)

../layers/ defines BatchNorm1d and Dropout, once for both networks. It has their formulas and
derivatives, for training and evaluation.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fast.choice import faster_hidden
from fast.linear import Linear
from layers import BatchNorm1d, Dropout


class MLP(nn.Module):
    """Maps a batch of flat images, N x 3072, to logits, N x `num_classes`."""

    def __init__(self, hidden_size: int = 100, drop_rate: float = 0.2,
                 without_BatchNorm: bool = False, without_dropout: bool = False,
                 num_classes: int = 10, detach_statistics: bool = False):
        super().__init__()
        self.linear1 = Linear(3 * 32 * 32, hidden_size)  # nearly all of the work
        self.norm = (nn.Identity() if without_BatchNorm
                     else BatchNorm1d(hidden_size, detach_statistics=detach_statistics))
        self.dropout = nn.Identity() if without_dropout else Dropout(drop_rate)
        self.linear2 = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.after_linear1(self.linear1(x))

    def after_linear1(self, x: Tensor) -> Tensor:
        """All behind linear1, which fast/side_by_side.py computes for several MLPs at once."""
        if (function := faster_hidden(x, self.norm, self.dropout)) is not None:
            return self.linear2(function(x, [self.norm], [self.dropout]))
        return self.linear2(self.dropout(F.relu(self.norm(x))))


def build(settings, num_classes: int = 10) -> MLP:
    """The MLP that a run's settings describe."""
    return MLP(settings.hidden_size, settings.drop_rate, settings.without_BatchNorm,
               settings.without_dropout, num_classes, settings.detach_statistics)
